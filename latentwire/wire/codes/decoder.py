"""A reader's decoder: latent codes in, keys and values of all of its layers out.

A linear map, fitted in closed form, and a perceptron beside it that is zero at the start. Keys come
out as they are before rotation, so a code means the same wherever it stands, and at the size that
the reader's key norm gives them where it has one (Gemma 3, Qwen3): a regression's are too small.

Shapes: n tokens, c channels, l layers, h KV heads, e width of a head, y numbers of all layers.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu

from latentwire.lm import FrozenLM
from latentwire.lm.families import key_gains


class Decoder(nn.Module):
    """Keys, values and importance of codes for one reader."""

    def __init__(self, lm: FrozenLM, channels: int, hidden: int):
        super().__init__()
        heads, width = lm.kv_shape
        layers, self.hidden = len(lm.blocks), hidden
        self.shape = (layers, 2, heads, width)
        outputs = math.prod(self.shape)
        self.gains = key_gains(lm.model)  # a list, since they are the reader's and not trained here
        self.weight = nn.Parameter(torch.zeros(channels, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        down = torch.randn(channels, hidden, generator=torch.Generator().manual_seed(0))
        self.down = nn.Parameter(down / channels**0.5)
        self.down_bias = nn.Parameter(torch.zeros(hidden))
        self.up = nn.Parameter(torch.zeros(hidden, outputs))
        self.score_weight = nn.Parameter(torch.zeros(channels, layers * heads), False)
        self.score_bias = nn.Parameter(torch.zeros(layers * heads), False)
        self.mean = nn.Parameter(torch.zeros(outputs), False)
        self.scale = nn.Parameter(torch.ones(outputs), False)
        """Mean and deviation of the reader's own keys and values."""
        self.importance = nn.Parameter(torch.full((layers, 2), 1 / layers), False)
        """The weight of each layer's keys and values in training."""

    def forward(self, codes: Float[Tensor, "n c"]) -> tuple[Tensor, Tensor]:
        """Keys before rotation and values, [l, h, n, e] each."""
        hidden = gelu(codes @ self.down + self.down_bias)
        out = (codes @ self.weight).float() + (hidden @ self.up).float() + self.bias
        return self._as_cache(out * self.scale)

    def mean_slots(self, n: int) -> tuple[Tensor, Tensor]:
        """The mean key and value n times, as `forward` gives them: a control."""
        return self._as_cache(self.mean.expand(n, -1))

    def scores(self, codes: Float[Tensor, "n c"]) -> Float[Tensor, "l h n"]:
        """Log attention that each head will give the tokens; higher is kept first."""
        flat = codes.float() @ self.score_weight + self.score_bias
        return flat.T.view(self.shape[0], self.shape[2], len(codes))

    def _as_cache(self, flat: Float[Tensor, "n y"]) -> tuple[Tensor, Tensor]:
        keys, values = flat.view(len(flat), *self.shape).permute(2, 1, 3, 0, 4)
        return torch.stack([normed(k, g) for k, g in zip(keys, self.gains, strict=True)]), values


def normed(
    keys: Float[Tensor, "h n e"], gain: Float[Tensor, " g"] | None
) -> Float[Tensor, "h n e"]:
    """Keys scaled so that, their gain taken off, they have a root mean square of 1, as the reader's
    own do. Numbers whose gain is next to nothing say nothing of what was before it."""
    if gain is None:
        return keys
    if len(gain) > keys.shape[-1]:  # one norm of all heads together
        whole = normed(keys.transpose(0, 1).flatten(1)[None], gain)
        return whole[0].unflatten(-1, (len(keys), -1)).transpose(0, 1)
    visible = gain.abs() > 0.05
    before = keys[..., visible] / gain[visible].to(keys)
    return keys * torch.rsqrt(before.square().mean(-1, keepdim=True) + 1e-6)
