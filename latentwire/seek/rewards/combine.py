"""A weighted sum of rewards: accuracy, quality and structure of one answer, say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from latentwire.seek.rewards.base import Attempt, Rating, Reward, failed, rate


@dataclass(frozen=True)
class Combine:
    """sum of weight * reward; `parts` names each (reward, weight >= 0)."""

    parts: dict[str, tuple[Reward, float]]

    def __post_init__(self):
        if not self.parts:
            raise ValueError("Combine has no rewards; expected at least one")
        for name, (_, weight) in self.parts.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"weight of {name!r} is {weight}; expected 0 or more (see Negate)")

    @property
    def low(self) -> float:
        return sum(weight * reward.low for reward, weight in self.parts.values())

    @property
    def high(self) -> float:
        return sum(weight * reward.high for reward, weight in self.parts.values())

    def __call__(self, attempts: Sequence[Attempt]) -> list[Rating]:
        columns = {name: rate(reward, attempts) for name, (reward, _) in self.parts.items()}
        return [
            self._sum({n: ratings[i] for n, ratings in columns.items()})
            for i in range(len(attempts))
        ]

    def _sum(self, ratings: dict[str, Rating]) -> Rating:
        for name, rating in ratings.items():
            if rating.failure is not None:
                return failed(f"{name}: {rating.failure}")
        # Rounding must not carry a sum past its own bounds.
        total = sum(self.parts[name][1] * rating.value for name, rating in ratings.items())
        parts = {name: rating.value for name, rating in ratings.items()}
        for name, rating in ratings.items():
            parts |= {f"{name}.{part}": value for part, value in rating.parts.items()}
        tokens = sum(rating.tokens for rating in ratings.values())
        return Rating(min(max(total, self.low), self.high), parts, tokens)
