"""A run folder: begun, gone on with, never mixed with another. Of a training, or of records."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from latentwire.files import digest, read_rows, write_whole
from latentwire.train.checkpoints import check_folder

PREDICTIONS = "predictions.jsonl"


def training_config(recipe: Any, data: Sequence[str | Path], **beside: Any) -> str:
    """All that a training follows from, as JSON: its recipe, but for where it runs, and what is in
    its files of data, which their paths do not tell. beside: fields that replace or join these."""
    files = {str(path): digest(Path(path).read_bytes()) for path in data if Path(path).is_file()}
    config = {**asdict(recipe), "out": None, "files": files, **beside}
    return json.dumps(config, indent=1, default=str)


def check_training(out: Path, config: str) -> None:
    """Raises ValueError where `out` holds another run than the one of this config, or a checkpoint
    of one; to be called before any compute."""
    saved = out / "config.json"
    if saved.exists() and saved.read_text() != config:
        differs = _difference(_read(saved), json.loads(config))
        raise ValueError(
            f"{out} holds a run with another config{differs}; give another run folder or remove it"
        )
    check_folder(out, digest(config))


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
        differs = _difference(known, setting)
        raise ValueError(f"{out} holds another run{differs}; give another --run or remove it")
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
