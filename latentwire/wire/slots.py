"""A context's keys and values, cut to the slots that the reader's heads need most.

All heads of all layers compete for one number of slots, since a few of them look far back and most
do not: those with the highest scores are kept, at their own positions, at least one in each head
(AdaKV, Feng et al. 2024, arXiv 2407.11550; KVzip, Kim et al. 2025, arXiv 2505.23416). What is
dropped is not lost: each slot stands for the tokens since the slot before it, and a learned
low-rank residual, zero at the start, moves its key and value by what those tokens hold. So step 0
is a cache with tokens left out, which the reader already understands, and training fills the gaps.

Tokens may be named that every head keeps beside these, whatever their scores.
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
        """The tokens to keep as slots: `count` a head on average by their scores, and beside them
        the raw ones in every head. Where a head would not have kept a raw one by itself, it has the
        key and value that the reader itself has for it."""
        own = chosen(scores, torch.zeros_like(raw), count)
        kept = chosen(scores, raw, min(count + int(raw.sum()), len(raw)))
        moved = own | ~raw
        lengths, layers = kept.sum(-1), []
        # unbind, since the gradient of each parameter[layer] would be as large as the parameter
        parts = zip(kept, moved, self.down.unbind(), self.up.unbind(), lengths, strict=True)
        for layer, (mask, by, down, up, each) in enumerate(parts):
            head, token = mask.nonzero(as_tuple=True)  # in the order of the text, head by head
            features = kept_and_segment(normed(inputs[layer]), head, token)
            hidden = torch.nn.functional.gelu(features @ down).split(each.tolist())
            moves = torch.cat([rows @ own for rows, own in zip(hidden, up.unbind(), strict=True)])
            delta_k, delta_v = (moves * by[head, token][:, None]).chunk(2, -1)
            turned = rotate(lm.model, layer, delta_k[None, None], positions[token][None, None])
            # Deltas are in units of the head's own keys and values, whose sizes differ by layer.
            k, v = keys[layer, head, token].float(), values[layer, head, token].float()
            k = k + turned[0, 0] * _rms(k, head, each)
            v = v + delta_v * _rms(v, head, each)
            layers.append((k, v, token))
        k, v, token = (torch.cat(parts) for parts in zip(*layers, strict=True))
        return Latents(k, v, token, lengths, span=len(positions))


def chosen(
    scores: Float[Tensor, "l h t"], raw: Bool[Tensor, " t"], count: int
) -> Bool[Tensor, "l h t"]:
    """The raw tokens of every head, and of all heads' others those with the highest scores,
    `count` a head on average and at least one in each."""
    scores = scores.masked_fill(raw, torch.inf)
    best = scores.max(-1, keepdim=True)
    scores = scores.scatter(-1, best.indices, torch.inf)
    kept = torch.zeros_like(scores, dtype=torch.bool).flatten()
    kept[scores.flatten().topk(count * scores[..., 0].numel()).indices] = True
    return kept.view_as(scores)


def kept_and_segment(
    states: Float[Tensor, "t d"], head: Int[Tensor, " n"], token: Int[Tensor, " n"]
) -> Float[Tensor, "n two_d"]:
    """For each kept token of each head, in order, its state, and beside it the mean state of the
    tokens after the one kept before, up to and including it; the last one's run to the end."""
    last = torch.cat([head[1:] != head[:-1], head.new_ones(1, dtype=torch.bool)])
    ends = torch.where(last, len(states), token + 1)
    starts = torch.where(last.roll(1), 0, token.roll(1) + 1)
    sums = torch.nn.functional.pad(states.cumsum(0), (0, 0, 1, 0))
    return torch.cat([states[token], (sums[ends] - sums[starts]) / (ends - starts)[:, None]], -1)


def _rms(
    x: Float[Tensor, "n e"], head: Int[Tensor, " n"], lengths: Int[Tensor, " h"]
) -> Float[Tensor, "n 1"]:
    """Root mean square over all slots of a slot's head."""
    sums = x.new_zeros(len(lengths)).index_add(0, head, x.square().mean(-1))
    return (sums / lengths).sqrt()[head, None]
