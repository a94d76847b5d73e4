"""The pass that a selector looks at, and the scores that it gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentwire.lm import FrozenLM, Prompt, States


@dataclass(frozen=True)
class Reading:
    """A reader's one pass over windows of texts, one a row, behind the head of every prompt; rows
    are padded on the left."""

    ids: tuple[Int[Tensor, " _"], ...]
    prompt: Prompt
    states: States

    @property
    def mask(self) -> Bool[Tensor, "b t"]:
        """Real tokens."""
        return self.prompt.mask

    @property
    def keys(self) -> list[Float[Tensor, "b h t e"]]:
        """Keys of the windows' tokens in each layer, rotated to where they stand."""
        return [k[:, :, -self.mask.shape[1] :] for k in self.states.prefix.keys]

    @property
    def values(self) -> list[Float[Tensor, "b h t e"]]:
        """Values of the windows' tokens in each layer."""
        return [v[:, :, -self.mask.shape[1] :] for v in self.states.prefix.values]


class Selector(ABC):
    """Scores the tokens of a text for each KV head; those with the highest scores stay as slots.
    All heads of all layers compete for one number of slots, so scores must compare across heads;
    `ranked` makes such of scores that do not."""

    @abstractmethod
    def scores(self, lm: FrozenLM, reading: Reading) -> Float[Tensor, "l b h t"]:
        """Finite scores; those of padding count for nothing. A row's must not depend on the rows
        beside it."""


def ranked(scores: Float[Tensor, "l b h t"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "l b h t"]:
    """Scores in the same order, 0 for the best of each head, -1 for the next: each head then keeps
    as many slots as any other."""
    scores = scores.masked_fill(~mask[:, None], -torch.inf)
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return -order.argsort(dim=-1).float()
