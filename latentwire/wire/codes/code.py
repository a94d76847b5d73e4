"""The latent code of one source LM: a few bits for each channel of each of its tokens.

The states that enter some of the source's blocks become `channels` numbers of deviation 1 by one
linear map, and each number one of 2**bits levels. The code is the source's alone: it knows nothing
of who reads it, so readers can be added later, and messages already sent stay readable.

Shapes: n tokens, f features, c channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from latentwire.lm import FrozenLM, KVPrefix, Prompt
from latentwire.wire.folder import WireError
from latentwire.wire.selectors.scorer import normed

REACH = 3.5
"""Deviations that the levels of a channel span on either side of its mean."""


@dataclass(frozen=True)
class CodeConfig:
    """The size of a latent code; saved beside its weights."""

    source: str
    """Zoo name, Hugging Face id or folder of the LM that writes it."""
    layers: tuple[int, ...]
    """Blocks of the source whose inputs are read."""
    channels: int = 512
    """Numbers of one token."""
    bits: int = 4
    """Bits of one number."""
    chunk_size: int = 512
    """Most tokens that the source reads in one pass; longer texts are read in chunks."""

    def __post_init__(self) -> None:
        for name, least, most in (("channels", 1, 65535), ("bits", 1, 8), ("chunk_size", 1, 32767)):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise WireError(f"{name} is {value!r}; expected a whole number {least} to {most}")
        if not self.layers or any(type(x) is not int or x < 0 for x in self.layers):
            raise WireError(f"layers are {self.layers!r}; expected at least one block's number")


class Code(nn.Module):
    """The map from a source's states to codes, and between codes and bytes' integers."""

    def __init__(self, config: CodeConfig, width: int):
        super().__init__()
        self.config = config
        features = len(config.layers) * width
        self.weight = nn.Parameter(torch.zeros(features, config.channels))
        self.bias = nn.Parameter(torch.zeros(config.channels))

    def forward(self, features: Float[Tensor, "n f"]) -> Float[Tensor, "n c"]:
        """Channels at the values of their nearest levels; gradients pass the rounding as if it were
        not there (Bengio et al. 2013, arXiv 1308.3432)."""
        weight = self.weight.to(features.dtype)
        exact = (features @ weight).float() + self.bias
        exact = exact.clamp(-REACH, REACH)
        return exact + (self.values(self.nearest(exact)) - exact).detach()

    def nearest(self, values: Float[Tensor, "n c"]) -> Int[Tensor, "n c"]:
        """The level of each number, 0 to 2**bits - 1."""
        return ((values + REACH) * (self._top / (2 * REACH))).round().long()

    def values(self, levels: Int[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """The numbers that levels stand for; the inverse of `nearest`."""
        return levels.float() * (2 * REACH / self._top) - REACH

    @property
    def _top(self) -> int:
        return 2**self.config.bits - 1


@torch.no_grad()
def read(
    source: FrozenLM, head: KVPrefix, config: CodeConfig, ids: Int[Tensor, " n"]
) -> Float[Tensor, "n f"]:
    """Features of a text's tokens: the RMS-normed inputs of the config's blocks, side by side. Each
    chunk is read behind the head by itself."""
    chunks = []
    for chunk in ids.split(config.chunk_size):
        inputs = source.states(Prompt.from_ids(source, [chunk], head), config.layers).inputs
        chunks.append(normed(inputs[:, 0]).transpose(0, 1).flatten(1))
    return torch.cat(chunks)
