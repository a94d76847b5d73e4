"""How sure the LM is of an answer, by the probabilities of its top tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from latentwire.lm import FrozenLM, Prompt
from latentwire.seek.answers import prompt_ids
from latentwire.seek.rewards.base import Attempt, Rating, failed


def confidence(logits: Float[Tensor, "*n v"], k: int) -> Float[Tensor, "*n"]:
    """-k times the geometric mean of the k largest probabilities, in [-1, 0]; 0 where one token has
    it all, -1 where k share it equally.

    It rises with the token confidence -mean(log p) over the top k that LTPO (arXiv 2510.04182)
    takes as reward, which has no upper bound.
    """
    top = logits.float().log_softmax(-1).topk(k, -1).values
    return -(k * top.mean(-1).exp()).clamp(max=1.0)


@dataclass(frozen=True)
class Confidence:
    """Mean `confidence` over the answer's tokens, given the prompt."""

    lm: FrozenLM
    k: int = 10
    """Top tokens that are looked at."""
    low: float = -1.0
    high: float = 0.0

    def __post_init__(self):
        if self.k < 2:
            raise ValueError(f"k is {self.k}; expected at least 2 tokens to compare")

    @torch.no_grad()
    def __call__(self, attempts: Sequence[Attempt]) -> list[Rating]:
        return [self._one(a) for a in attempts]

    def _one(self, attempt: Attempt) -> Rating:
        if len(attempt.ids) == 0:
            return failed("an answer without tokens has no confidence")
        prompt = prompt_ids(self.lm, attempt.problem)
        logits = self.lm.logits(Prompt.from_ids(self.lm, [prompt]), attempt.ids[None])[0]
        return Rating(float(confidence(logits, self.k).mean()), {}, len(prompt) + len(attempt.ids))
