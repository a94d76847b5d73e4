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

FLOOR = 1e-4
"""Attention below this counts as none: the log is taken of attention + FLOOR."""


class Scorer(nn.Module):
    """Scores [l, b, h, t] of tokens from block inputs [l, b, t, d]; higher is kept first."""

    def __init__(self, layers: int, width: int, heads: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(layers, width, heads), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(layers, heads), requires_grad=False)

    def forward(self, inputs: Float[Tensor, "l b t d"]) -> Float[Tensor, "l b h t"]:
        scores = torch.einsum("lbtd,ldh->lbht", normed(inputs), self.weight)
        return scores + self.bias[:, None, :, None]


class RidgeFit:
    """Running sums of a ridge regression per layer; `solve` writes the answer into a Scorer."""

    def __init__(self, layers: int, width: int, heads: int):
        self.gram = torch.zeros(layers, width + 1, width + 1, dtype=torch.float64)
        self.moment = torch.zeros(layers, width + 1, heads, dtype=torch.float64)
        self.tokens = 0

    def add(self, inputs: Float[Tensor, "l t d"], attention: Float[Tensor, "l h t"]) -> None:
        """One context: block inputs, and the attention that each token received per KV head."""
        features = normed(inputs).double().cpu()
        features = torch.cat([features, torch.ones_like(features[..., :1])], -1)
        targets = (attention.double().cpu() + FLOOR).log().transpose(1, 2)
        self.gram += features.transpose(1, 2) @ features
        self.moment += features.transpose(1, 2) @ targets
        self.tokens += inputs.shape[1]

    @torch.no_grad()
    def solve(self, scorer: Scorer, penalty: float = 1e-3) -> None:
        """Fill the scorer's weights; penalty: ridge per token, in units of a normed feature."""
        if self.tokens == 0:
            raise ValueError("no contexts were added; expected at least one before solve")
        ridge = penalty * self.tokens * torch.eye(self.gram.shape[-1], dtype=torch.float64)
        # One layer at a time: the batched solver of torch 2.13 fails on CPU at this size.
        solved = [
            torch.linalg.solve(g + ridge, m) for g, m in zip(self.gram, self.moment, strict=True)
        ]
        weights = torch.stack(solved).to(scorer.weight)
        scorer.weight.copy_(weights[:, :-1])
        scorer.bias.copy_(weights[:, -1])


def normed(inputs: Tensor) -> Tensor:
    """States in float32 at root mean square 1, so that no layer's scale matters."""
    inputs = inputs.float()
    return inputs * torch.rsqrt(inputs.square().mean(-1, keepdim=True) + 1e-6)
