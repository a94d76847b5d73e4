"""Tokens stay whose importance a trained linear map predicts from the reader's states: what ships.

KVzip's target (Kim et al. 2025, arXiv 2505.23416), without its second pass over the text; that a
small map can predict it is KVzap's finding (Jegou and Jeblick 2026). scorer_fit.py fits it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from latentwire.lm import FrozenLM
from latentwire.wire.selectors.base import Reading, Selector


class Scorer(nn.Module, Selector):
    """Scores [l, b, h, t] of tokens from block inputs [l, b, t, d], a linear map a layer."""

    def __init__(self, layers: int, width: int, heads: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(layers, width, heads), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(layers, heads), requires_grad=False)

    def forward(self, inputs: Float[Tensor, "l b t d"]) -> Float[Tensor, "l b h t"]:
        layers = zip(inputs, self.weight, strict=True)  # of one at a time, since states are large
        scores = torch.stack([(normed(x) @ weight).transpose(1, 2) for x, weight in layers])
        return scores + self.bias[:, None, :, None]

    def scores(self, lm: FrozenLM, reading: Reading) -> Float[Tensor, "l b h t"]:
        return self(reading.states.inputs)


def normed(inputs: Tensor) -> Tensor:
    """States in float32 at root mean square 1, so that no layer's scale matters."""
    inputs = inputs.float()
    return inputs * torch.rsqrt(inputs.square().mean(-1, keepdim=True) + 1e-6)
