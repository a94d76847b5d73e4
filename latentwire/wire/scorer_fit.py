"""Fits a Scorer in closed form: ridge regression on log attention, how much the questions about a
passage, and the passage itself when the model repeats it, look at each of its tokens
(importance.py)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from latentwire.lm.devices import precise
from latentwire.ridge import Ridge
from latentwire.wire.selectors.scorer import Scorer, normed

FLOOR = 1e-4
"""Attention below this counts as none: the log is taken of attention + FLOOR."""


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
