"""A context's keys and values, cut to the slots that each head needs most.

For every layer and KV head the tokens with the highest scores are kept, at their own positions.
What is dropped is not lost: each slot stands for the tokens since the slot before it, and a learned
low-rank residual, zero at the start, moves its key and value by what those tokens hold. So step 0
is a cache with tokens left out, which the reader already understands, and training fills the gaps.

Tokens may be named that every head keeps, whatever their scores; the residual leaves these as they
are.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from latentwire.lm import FrozenLM
from latentwire.lm.families import rotate
from latentwire.wire.latents import Latents
from latentwire.wire.scorer import normed


class Slots(nn.Module):
    """The residual: per layer a bottleneck of `rank` over [kept state, mean of its segment]."""

    def __init__(self, layers: int, width: int, heads: int, head_dim: int, rank: int):
        super().__init__()
        down = torch.randn(layers, 2 * width, rank, generator=torch.Generator().manual_seed(0))
        self.down = nn.Parameter(down / (2 * width) ** 0.5)
        self.up = nn.Parameter(torch.zeros(layers, heads, rank, 2 * head_dim))

    def forward(
        self,
        lm: FrozenLM,
        inputs: Float[Tensor, "l t d"],
        keys: Float[Tensor, "l h t e"],
        values: Float[Tensor, "l h t e"],
        scores: Float[Tensor, "l h t"],
        positions: Int[Tensor, " t"],
        raw: Bool[Tensor, " t"],
        count: int,
    ) -> Latents:
        """The `count` best tokens of each head as slots, in the order of the text. The raw ones,
        at most `count`, come before all others, with the keys and values that the reader itself
        has for them: they stand for themselves alone, and tokens that were dropped just before one
        are not made up for."""
        kept = scores.masked_fill(raw, torch.inf).topk(count, -1).indices.sort(-1).values
        features = torch.cat(_kept_and_segment(normed(inputs), kept), -1)
        hidden = torch.nn.functional.gelu(torch.einsum("lhmx,lxr->lhmr", features, self.down))
        delta_k, delta_v = torch.einsum("lhmr,lhrc->lhmc", hidden, self.up).chunk(2, -1)
        k, v = _take(keys.float(), kept), _take(values.float(), kept)
        turned = positions[kept]
        moved = [
            rotate(lm.model, layer, d[None], p[None])[0]
            for layer, (d, p) in enumerate(zip(delta_k, turned, strict=True))
        ]
        # Deltas are in units of the head's own keys and values, whose sizes differ by layer.
        changed = ~raw[kept][..., None]
        k = k + torch.stack(moved) * _rms(k) * changed
        v = v + delta_v * _rms(v) * changed
        return Latents(k, v, span=len(positions))


def _kept_and_segment(
    inputs: Float[Tensor, "l t d"], kept: Int[Tensor, "l h m"]
) -> tuple[Float[Tensor, "l h m d"], Float[Tensor, "l h m d"]]:
    """States of the kept tokens, and the mean state of the tokens after the slot before, up to and
    including the kept one; the last segment runs to the end of the text."""
    layers, t, d = inputs.shape
    heads = kept.shape[1]
    ends = kept + 1
    ends[..., -1] = t
    starts = torch.cat([torch.zeros_like(ends[..., :1]), kept[..., :-1] + 1], -1)
    sums = torch.nn.functional.pad(inputs.cumsum(1), (0, 0, 1, 0))
    per_head = sums[:, None].expand(layers, heads, t + 1, d)
    total = _take(per_head, ends) - _take(per_head, starts)
    states = _take(inputs[:, None].expand(layers, heads, t, d), kept)
    return states, total / (ends - starts)[..., None]


def _take(source: Float[Tensor, "l h t c"], index: Int[Tensor, "l h m"]) -> Tensor:
    return source.gather(2, index[..., None].expand(*index.shape, source.shape[-1]))


def _rms(x: Float[Tensor, "l h m e"]) -> Float[Tensor, "l h 1 1"]:
    return x.square().mean((-2, -1), keepdim=True).sqrt()
