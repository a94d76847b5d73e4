"""Shared by all tasks: the problem, and reading rows from a file with errors that name the line."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISCHR
from typing import Any, BinaryIO, Protocol, runtime_checkable

from latentwire.reading import InputError, parse_json

BOM = "\ufeff"
"""The mark that some editors begin a file in UTF-8 with."""


@dataclass(frozen=True)
class Problem:
    """One problem, as a model and a reward may see it.

    What only grading may know (ARC's test outputs) is not in here: a task's `grade` holds it.
    """

    id: str
    question: str
    """The bare question, as a verifier quotes it."""
    prompt: str
    """The user turn that the model gets: the question in the task's format."""
    gold: str | None = None
    """The right answer where there is one; only grading and the oracle reward `Exact` read it."""
    shown: Any = None
    """More that a reward may see: ARC's training pairs."""


@runtime_checkable
class Grade(Protocol):
    """Says whether an answer's text solves a problem. finished: whether the answer ended by itself;
    of one that was cut off, only what it states in the task's form may count."""

    def __call__(self, problem: Problem, text: str, finished: bool = True) -> bool: ...


@dataclass(frozen=True)
class Task:
    """Problems, and what grades their answers."""

    name: str
    problems: tuple[Problem, ...]
    grade: Grade


class DataError(InputError):
    """A file of examples cannot be used. One line: file, line, expected, got."""


LINE_BYTES = 1 << 21
"""Longest line of a JSONL file: half a million tokens, more than any reader's window at 4x."""


def check_ids(ids: Iterable[str], kind: str, source: str) -> None:
    """Raises DataError where two rows of a source have one id: answers are joined by it. kind: what
    a row is, in words."""
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise DataError(f"{source}: two {kind} have the id {twice[0]!r}; expected one each")


def load_hub(name: str, path: str, config: str | None, split: str) -> Any:
    """A split of a data set on the Hugging Face hub. name: as the user gave it. Raises DataError
    where `datasets` is not installed or does not load it."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise DataError(
            f"{name} needs datasets: pip install datasets, or give a FILE.jsonl instead"
        ) from None
    try:
        return load_dataset(path, config, split=split)
    except Exception as error:  # datasets raises many kinds; a user needs the reason
        raise DataError(f"{name} ({path}): {error}; give a FILE.jsonl instead") from None


def read_text(path: Path) -> str:
    """A UTF-8 text file's contents; raises DataError where it is missing, empty or not UTF-8."""
    with _opened(path) as file:
        data = file.read()
    text = _decoded(data, path).removeprefix(BOM)
    if not text.strip():
        raise DataError(f"{path} is empty; expected text")
    return text


def read_jsonl(path: Path, fields: dict[str, type]) -> Iterator[dict[str, Any]]:
    """Rows of a JSONL file that have these fields; raises DataError naming the first bad line."""
    for _, row in numbered_rows(path, fields):
        yield row


def numbered_rows(path: Path, fields: dict[str, type]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of read_jsonl, each with its line's number. One line is held at a time."""
    empty, start = True, 0
    with _opened(path) as file:
        for number, data in enumerate(iter(lambda: file.readline(LINE_BYTES + 1), b""), 1):
            where = f"{path}, line {number}"
            if len(data) > LINE_BYTES:
                raise DataError(
                    f"{where}: more than {LINE_BYTES} bytes; expected one object in at most as "
                    "many: cut its text into several rows"
                )
            line, start = _decoded(data, path, start), start + len(data)
            line = line.removeprefix(BOM) if number == 1 else line
            if line.strip():
                empty = False
                yield number, _row(line, fields, where)
    if empty:
        raise DataError(f"{path} is empty; expected text")


def _row(line: str, fields: dict[str, type], where: str) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}); expected one object") from None
    check_row(row, fields, where)
    return row


def read_array(path: Path) -> list[Any] | None:
    """The items of a .json file that is one JSON array; None for any other, such as of lines."""
    if path.suffix != ".json" or not (text := read_text(path)).lstrip().startswith("["):
        return None
    try:
        return parse_json(text)
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); expected one array of rows") from None


def check_row(row: Any, fields: dict[str, type], where: str) -> None:
    """Raises DataError for what is no object, or lacks one of these fields."""
    if not isinstance(row, dict):
        raise DataError(f"{where}: a JSON {type(row).__name__}; expected an object")
    for name, kind in fields.items():
        if name not in row:
            raise DataError(f"{where}: no field {name!r}; expected {sorted(fields)}")
        if not isinstance(row[name], kind) or not row[name]:
            got = "empty" if isinstance(row[name], kind) else type(row[name]).__name__
            raise DataError(f"{where}: field {name!r} is {got}; expected {kind.__name__}")


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A file or a pipe. Raises DataError where there is none, and for a device, which may never
    end."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder; expected a text file") from None
    with file:
        if S_ISCHR(os.fstat(file.fileno()).st_mode) and not file.isatty():
            raise DataError(f"{path} is a device; expected a text file")
        yield file


def _decoded(data: bytes, path: Path, start: int = 0) -> str:
    """start: where in the file the bytes stand."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 (byte {start + error.start}); expected UTF-8 text, convert it "
            "first"
        ) from None
