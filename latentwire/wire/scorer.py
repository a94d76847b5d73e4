"""Which tokens of a context each attention head will need: importance, predicted from the states.

A linear map per layer from the (RMS-normed) input of the block to one score per KV head, fitted in
closed form by ridge regression on log attention: how much the questions about a passage, and the
passage itself when the model repeats it, look at each of its tokens. The target is KVzip's
(Kim et al. 2025, arXiv 2505.23416); that a small map can predict it is KVzap's finding
(Jegou and Jeblick 2026).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from latentwire.lm.devices import precise
from latentwire.ridge import Ridge

FLOOR = 1e-4
"""Attention below this counts as none: the log is taken of attention + FLOOR."""


class Scorer(nn.Module):
    """Scores [l, b, h, t] of tokens from block inputs [l, b, t, d]; higher is kept first."""

    def __init__(self, layers: int, width: int, heads: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(layers, width, heads), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(layers, heads), requires_grad=False)

    def forward(self, inputs: Float[Tensor, "l b t d"]) -> Float[Tensor, "l b h t"]:
        layers = zip(inputs, self.weight, strict=True)  # of one at a time, since states are large
        scores = torch.stack([(normed(x) @ weight).transpose(1, 2) for x, weight in layers])
        return scores + self.bias[:, None, :, None]


class RidgeFit:
    """Fits a Scorer to contexts; `solve` writes the answer into it."""

    def __init__(self, layers: int, width: int, heads: int):
        self._ridge = Ridge(layers, width, heads)

    def add(self, inputs: Float[Tensor, "l t d"], attention: Float[Tensor, "l h t"]) -> None:
        """One context: block inputs, and the attention that each token received per KV head."""
        self._ridge.add(normed(inputs), (precise(attention) + FLOOR).log().transpose(1, 2))

    @torch.no_grad()
    def solve(self, scorer: Scorer, penalty: float = 1e-3) -> None:
        """Fill the scorer's weights; penalty: ridge per token, in units of a normed feature."""
        weight, bias = self._ridge.solve(penalty)
        scorer.weight.copy_(weight)
        scorer.bias.copy_(bias)


def normed(inputs: Tensor) -> Tensor:
    """States in float32 at root mean square 1, so that no layer's scale matters."""
    inputs = inputs.float()
    return inputs * torch.rsqrt(inputs.square().mean(-1, keepdim=True) + 1e-6)
