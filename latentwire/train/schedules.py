"""Values that change while a recipe trains.

A command line writes them as a number and fields that are not as they are by default:

    --objectives.ce 1
    --objectives.reconstruction 1 end=0.3 over=2000
    --objectives.kl 0 end=1 over=2 unit=epochs gate=held,below,2.5
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from latentwire.texts import check_texts

UNITS, SHAPES = Literal["steps", "epochs"], Literal["linear", "cosine"]
SIDES = Literal["below", "above"]
Gate = tuple[str, SIDES, float] | tuple[str, SIDES, float, float]
"""A figure of the checks (metrics.jsonl names them), and what it has to pass: ("held", "below",
2.0) or ("gap", "above", 0.1); in fourth place the value on whose other side the gate closes again,
("reconstruction_cosine", "above", 0.8, 0.6). When checks are made is up to the session, and with it
when a gate opens."""


@dataclass(frozen=True)
class Schedule:
    """`start` for a while, a way from `start` to `end`, and then `end`."""

    start: float
    """Value at the first step."""
    end: float | None = None
    """Value after the last; the start's if None."""
    over: float = 0.0
    """Length of the way."""
    unit: UNITS = "steps"
    """Unit of `over` and `after`."""
    shape: SHAPES = "linear"
    """Shape of the way: a straight line, or half a cosine, level at both ends (Loshchilov and
    Hutter 2016, arXiv 1608.03983)."""
    after: float = 0.0
    """Time before the way begins."""
    gate: Gate | None = None
    """The figure that a check must find before there is anything but 0; the schedule begins with
    the step after that check, and goes on whatever later ones find, unless they close the gate."""

    def __post_init__(self) -> None:
        for name in ("over", "after"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if self.after and self.end is None:
            raise ValueError(f"after is {self.after} and end is None; expected a value to end at")
        for name, known in (("unit", UNITS), ("shape", SHAPES)):
            if getattr(self, name) not in get_args(known):
                listed = " or ".join(get_args(known))
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected {listed}")
        if self.gate is not None:
            if len(self.gate) not in (3, 4) or self.gate[1] not in get_args(SIDES):
                raise ValueError(
                    f"gate is {self.gate}; expected a figure, below or above, and a number, or two"
                )
            if len(self.gate) == 4 and _passes(self.gate[3], self.gate[1], self.gate[2]):
                raise ValueError(
                    f"gate is {self.gate}; expected it to close on the other side of what opens it"
                )

    @classmethod
    def parse(cls, words: Sequence[str]) -> Schedule:
        """The schedule that the words of a command line describe. Raises ValueError for anything
        else."""
        check_texts(words, "words")
        try:
            given: dict[str, Any] = dict(word.split("=") for word in words[1:])
            for name in given.keys() - {"unit", "shape", "gate"}:
                given[name] = float(given[name])
            if "gate" in given:
                figure, side, *limits = given["gate"].split(",")
                given["gate"] = (figure, side, *map(float, limits))
            return cls(float(words[0]), **given)
        except (IndexError, TypeError, ValueError) as error:
            raise ValueError(
                f"{' '.join(words)!r} is no schedule ({error}); expected a number, and after it "
                "any of end=X over=N unit=epochs shape=cosine after=N gate=FIGURE,below,X[,Y]"
            ) from None

    def words(self) -> list[str]:
        """The words that `parse` reads."""
        said = [f"{self.start:g}"]
        for name, value in vars(self).items():
            if name != "start" and value != getattr(Schedule, name):
                said.append(f"{name}={','.join(map(str, value)) if name == 'gate' else value}")
        return said

    @property
    def lowest(self) -> float:
        """The smallest value that it takes."""
        return min(self._ends if self.gate is None else (*self._ends, 0.0))

    @property
    def on(self) -> bool:
        """True where it is ever anything but 0."""
        return self._ends != (0, 0)

    def at(
        self, step: int, epoch: int, checks: Sequence[Mapping[str, float]] | None = None
    ) -> float:
        """The value at a step, where an epoch has so many steps. checks: what those before it
        found, each with its "step". Raises ValueError for a gate where no checks are given, or
        they have no such figure."""
        opened = self._opened(checks)
        if opened is None:
            return 0.0
        unit = epoch if self.unit == "epochs" else 1
        gone, length = step - opened - self.after * unit, self.over * unit
        start, end = self._ends
        if gone < 0:
            return start
        done = 1.0 if length <= 0 else min(1.0, gone / length)
        if self.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return start + done * (end - start)

    @property
    def _ends(self) -> tuple[float, float]:
        return self.start, self.start if self.end is None else self.end

    def _opened(self, checks: Sequence[Mapping[str, float]] | None) -> float | None:
        """The step at which the gate opened that is open; 0 where there is none to open."""
        if self.gate is None:
            return 0.0
        if checks is None:
            raise ValueError(f"gate is {self.gate}; this schedule is told of no checks: remove it")
        name, side, limit, *closing = self.gate
        if checks and not any(name in check for check in checks):
            found = ", ".join(sorted(checks[-1]))
            raise ValueError(f"gate waits for {name!r}; checks find {found}: name one of these")
        opened = None
        for check in checks:
            if name not in check:
                continue
            if opened is None and _passes(check[name], side, limit):
                opened = check["step"]
            elif opened is not None and closing and not _passes(check[name], side, closing[0]):
                opened = None
        return opened


def _passes(value: float, side: str, limit: float) -> bool:
    return value < limit if side == "below" else value > limit
