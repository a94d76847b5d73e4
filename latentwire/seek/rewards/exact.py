"""The perfect sparse reward (PSRM of LatentSeek): whether the answer is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latentwire.seek.rewards.base import Attempt, Rating, failed
from latentwire.tasks.base import Grade


@dataclass(frozen=True)
class Exact:
    """0 if an answer is right, -1 otherwise, by a task's `grade`.

    An oracle: it looks at the gold answer, and a search that stops when it says yes gets as many
    guesses as it has steps. Compare its accuracy with pass@K at the same K, never with a single
    answer's. A problem without a gold answer has no rating."""

    grade: Grade
    """`Task.grade` of the task that the problems are from."""
    low: float = -1.0
    high: float = 0.0

    def __call__(self, attempts: Sequence[Attempt]) -> list[Rating]:
        return [self._rating(attempt) for attempt in attempts]

    def _rating(self, attempt: Attempt) -> Rating:
        if attempt.problem.gold is None:
            return failed(f"problem {attempt.problem.id!r} has no gold answer; Exact needs one")
        right = self.grade(attempt.problem, attempt.text, attempt.finished)
        return Rating(self.high if right else self.low)
