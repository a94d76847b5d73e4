"""The base of all injectors, and the batch of latents that they are given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from latentwire.lm import FrozenLM, KVPrefix

Calibration = Literal["regression", "none", "rms", "channel", "batch"]
"""The ways in which input embeddings begin (embeddings.py)."""


@dataclass(frozen=True)
class LatentBatch:
    """Latents as one reader gets them, rows padded on the left, and where they stand."""

    values: Float[Tensor, "b m c"]
    """Values of the codes themselves."""
    states: Float[Tensor, "b m w"]
    """States that the wire's layers made of them."""
    mask: Bool[Tensor, "b m"]
    spans: Int[Tensor, " b"]
    """Positions that each row takes up."""

    @property
    def positions(self) -> Int[Tensor, "b m"]:
        """Centre of each slot's share of the span, from 0; 0 in padding."""
        place = (self.mask.long().cumsum(1) - 1).clamp(min=0)
        counts = self.mask.sum(1, keepdim=True)
        return ((place + 0.5) * (self.spans[:, None] / counts)).long() * self.mask


class Injector(nn.Module, ABC):
    """Slots to a cache of one reader."""

    def __init__(self, lm: FrozenLM, channels: int, width: int, calibration: Calibration):
        """channels: of a code; width: of a state. calibration: of input embeddings, where it makes
        them."""
        super().__init__()

    @abstractmethod
    def forward(self, lm: FrozenLM, head: KVPrefix, slots: LatentBatch) -> KVPrefix:
        """The reader's cache: the head (one row), and the slots behind it or as memories."""

    def calibrate(
        self,
        lm: FrozenLM,
        texts: Sequence[str],
        values: Sequence[Float[Tensor, "_ c"]],
        units: Sequence[float],
    ) -> None:
        """Measure on texts what the reader's own values are like, so that slots begin there.

        values: each text's latents; units: how many latents a text is long, its last one counted
        as the part that it has.
        """
