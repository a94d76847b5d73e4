"""Values that change while a recipe trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """A straight line from `start` to `end`, and then `end`."""

    start: float
    """Value at the first step."""
    end: float | None = None
    """Value after the last; the start's if None."""
    over: float = 0.0
    """How long the way takes."""
    unit: Literal["steps", "epochs"] = "steps"
    """What `over` is measured in."""

    @property
    def lowest(self) -> float:
        """The smallest value that it takes."""
        return self.start if self.end is None else min(self.start, self.end)

    def at(self, step: int, epoch: int) -> float:
        """The value at a step, where an epoch has so many steps."""
        if self.end is None:
            return self.start
        length = self.over * (epoch if self.unit == "epochs" else 1)
        done = 1.0 if length <= 0 else min(1.0, step / length)
        return self.start + done * (self.end - self.start)
