"""Loads what `save_pretrained` wrote, when a stranger may have written it instead, and publishes it
on the Hugging Face hub. Configs become dataclasses of checked types, weights become finite floating
tensors, and sizes are compared with the weights before anything of those sizes is allocated.

    with one_error(WireError, f"{folder}/config.json"):
        config = typed(WireConfig, read_config(folder))
    state = read_tensors(folder / "wire.safetensors", sha256)
    check_sizes(state, {"rank": (config.rank, "slots.down", 2)})

    push_to_hub("runs/qwen3-4x/wire", "me/qwen3-4x", "runs/qwen3-eval/results.json")

Everything here raises ArtifactError, which `one_error` turns into the error of a kind.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from latentwire.card import base_models, save_card
from latentwire.reading import LARGEST, InputError, read_regular, saved_config, shortened

WORDS = {
    str: "text",
    int: f"a whole number up to {LARGEST}",
    float: "a finite number",
    bool: "true or false",
    tuple: "a list",
    dict: "an object",
}
T = TypeVar("T")


class ArtifactError(InputError):
    """A saved file is not what `save_pretrained` wrote. One line that names the field or tensor."""


@contextmanager
def one_error(kind: type[ValueError], where: str | Path) -> Iterator[None]:
    """Turns a ValueError into the error of a kind of artifact, `where` before it."""
    try:
        yield
    except kind:
        raise
    except ValueError as error:
        raise kind(f"{where}: {error}; expected what save_pretrained wrote") from None


def typed(kind: type[T], record: Any, at: str = "") -> T:
    """A JSON object as a dataclass. Raises ArtifactError for a field that is missing or of another
    type, and for one that is unknown but at the top, where records of several kinds lie side by
    side, and but for one of `RETIRED`, at its value; raises what the dataclass itself raises."""
    if not isinstance(record, dict):
        raise ArtifactError(f"{at or 'it'} is {shortened(record)}; expected an object")
    hints, values = get_type_hints(kind), {}
    for field in fields(kind):  # type: ignore[arg-type]
        place = f"{at}.{field.name}" if at else field.name
        if field.name in record:
            values[field.name] = _value(hints[field.name], record[field.name], place)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ArtifactError(f"it lacks a field, {place}")
    retired = getattr(kind, "RETIRED", {})
    unread = {n for n in record if n not in hints and (n, record[n]) not in retired.items()}
    if unknown := sorted(unread) if at else []:
        raise ArtifactError(f"{at}.{unknown[0][:80]} is a field that this release does not know")
    return kind(**values)


def _value(kind: Any, value: Any, at: str) -> Any:
    """A value of JSON as one of a dataclass's field."""
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        if not any(value == known and type(value) is type(known) for known in inner):
            raise ArtifactError(
                f"{at} is {shortened(value)}; expected {', '.join(map(str, inner))}"
            )
        return value
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_value(inner[0], item, f"{at}[{i}]") for i, item in enumerate(value))
    if get_origin(kind) is dict and isinstance(value, dict):
        return {key: _value(inner[1], item, f"{at}.{key[:80]}") for key, item in value.items()}
    if is_dataclass(kind):
        return typed(kind, value, at)  # type: ignore[arg-type]
    if kind is int and type(value) is int and abs(value) <= LARGEST:
        return value
    if kind is float and type(value) in (int, float) and abs(value) < 1e300 and isfinite(value):
        return float(value)
    if kind in (str, bool) and type(value) is kind:
        return value
    raise ArtifactError(f"{at} is {shortened(value)}; expected {WORDS[get_origin(kind) or kind]}")


