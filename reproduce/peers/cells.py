"""The cells of the comparison with kvpress, the files of its inputs and answers, and how a run is
resumed; the standard library alone, since two environments import it.

A cell is a data set, with or without the soft prompt, at some ratios. Cells are in the order of
their weight, so that a run that is stopped has the most important ones.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

READERS = ("smollm2-135m", "gemma3-270m")
BATCH = 12
"""Passages whose questions are answered together."""


@dataclass(frozen=True)
class Cell:
    """One part of the comparison."""

    data: str
    """Name of the inputs (inputs.py)."""
    soft: bool
    """True where the soft prompt stands between context and question, for every row."""
    ratios: tuple[int, ...]
    """Tokens in per slot out; 1 stands for the text itself."""
    questions: int
    """The first of the data set's; whole passages."""
    whole: int | None = None
    """The ratio at which the rows of SOME are there too."""


CELLS = {
    "tune": Cell("tune", True, (1, 4), 40),
    "squad-4x-8x": Cell("squad_dev", True, (1, 4, 8), 200, whole=4),
    "squad-2x-16x": Cell("squad_dev", True, (2, 16), 100),
    "quoref": Cell("quoref", True, (1, 4), 100),
    "plain": Cell("squad_dev", False, (1, 4), 100),
    "needles": Cell("needles", True, (1, 4), 60),
    "long": Cell("long", True, (1, 4), 60),
}
TUNE = "tune"
"""The cell of training questions on which the settings of presses were chosen."""
SOME = {"kvpress": ("random",), "latentwire": ("attention", "key_norm", "random", "streaming")}
"""Rows that are floors, or another package's row again, asked in one place only."""


def passages_of(folder: Path, reader: str, cell: Cell) -> list[dict]:
    """Passages of a cell's inputs, up to its number of questions."""
    chosen, count = [], 0
    for line in (folder / "inputs" / reader / f"{cell.data}.jsonl").open():
        passage = json.loads(line)
        count += len(passage["questions"])
        if count > cell.questions:
            break
        chosen.append(passage)
    return chosen


def rows_at(cell: Cell, ratio: int, package: str, text: str, rows: Iterable[str]) -> list[str]:
    """The rows of one ratio of a cell. text: that of the text itself."""
    if ratio == 1:
        return [text]
    return [row for row in rows if ratio == cell.whole or row not in SOME[package]]


class Records:
    """A JSONL file of answers, one line for each passage, row and ratio; what it has is not asked
    again."""

    KEY = ("data", "reader", "soft", "ratio", "row", "passage")

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        known = read_records(path)
        self.done = {tuple(record[field] for field in self.KEY) for record in known}

    def missing(self, cell: Cell, reader: str, ratio: int, row: str, batch: list[dict]) -> bool:
        """True where a batch still has a passage without an answer."""
        begun = (cell.data, reader, cell.soft, ratio, row)
        return any((*begun, passage["passage"]) not in self.done for passage in batch)

    def add(self, cell: Cell, reader: str, ratio: int, row: str, answered: list[dict]) -> None:
        """Append the answers of a batch. answered: "passage" and what was measured of each."""
        begun = dict(zip(self.KEY, (cell.data, reader, cell.soft, ratio, row), strict=False))
        lines = [{**begun, **record} for record in answered]
        lines = [line for line in lines if tuple(line[f] for f in self.KEY) not in self.done]
        with self.path.open("a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
        self.done |= {tuple(line[field] for field in self.KEY) for line in lines}


def read_records(path: Path) -> list[dict]:
    """Records of a file; a last line that was cut off is dropped."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    if lines[-1]:
        path.write_text("".join(line + "\n" for line in lines[:-1]))
    return [json.loads(line) for line in lines[:-1]]


def batches(passages: list[dict]) -> list[list[dict]]:
    """Passages that are answered together, in order; few where contexts are long."""
    size = max(1, min(BATCH, 6000 // max(len(passage["ids"]) for passage in passages)))
    return [passages[start : start + size] for start in range(0, len(passages), size)]


def timed(parts: list, name: str) -> Iterator:
    """Items of a list, with the CPU seconds so far printed after each."""
    begin = time.process_time()
    for count, part in enumerate(parts, 1):
        yield part
        spent = time.process_time() - begin
        print(f"{name}: {count} of {len(parts)}, {spent:.0f} s of CPU time", flush=True)
