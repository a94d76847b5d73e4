"""Ridge regression, in closed form: what a linear map can learn needs no steps."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


class Ridge:
    """Running sums of n regressions at once; `solve` gives their maps and offsets."""

    def __init__(self, n: int, features: int, targets: int):
        self.gram = torch.zeros(n, features + 1, features + 1, dtype=torch.float64)
        self.moment = torch.zeros(n, features + 1, targets, dtype=torch.float64)
        self.rows = 0

    def add(self, features: Float[Tensor, "n t f"], targets: Float[Tensor, "n t y"]) -> None:
        """t rows of each regression. Features should be near a root mean square of 1, the unit of
        the penalty."""
        given = features.double().cpu()
        given = torch.cat([given, torch.ones_like(given[..., :1])], -1)
        self.gram += given.transpose(1, 2) @ given
        self.moment += given.transpose(1, 2) @ targets.double().cpu()
        self.rows += features.shape[1]

    def solve(self, penalty: float = 1e-3) -> tuple[Float[Tensor, "n f y"], Float[Tensor, "n y"]]:
        """(weight, bias) such that features @ weight + bias is near the targets; penalty: per row.
        Raises ValueError if no rows were added."""
        if self.rows == 0:
            raise ValueError("no rows were added; expected at least one before solve")
        ridge = penalty * self.rows * torch.eye(self.gram.shape[-1], dtype=torch.float64)
        # One regression at a time: the batched solver of torch 2.13 fails on CPU at [30, 577, 577].
        solved = [
            torch.linalg.solve(g + ridge, m) for g, m in zip(self.gram, self.moment, strict=True)
        ]
        maps = torch.stack(solved).float()
        return maps[:, :-1], maps[:, -1]
