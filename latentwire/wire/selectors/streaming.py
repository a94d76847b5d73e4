"""The first tokens and the latest stay (Xiao et al. 2023, "Efficient streaming language models with
attention sinks", arXiv 2309.17453); of a text that is longer than a window, those of each window.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from latentwire.lm import FrozenLM
from latentwire.wire.selectors.base import Reading, Selector

SINKS = 4
"""Tokens at the beginning that stay before any other."""


class Streaming(Selector):
    """Scores by position, the same in all heads."""

    def scores(self, lm: FrozenLM, reading: Reading) -> Float[Tensor, "l b h t"]:
        width = reading.mask.shape[1]
        place = torch.arange(width, device=lm.device) - (~reading.mask).sum(-1, keepdim=True)
        score = torch.where(place < SINKS, 2 * width - place, place).float()
        return score[None, :, None].expand(len(lm.blocks), -1, lm.kv_shape[0], -1)
