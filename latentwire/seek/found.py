"""The outcome of a search, of whatever strategy: every answer on the way, and the best of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from latentwire.lm import FrozenLM
from latentwire.seek.rewards.base import Reward
from latentwire.tasks.base import Problem


@dataclass(frozen=True)
class Step:
    """One answer of a search. step: 0 for the first answer; reward: None where it failed; flipped:
    span tokens that differ from the first answer's; finished: whether it ended by itself, not by
    its budget; seconds: its share of the batch's time; tokens: positions that LMs ran over for it,
    the reward's included (0 where the same span was tried before)."""

    step: int
    reward: float | None
    parts: dict[str, float]
    flipped: int
    text: str
    finished: bool
    seconds: float
    tokens: int


@dataclass(frozen=True)
class Found:
    """The outcome of a search: the answer to give, its reward, and every answer on the way.

    span: the answer tokens that were searched. note: where that is not the region asked for.
    failure: why the search could not start or go on; what it had until then is kept. ids: token ids
    of each answer of the trace.
    """

    problem: Problem
    text: str
    reward: float | None
    trace: tuple[Step, ...]
    span: tuple[int, int] | None = None
    note: str = ""
    failure: str | None = None
    ids: tuple[Int[Tensor, " _"], ...] = ()

    @property
    def tokens(self) -> int:
        """Positions that LMs ran over for this problem."""
        return sum(step.tokens for step in self.trace)

    @property
    def first_reward(self) -> float | None:
        """The reward of the first answer; None where it has none."""
        return self.trace[0].reward if self.trace else None


def threshold_of(reward: Reward, given: float | None = None) -> float:
    """The reward above which a search stops: the one given, the reward's own `threshold`, or four
    fifths up its range."""
    low, high = reward.low, reward.high
    if given is not None and not low <= given <= high:
        raise ValueError(f"threshold is {given}; expected {low} to {high}, the reward's range")
    own = getattr(reward, "threshold", high - 0.2 * (high - low))
    return own if given is None else given


def best_of(trace: Sequence[Step]) -> Step | None:
    """The first of the answers with the highest reward; None where none has one."""
    return max((s for s in trace if s.reward is not None), key=value_of, default=None)


def value_of(step: Step) -> float:
    """The reward of a step, below all others where it has none."""
    return -math.inf if step.reward is None else step.reward


def no_room(lm: FrozenLM, problem: Problem, prompt: int, new: int) -> Found:
    """A search that could not start: prompt and answer budget do not fit the context length."""
    why = f"a prompt of {prompt} tokens and {new} new ones do not fit {lm.name}'s window of "
    return Found(problem, "", None, (), failure=f"{why}{lm.context_length}")
