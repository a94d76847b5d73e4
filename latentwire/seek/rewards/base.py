"""A reward is a number for an answer, higher is better, in a range that it states.

Rewards steer a search and are not losses: nothing flows through them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from jaxtyping import Int
from torch import Tensor

from latentwire.lm import FrozenLM
from latentwire.tasks.base import Problem


@dataclass(frozen=True)
class Attempt:
    """An answer to be rated: its token ids [n], stop token included where there is one, its text,
    and whether it ended by itself or was cut off by its budget."""

    problem: Problem
    ids: Int[Tensor, " n"]
    text: str
    finished: bool = True


def attempt_of(lm: FrozenLM, problem: Problem, ids: Int[Tensor, " n"]) -> Attempt:
    """An answer's token ids as what a reward rates."""
    finished = len(ids) > 0 and int(ids[-1]) in lm.stop_ids
    return Attempt(problem, ids, lm.detokenize(ids), finished)


@dataclass(frozen=True)
class Rating:
    """value: the reward. parts: what it is made of, by name. tokens: positions that an LM ran over
    to find it. failure: why there is no value (a problem without a gold answer); the search gives
    up on this problem and goes on with the others."""

    value: float
    parts: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    failure: str | None = None


@runtime_checkable
class Reward(Protocol):
    """Rates a batch of attempts, one Rating for each, in order. `low` and `high` bound the value:
    at `high` an answer cannot be better. One may have a `threshold`, above which a search stops
    where its config names none."""

    @property
    def low(self) -> float: ...

    @property
    def high(self) -> float: ...

    def __call__(self, attempts: Sequence[Attempt]) -> list[Rating]: ...


def failed(why: str) -> Rating:
    """A Rating without a value."""
    return Rating(math.nan, failure=why)


def rate(reward: Reward, attempts: Sequence[Attempt]) -> list[Rating]:
    """The reward's ratings; one outside of its stated range, or NaN, becomes a failure."""
    ratings = reward(attempts) if attempts else []
    if len(ratings) != len(attempts):
        raise ValueError(f"{reward} gave {len(ratings)} ratings for {len(attempts)} attempts")
    return [_checked(reward, rating) for rating in ratings]


def _checked(reward: Reward, rating: Rating) -> Rating:
    if rating.failure is None and not reward.low <= rating.value <= reward.high:
        name = type(reward).__name__
        why = f"{name} gave {rating.value}; expected {reward.low} to {reward.high}"
        return replace(rating, value=math.nan, failure=why)
    return rating
