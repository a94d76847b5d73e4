"""A run folder: begun, gone on with, never mixed with another. Of a training, or of records."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from latentwire.files import digest, owned, read_rows, write_whole
from latentwire.lm.identity import basis
from latentwire.train import parallel
from latentwire.train.checkpoints import check_folder
from latentwire.train.settings import Session

PREDICTIONS = "predictions.jsonl"
REMEDY = "give another run folder or remove it, or put back what it began with"


def training_config(
    recipe: Any,
    data: Sequence[str | Path],
    models: Mapping[str, dict[str, Any]] | None = None,
    **beside: Any,
) -> str:
    """All that a training follows from, as JSON: its recipe, but for where it runs; what is in its
    files of data, which their paths do not tell; identities of its models by name, and releases.
    models: None where they are not loaded yet. beside: fields that replace or join these."""
    config = {**asdict(recipe), "out": None, "files": digests(*data)}
    config |= {**beside, **basis(models or {})}
    if models is None:
        del config["models"]
    return json.dumps(config, indent=1, default=str)


def digests(*paths: str | Path) -> dict[str, str]:
    """Digest each file, and the JSON files of each folder; a name that is neither has none."""
    found = {}
    for path in map(Path, paths):
        files = [path] if path.is_file() else sorted(path.glob("*.json"))
        found |= {str(file): digest(file.read_bytes()) for file in files}
    return found


def check_training(out: Path, config: str) -> None:
    """Raises ValueError where `out` holds another run than the one of this config, or a checkpoint
    of one. A config of models that are not loaded yet says nothing of them: it is checked before
    any compute, and the whole one before any step."""
    saved, given = out / "config.json", json.loads(config)
    if saved.exists():
        known, config = _read(saved), saved.read_text()
        if isinstance(known, dict) and "models" not in given:
            known.pop("models", None)
        if known != given:
            differs = _difference(known, given)
            raise ValueError(f"{out} holds a run with another config{differs}; {REMEDY}")
    check_folder(out, digest(config))


@contextmanager
def owned_by_all(out: Path) -> Iterator[None]:
    """Own the folder as the first of the processes that train together, for all of them."""
    with ExitStack() as stack:
        refused = ""
        if parallel.rank() == 0:
            try:
                stack.enter_context(owned(out))
            except ValueError as error:
                refused = str(error)
        if refused := parallel.of_first(refused):
            raise ValueError(refused)
        yield


@contextmanager
def joined_run(recipe: Any, rows: int, session: Session) -> Iterator[Path]:
    """Join the processes that train together; the recipe's run folder, owned for all of them. rows:
    examples of a step. Raises ValueError where they cannot be shared evenly, and for a folder that
    another process has."""
    parallel.join()
    parallel.check_rows(rows, session.gradient_accumulation)
    out = recipe.out or Path("runs") / recipe.name
    with owned_by_all(out):
        yield out


def begin_training(out: Path, config: str) -> None:
    """Make `out` the folder of this run. Raises ValueError where it cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / "config.json", config)
    except OSError as error:
        raise ValueError(
            f"{out} cannot be written ({error.strerror}); give another run folder or make room"
        ) from None


def open_run(out: Path, setting: dict) -> list[dict]:
    """Make `out` the folder of the run that `setting` describes; the whole records that an earlier
    session left there, of which the caller rewrites those that it goes on from. Raises ValueError
    for a folder that holds another run."""
    out.mkdir(parents=True, exist_ok=True)
    config, predictions = out / "config.json", out / PREDICTIONS
    known = _read(config) if config.exists() else None
    if known != json.loads(json.dumps(setting)) and (known is not None or predictions.exists()):
        raise ValueError(f"{out} holds another run{_difference(known, setting)}; {REMEDY}")
    write_whole(config, json.dumps(setting, indent=1))
    return read_rows(predictions)


def rewrite(out: Path, records: Sequence[dict]) -> None:
    """Only these records, in place of all."""
    write_whole(out / PREDICTIONS, "".join(_line(r) for r in records))


def append(out: Path, records: Sequence[dict]) -> None:
    """More records at the end."""
    with (out / PREDICTIONS).open("a", encoding="utf-8") as file:
        file.writelines(_line(r) for r in records)


def _read(config: Path) -> Any:
    try:
        return json.loads(config.read_text())
    except ValueError:
        return None


def _difference(there: Any, here: dict) -> str:
    """In words, the first field in which two configs differ."""
    before, now = (dict(_fields(config)) for config in (there, here))
    for name in (*now, *before):
        old, new = (of.get(name, "absent") for of in (before, now))
        if old != new and there:
            return f" ({name} is {old} there, {new} here)"
    return ""


def _fields(config: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Each value of a config, by the names that lead to it."""
    if not isinstance(config, Mapping):
        yield name, config
        return
    for key, value in config.items():
        yield from _fields(value, f"{name}.{key}" if name else key)


def _line(record: dict) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"
