"""Ridge regression, in closed form: what a linear map can learn needs no steps."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from latentwire.lm.devices import precise


class Ridge:
    """Running sums of n regressions at once; `solve` gives their maps and offsets. The sums, about
    8 n f (f + y) bytes, lie on the device of the rows, or on the CPU if that has no float64."""

    def __init__(self, n: int, features: int, targets: int):
        # Zeros are made with the first rows, whose device is not known before.
        self.gram = torch.empty(n, features + 1, features + 1, dtype=torch.float64, device="meta")
        self.moment = torch.empty(n, features + 1, targets, dtype=torch.float64, device="meta")
        self.rows = 0

    def add(self, features: Float[Tensor, "n t f"], targets: Float[Tensor, "n t y"]) -> None:
        """t rows of each regression. Features should be near a root mean square of 1, the unit of
        the penalty."""
        given = precise(features)
        given = torch.cat([given, torch.ones_like(given[..., :1])], -1)
        if self.rows == 0:
            self.gram = torch.zeros_like(self.gram, device=given.device)
            self.moment = torch.zeros_like(self.moment, device=given.device)
        _add_product(self.gram, given.transpose(1, 2), given)
        _add_product(self.moment, given.transpose(1, 2), precise(targets).to(given.device))
        self.rows += features.shape[1]

    def solve(self, penalty: float = 1e-3) -> tuple[Float[Tensor, "n f y"], Float[Tensor, "n y"]]:
        """(weight, bias) such that features @ weight + bias is near the targets, on the device of
        the sums; penalty: per row. Raises ValueError if no rows were added."""
        if self.rows == 0:
            raise ValueError("no rows were added; expected at least one before solve")
        ridge = penalty * self.rows * torch.eye(self.gram.shape[-1]).to(self.gram)
        # One regression at a time: the batched solver of torch 2.13 fails on CPU at [30, 577, 577].
        solved = [
            torch.linalg.solve(g + ridge, m) for g, m in zip(self.gram, self.moment, strict=True)
        ]
        maps = torch.stack(solved).float()
        return maps[:, :-1], maps[:, -1]


def _add_product(sums: Tensor, left: Tensor, right: Tensor) -> None:
    """sums += left @ right. A GPU adds in place, since the product alone may be gigabytes; on a CPU
    that rounds otherwise, and what was fitted there is to come out the same to the last bit."""
    if sums.is_cpu:
        sums += left @ right
    else:
        sums.baddbmm_(left, right)
