"""From states of tokens to states of latents."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn


def sinusoids(positions: Num[Tensor, "*n"], width: int) -> Float[Tensor, "*n d"]:
    """Codes of positions: sines, then cosines, at wavelengths from 2 pi to 10000 * 2 pi, each of
    root mean square 0.7 (Vaswani et al. 2017, arXiv 1706.03762)."""
    steps = torch.arange(-(-width // 2), device=positions.device)
    angles = positions[..., None] * 10000.0 ** (-2 * steps / width)
    return torch.cat([angles.sin(), angles.cos()], -1)[..., :width]


class Pooling(nn.Module, ABC):
    """One row of states to fewer of the same width."""

    def __init__(self, width: int, size: int):
        """size: states of which one is made."""
        super().__init__()
        self.size = size

    @abstractmethod
    def forward(self, states: Float[Tensor, "n w"]) -> Float[Tensor, "m w"]:
        """ceil(n / size) states, in order."""


class Windows(Pooling):
    """The mean of each contiguous window of `size` states, the last one's of what it has."""

    def forward(self, states: Float[Tensor, "n w"]) -> Float[Tensor, "m w"]:
        windows, counts = _windows(states, self.size)
        return windows.sum(1) / counts


class Strided(Pooling):
    """Contiguous windows of `size` states, each as a sum of one linear map per place in the window.

    It begins as the mean of the window, which keeps no order; the maps can learn one. The last
    window may be short, and is then the mean of what it has.
    """

    def __init__(self, width: int, size: int):
        super().__init__(width, size)
        self.maps = nn.Parameter(torch.eye(width).repeat(size, 1, 1))

    def forward(self, states: Float[Tensor, "n w"]) -> Float[Tensor, "m w"]:
        windows, counts = _windows(states, self.size)
        return torch.einsum("msw,swv->mv", windows, self.maps) / counts


class Hierarchical(Pooling):
    """Neighbours are merged two by two until `size` states, a power of two, are one.

    A merge is the mean of all states that the two stand for, and what a small network, zero at
    first, makes of the two. So it begins as the mean of the window.
    """

    def __init__(self, width: int, size: int):
        super().__init__(width, size)
        self.merges = nn.ModuleList(_merge(width) for _ in range(size.bit_length() - 1))

    def forward(self, states: Float[Tensor, "n w"]) -> Float[Tensor, "m w"]:
        held = states.new_ones(len(states), 1)
        for merge in self.merges:
            (pairs, _), (shares, _) = _windows(states, 2), _windows(held, 2)
            held = shares.sum(1)
            states = (pairs * shares).sum(1) / held + merge(pairs.flatten(1))
        return states


class Queries(Pooling):
    """Learned queries that attend to all states: one per latent, told its place by the code of the
    centre of its window, so that any number of latents can be asked for."""

    def __init__(self, width: int, size: int):
        super().__init__(width, size)
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


POOLINGS: dict[str, type[Pooling]] = {
    "strided": Strided,
    "windows": Windows,
    "queries": Queries,
    "hierarchical": Hierarchical,
}
"""By the name that a wire's config gives."""


def _windows(
    states: Float[Tensor, "n w"], size: int
) -> tuple[Float[Tensor, "m s w"], Float[Tensor, "m 1"]]:
    """Windows of `size` states, the last one filled up with zeros, and how many each has."""
    n, width = states.shape
    missing = -n % size
    windows = torch.nn.functional.pad(states, (0, 0, 0, missing)).view(-1, size, width)
    counts = states.new_full((len(windows), 1), size)
    counts[-1] -= missing
    return windows, counts


def _merge(width: int) -> nn.Sequential:
    """A network of two states that gives zeros at first."""
    last = nn.Linear(width, width)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, width), nn.GELU(), last)
