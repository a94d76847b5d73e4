"""The LM's confidence in an answer, by the probabilities of its top tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from latentwire.lm import FrozenLM, Prompt, log_softmax, pad_right
from latentwire.seek.answers import prompt_ids
from latentwire.seek.rewards.base import Attempt, Rating, failed

ROWS = 8
"""Answers that are rated in one pass; logits of all their tokens are held at once."""


def confidence(logits: Float[Tensor, "*n v"], k: int) -> Float[Tensor, "*n"]:
    """-k times the geometric mean of the k largest probabilities, in [-1, 0]; 0 where one token has
    it all, -1 where k share it equally.

    It rises with the token confidence -mean(log p) over the top k that LTPO (arXiv 2510.04182)
    takes as reward, which has no upper bound.
    """
    top = log_softmax(logits).topk(k, -1).values
    return -(k * top.mean(-1).exp()).clamp(max=1.0)


@dataclass(frozen=True)
class Confidence:
    """Mean `confidence` over the answer's tokens, given the prompt."""

    lm: FrozenLM
    k: int = 10
    """Top tokens that are looked at."""
    low: float = -1.0
    high: float = 0.0
    threshold: float = 0.0
    """No confidence ends a search: first answers are near the top of the range, right or wrong."""

    def __post_init__(self):
        if self.k < 2:
            raise ValueError(f"k is {self.k}; expected at least 2 tokens to compare")

    @torch.no_grad()
    def __call__(self, attempts: Sequence[Attempt]) -> list[Rating]:
        parts = [attempts[start : start + ROWS] for start in range(0, len(attempts), ROWS)]
        return [rating for part in parts for rating in self._rated(part)]

    def _rated(self, attempts: Sequence[Attempt]) -> list[Rating]:
        answered = [a for a in attempts if len(a.ids)]
        ratings = {}
        if answered:
            prompts = [prompt_ids(self.lm, a.problem) for a in answered]
            ids, mask = pad_right([a.ids for a in answered])
            logits = self.lm.logits(Prompt.from_ids(self.lm, prompts), ids, mask)
            means = (confidence(logits, self.k) * mask).sum(1) / mask.sum(1)
            for a, prompt, mean in zip(answered, prompts, means.tolist(), strict=True):
                ratings[id(a)] = Rating(mean, {}, len(prompt) + len(a.ids))
        empty = failed("an answer without tokens has no confidence")
        return [ratings.get(id(a), empty) for a in attempts]
