"""What every task shares: what a problem is, and reading rows from a file with errors that name the
line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


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
    """What else a reward may see: ARC's training pairs."""


@runtime_checkable
class Grade(Protocol):
    """Whether an answer's text solves a problem. finished: whether the answer ended by itself; of
    one that was cut off, only what it states in the task's form may count."""

    def __call__(self, problem: Problem, text: str, finished: bool = True) -> bool: ...


@dataclass(frozen=True)
class Task:
    """Problems, and what grades their answers."""

    name: str
    problems: tuple[Problem, ...]
    grade: Grade


class DataError(ValueError):
    """A file of examples cannot be used. One line: file, line, expected, got."""


def check_ids(ids: Iterable[str], kind: str, source: str) -> None:
    """Raises DataError where two rows of a source have one id: answers are joined by it. kind: what
    a row is, in words."""
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise DataError(f"{source}: two {kind} have the id {twice[0]!r}; expected one each")


def read_text(path: Path) -> str:
    """A UTF-8 text file's contents; raises DataError where it is missing, empty or not UTF-8."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder; expected a text file") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 (byte {error.start}); expected UTF-8 text, convert it first"
        ) from None
    if not text.strip():
        raise DataError(f"{path} is empty; expected text")
    return text


def read_jsonl(path: Path, fields: dict[str, type]) -> Iterator[dict[str, Any]]:
    """Rows of a JSONL file that have these fields; raises DataError naming the first bad line."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: not JSON ({error.msg}); expected one object") from None
        if not isinstance(row, dict):
            raise DataError(f"{where}: a JSON {type(row).__name__}; expected an object")
        for name, kind in fields.items():
            if name not in row:
                raise DataError(f"{where}: no field {name!r}; expected {sorted(fields)}")
            if not isinstance(row[name], kind) or not row[name]:
                got = "empty" if isinstance(row[name], kind) else type(row[name]).__name__
                raise DataError(f"{where}: field {name!r} is {got}; expected {kind.__name__}")
        yield row