def read_tensors(path: Path, sha256: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file with this sha256, in float32. Raises ArtifactError for a
    file that is missing, not a regular one, truncated or altered, for tensors that are not
    floating, and for values that are not finite."""
    try:
        data = read_regular(path)
    except FileNotFoundError:
        raise ArtifactError(f"no {path.name}") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path.name} cannot be read ({error})") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ArtifactError(f"{path.name} is truncated or altered (sha256 differs from config)")
    return parse_tensors(data, path.name)


def parse_tensors(data: bytes, name: str = "the file") -> dict[str, Tensor]:
    """The tensors of a safetensors file's bytes. Raises ArtifactError as read_tensors does."""
    try:
        # The header is checked against the length of the file, so no more is allocated than came.
        state = load(data)
    except (SafetensorError, KeyError, RuntimeError, TypeError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{name} is not a safetensors file ({reason})") from None
    return {key: _finite(tensor, f"{name}: {key[:80]}") for key, tensor in state.items()}


def _finite(tensor: Tensor, name: str) -> Tensor:
    """A floating tensor in float32, which a larger number would leave as infinite."""
    if tensor.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        kind = str(tensor.dtype).removeprefix("torch.")
        raise ArtifactError(f"{name} is {kind}; expected floating numbers")
    tensor = tensor.float()
    if not torch.isfinite(tensor).all():
        raise ArtifactError(f"{name} has NaN or infinite values")
    return tensor


def fill(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """All values into a module's tensors. Raises ArtifactError where they are not its own."""
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError:
        raise ArtifactError("config.json does not fit the weights; it was altered") from None


def check_sizes(state: Mapping[str, Tensor], sizes: Mapping[str, tuple[int, str, int]]) -> None:
    """Raises ArtifactError where a number of a config is not the one that the weights have. sizes:
    for each field its value, and the tensor and the axis that have it."""
    for field, (value, name, axis) in sizes.items():
        shape = list(state[name].shape) if name in state else []
        if axis >= len(shape) or shape[axis] != value:
            raise ArtifactError(
                f"{field} is {value}, and {name} has shape {shape}: config.json does not fit the "
                "weights; it was altered"
            )


def check_counts(state: Mapping[str, Tensor], counts: Mapping[str, tuple[int, str]]) -> None:
    """Raises ArtifactError where a config has another number of parts than the weights. counts: for
    each field its value, and what stands before a part's number in the names of its tensors."""
    for field, (value, prefix) in counts.items():
        parts = {name[len(prefix) :].partition(".")[0] for name in state if name.startswith(prefix)}
        if len(parts) != value:
            raise ArtifactError(
                f"{field} is {value}, and the weights have {len(parts)}: config.json does not fit "
                "the weights; it was altered"
            )


def push_to_hub(
    folder: str | Path, repo: str, results: str | Path | None = None, private: bool = False
) -> str:
    """Upload a saved wire, wire of codes or lens to the Hugging Face hub, with a model card; the
    address of the commit. `from_pretrained(repo)` loads it there.

    The folders of this machine that its models were in stay here. repo: owner/name; made if there
    is none. results: what an evaluation wrote with --json or as results.json, for the card. A
    README.md that the folder has already is kept unless results are given. Raises ValueError, of
    one line, for a folder that holds none, for results that cannot be read, and for whatever the
    hub answers.
    """
    from huggingface_hub import HfApi

    folder, api = Path(folder), HfApi()
    base_models(folder)
    if results is not None or not (folder / "README.md").is_file():
        save_card(folder, repo, results)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        with TemporaryDirectory() as copy:
            _publishable(folder, Path(copy))
            commit = api.upload_folder(repo_id=repo, folder_path=copy)
    except Exception as error:  # no network, no token, a bad name: all mean that nothing is there
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(
            f"cannot push to {repo!r} ({type(error).__name__}: {reason}); expected owner/name on "
            "the Hugging Face hub, and a token that may write there (hf auth login, or HF_TOKEN)"
        ) from error
    return str(commit.commit_url)


def _publishable(folder: Path, copy: Path) -> None:
    """Copy what was saved, and its card, without the folders of this machine that models are in."""
    for pattern in ("config.json", "*.safetensors", "README.md"):
        for path in folder.rglob(pattern):
            there = copy / path.relative_to(folder)
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, there)
            if pattern == "config.json" and "folders" in (record := saved_config(path.parent)):
                del record["folders"]
                there.write_text(json.dumps(record, indent=1))
