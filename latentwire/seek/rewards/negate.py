"""Turns a reward of opposite polarity (a loss, an error count) round; nothing else does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from latentwire.seek.rewards.base import Attempt, Rating, Reward, rate


@dataclass(frozen=True)
class Negate:
    """-reward, in the range turned round."""

    reward: Reward

    @property
    def low(self) -> float:
        return -self.reward.high

    @property
    def high(self) -> float:
        return -self.reward.low

    def __call__(self, attempts: Sequence[Attempt]) -> list[Rating]:
        return [replace(r, value=-r.value) for r in rate(self.reward, attempts)]
