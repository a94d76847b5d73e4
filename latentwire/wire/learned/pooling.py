"""From states of tokens to states of latents, ceil(n / size) of n."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn


def sinusoids(positions: Num[Tensor, "*n"], width: int) -> Float[Tensor, "*n d"]:
    """Codes of positions: sines, then cosines, at wavelengths from 2 pi to 10000 * 2 pi, each of
    root mean square 0.7 (Vaswani et al. 2017, arXiv 1706.03762)."""
    steps = torch.arange(-(-width // 2), device=positions.device)
    angles = positions[..., None] * 10000.0 ** (-2 * steps / width)
    return torch.cat([angles.sin(), angles.cos()], -1)[..., :width]


class Strided(nn.Module):
    """Contiguous windows of `size` states, each as a sum of one linear map per place in the window.

    It begins as the mean of the window, which keeps no order; the maps can learn one. The last
    window may be short, and is then the mean of what it has.
    """

    def __init__(self, width: int, size: int):
        super().__init__()
        self.size = size
        self.maps = nn.Parameter(torch.eye(width).repeat(size, 1, 1))

    def forward(self, states: Float[Tensor, "n w"]) -> Float[Tensor, "m w"]:
        n, width = states.shape
        missing = -n % self.size
        windows = torch.nn.functional.pad(states, (0, 0, 0, missing)).view(-1, self.size, width)
        counts = states.new_full((len(windows), 1), self.size)
        counts[-1] -= missing
        return torch.einsum("msw,swv->mv", windows, self.maps) / counts


class Queries(nn.Module):
    """Learned queries that attend to all states: one per latent, told its place by the code of the
    centre of its window, so that any number of latents can be asked for."""

    def __init__(self, width: int, size: int):
        super().__init__()
        self.size = size
        self.query = nn.Parameter(torch.zeros(width))
        self.attention = nn.MultiheadAttention(width, max(1, width // 64), batch_first=True)

    def forward(
        self, states: Float[Tensor, "n w"], start: Float[Tensor, " w"] | None = None
    ) -> Float[Tensor, "m w"]:
        """start: what is added to every place."""
        n, width = states.shape
        centres = torch.arange(math.ceil(n / self.size), device=states.device) + 0.5
        places = sinusoids(centres * self.size, width)
        places = places if start is None else places + start
        pooled, _ = self.attention(self.query + places, states, states, need_weights=False)
        return pooled + places
