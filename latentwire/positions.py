"""Codes of positions, which several parts add to what they read."""

from __future__ import annotations

import torch
from jaxtyping import Float, Num
from torch import Tensor


def sinusoids(positions: Num[Tensor, "*n"], width: int) -> Float[Tensor, "*n d"]:
    """Sines, then cosines of positions, at wavelengths from 2 pi to 10000 * 2 pi, each of root mean
    square 0.7 (Vaswani et al. 2017, arXiv 1706.03762)."""
    steps = torch.arange(-(-width // 2), device=positions.device)
    angles = positions[..., None] * 10000.0 ** (-2 * steps / width)
    return torch.cat([angles.sin(), angles.cos()], -1)[..., :width]
