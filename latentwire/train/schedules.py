"""Weights that change while a recipe trains.

A command line writes one as a number, and after it what it moves to and in how many steps:

    --objectives.ce 1
    --objectives.reconstruction 1 end=0.3 over=2000
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latentwire.texts import check_texts


@dataclass(frozen=True)
class Schedule:
    """A straight way from `start` to `end`, and then `end`."""

    start: float
    """Value at the first step."""
    end: float | None = None
    """Value after the last step of the way; the start's if None."""
    over: float = 0.0
    """Length of the way, in steps."""

    def __post_init__(self) -> None:
        if self.over < 0:
            raise ValueError(f"over is {self.over}; expected 0 or more")

    @classmethod
    def parse(cls, words: Sequence[str]) -> Schedule:
        """The schedule that the words of a command line describe. Raises ValueError for anything
        else."""
        check_texts(words, "words")
        try:
            given = dict(word.split("=") for word in words[1:])
            return cls(float(words[0]), **{name: float(value) for name, value in given.items()})
        except (IndexError, TypeError, ValueError) as error:
            raise ValueError(
                f"{' '.join(words)!r} is no schedule ({error}); expected a number, and after it "
                "any of end=X over=STEPS"
            ) from None

    def words(self) -> list[str]:
        """The words that `parse` reads."""
        moved = {} if self.end is None else {"end": self.end, "over": self.over}
        return [f"{self.start:g}", *(f"{name}={value}" for name, value in moved.items())]

    @property
    def lowest(self) -> float:
        """The smallest value that it takes."""
        return min(self._ends)

    @property
    def on(self) -> bool:
        """True where it is ever anything but 0."""
        return self._ends != (0, 0)

    def at(self, step: int) -> float:
        """The value at a step."""
        start, end = self._ends
        done = 1.0 if self.over == 0 else min(1.0, step / self.over)
        return start + done * (end - start)

    @property
    def _ends(self) -> tuple[float, float]:
        return self.start, self.start if self.end is None else self.end
