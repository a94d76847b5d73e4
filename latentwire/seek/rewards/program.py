"""Rates the program in an answer by what the problem's training pairs show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from latentwire.seek.rewards.base import Attempt, Rating, failed
from latentwire.tasks.arc import Pair, find_program
from latentwire.tasks.sandbox import Failure, Grid, SandboxError, run_program

PARTS = ("exact", "shape", "colour", "cells")


@dataclass(frozen=True)
class Program:
    """The share of pairs that the program gets exactly right, less 1; and for each other pair part
    of what a right one counts: (shape + colour + cells) / 3, of `compare`, over the number of
    pairs. So all the pairs that are nearly right never make up for one that is right.

    parts: the means of `compare` over pairs, and `program`: 1, or 0 where the answer has none (the
    value is then `low`). A pair for which the program gives no grid counts 0.
    """

    seconds: float = 2.0
    """CPU time for all pairs of one problem together."""
    megabytes: int = 512
    """Memory that a program may take."""
    low: float = -1.0
    high: float = 0.0

    def __call__(self, attempts: Sequence[Attempt]) -> list[Rating]:
        return [self._one(a) for a in attempts]

    def _one(self, attempt: Attempt) -> Rating:
        pairs = attempt.problem.shown
        if not pairs or not all(isinstance(pair, Pair) for pair in pairs):
            return failed(f"problem {attempt.problem.id!r} shows no pairs to run a program on")
        code = find_program(attempt.text)
        if code is None:
            return Rating(self.low, dict.fromkeys((*PARTS, "program"), 0.0))
        try:
            results = run_program(code, [p.input for p in pairs], self.seconds, self.megabytes)
        except SandboxError as error:
            return failed(str(error))
        rows = [compare(got, pair.output) for got, pair in zip(results, pairs, strict=True)]
        near = [(r["shape"] + r["colour"] + r["cells"]) / 3 for r in rows if not r["exact"]]
        right = len(rows) - len(near)
        value = (right + sum(near) / len(rows)) / len(rows) - 1
        parts = {name: sum(r[name] for r in rows) / len(rows) for name in PARTS}
        return Rating(value, {**parts, "program": 1.0})


def compare(got: Grid | Failure, want: Grid) -> dict[str, float]:
    """The shares of a grid that are right, each 0 to 1. exact: all of it. shape: rows and columns.
    colour: cells that find one of their colour in the other grid, wherever, over the cells of the
    larger. cells: those of the right colour in the right place, over all places that either has
    when they are laid on each other at the top left, in a frame that holds both."""
    if isinstance(got, Failure):
        return dict.fromkeys(PARTS, 0.0)
    counts = [Counter(chain(*grid)) for grid in (got, want)]
    frame = max(len(got), len(want)) * max(len(got[0]), len(want[0]))
    same = sum(
        a == b
        for got_row, want_row in zip(got, want, strict=False)
        for a, b in zip(got_row, want_row, strict=False)
    )
    return {
        "exact": float(got == want),
        "shape": float(len(got) == len(want) and len(got[0]) == len(want[0])),
        "colour": (counts[0] & counts[1]).total() / max(c.total() for c in counts),
        "cells": same / frame,
    }
