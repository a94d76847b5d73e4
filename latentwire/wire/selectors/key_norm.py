"""Small keys stay: they are those that get the most attention (Devoto et al. 2024, "A simple and
effective L2 norm-based strategy for KV cache compression", arXiv 2406.11430)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from latentwire.lm import FrozenLM
from latentwire.wire.selectors.base import Reading, Selector, ranked


class KeyNorm(Selector):
    """Scores by the norm of the key, smallest first. Norms differ by layer and head, so that each
    head keeps as many. A family that norms keys (Qwen3, Gemma 3) leaves it little to choose by."""

    def scores(self, lm: FrozenLM, reading: Reading) -> Float[Tensor, "l b h t"]:
        norms = torch.stack([keys.float().norm(dim=-1) for keys in reading.keys])
        return ranked(-norms, reading.mask)
