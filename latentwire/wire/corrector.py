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

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from latentwire.lm import FrozenLM
from latentwire.lm.families import rotate
from latentwire.wire.compressed_kv import CompressedKV
from latentwire.wire.scorer import normed


class ResidualCorrector(nn.Module):
    """The residual: per layer a bottleneck of `rank` over [kept state, mean of its segment]."""

    def __init__(self, layers: int, width: int, heads: int, head_dim: int, rank: int):
        super().__init__()
        down = torch.randn(layers, 2 * width, rank, generator=torch.Generator().manual_seed(0))
        self.down = nn.Parameter(down / (2 * width) ** 0.5)
        self.up = nn.Parameter(torch.zeros(layers, heads, rank, 2 * head_dim))

    def forward(
        self,
        lm: FrozenLM,
        inputs: Float[Tensor, "l b t d"],
        keys: Sequence[Float[Tensor, "b h t e"]],
        values: Sequence[Float[Tensor, "b h t e"]],
        scores: Float[Tensor, "l b h t"],
        positions: Int[Tensor, "b t"],
        mask: Bool[Tensor, "b t"],
        counts: Int[Tensor, " b"],
        verbatim: Bool[Tensor, "b t"] | None = None,
    ) -> list[CompressedKV]:
        """The tokens of each row (True in mask) to keep as slots: `counts` a head on average by
        their scores, and beside them the verbatim ones in every head. Where a head would not have
        kept a verbatim one by itself, it has the key and value that the reader itself has for it.

        Rows go through a layer together: on a GPU the number of operations is what a step costs.
        """
        kept, moved, sizes = chosen(scores, mask, counts), None, mask.sum(-1)
        if verbatim is not None:
            own = kept
            kept = chosen(scores, mask, torch.minimum(counts + verbatim.sum(-1), sizes), verbatim)
            moved = own | ~verbatim[:, None]
        lengths, rows = kept.sum(-1), [[] for _ in mask]
        of_heads, of_rows = lengths.sum(1).tolist(), lengths.sum(2).tolist()
        # Heads before rows, since each head has matrices of its own.
        places = kept.transpose(1, 2).nonzero()[:, 1:].split([sum(n) for n in of_rows])
        # unbind, since the gradient of each parameter[layer] would be as large as the parameter
        parts = zip(places, self.down.unbind(), self.up.unbind(), strict=True)
        for layer, (place, down, up) in enumerate(parts):
            head, row, token = place.unbind(1)
            features = kept_and_segment(normed(inputs[layer]), mask, head, row, token)
            hidden = torch.nn.functional.gelu(features @ down).split(of_heads[layer])
            moves = torch.cat([x @ own for x, own in zip(hidden, up.unbind(), strict=True)])
            if moved is not None:
                moves = moves * moved[layer, row, head, token][:, None]
            delta_k, delta_v = moves.chunk(2, -1)
            turned = rotate(lm.model, layer, delta_k[None, None], positions[row, token][None, None])
            # Deltas are in units of the head's own keys and values, whose sizes differ by layer.
            k, v = (x[layer][row, head, token].float() for x in (keys, values))
            owner = (row * len(up) + head, lengths[layer].flatten())
            k = k + turned[0, 0] * _rms(k, *owner)
            v = v + delta_v * _rms(v, *owner)
            order = row.argsort(stable=True)
            of_text = token - (mask.shape[1] - sizes)[row]
            split = (x[order].split(of_rows[layer]) for x in (k, v, of_text))
            for made, slots in zip(rows, zip(*split, strict=True), strict=True):
                made.append(slots)
        latents = []
        for row, (made, span) in enumerate(zip(rows, sizes.tolist(), strict=True)):
            k, v, place = (torch.cat(part) for part in zip(*made, strict=True))
            latents.append(CompressedKV(k, v, place, lengths[:, row], span))
        return latents


def chosen(
    scores: Float[Tensor, "l b h t"],
    mask: Bool[Tensor, "b t"],
    counts: Int[Tensor, " b"],
    verbatim: Bool[Tensor, "b t"] | None = None,
) -> Bool[Tensor, "l b h t"]:
    """The verbatim tokens of every head, and of all heads' others those with the highest scores,
    `counts` a head on average and at least one in each; of each row by itself."""
    scores = scores.masked_fill(~mask[:, None], -torch.inf)
    if verbatim is not None:
        scores = scores.masked_fill(verbatim[:, None], torch.inf)
    scores = scores.scatter(-1, scores.argmax(-1, keepdim=True), torch.inf)
    flat = scores.transpose(0, 1).flatten(1)
    total = counts[:, None] * scores[:, 0, :, 0].numel()
    best = torch.arange(flat.shape[1], device=flat.device) < total
    kept = torch.zeros_like(best).scatter(
        -1, flat.argsort(dim=-1, descending=True, stable=True), best
    )
    return kept.unflatten(1, (len(scores), *scores.shape[2:])).transpose(0, 1)


def kept_and_segment(
    states: Float[Tensor, "b t d"],
    mask: Bool[Tensor, "b t"],
    head: Int[Tensor, " n"],
    row: Int[Tensor, " n"],
    token: Int[Tensor, " n"],
) -> Float[Tensor, "n two_d"]:
    """For each kept token, head by head and row by row, its state, and beside it the mean state of
    the tokens after the one kept before, up to and including it; the last one's run to the end.
    Rows are padded on the left."""
    width, owner = states.shape[1], head * len(states) + row
    last = torch.cat([owner[1:] != owner[:-1], owner.new_ones(1, dtype=torch.bool)])
    ends = torch.where(last, width, token + 1)
    starts = torch.where(last.roll(1), (width - mask.sum(-1))[row], token.roll(1) + 1)
    sums = torch.nn.functional.pad((states * mask[..., None]).cumsum(1), (0, 0, 1, 0))
    means = (sums[row, ends] - sums[row, starts]) / (ends - starts)[:, None]
    return torch.cat([states[row, token], means], -1)


def _rms(
    x: Float[Tensor, "n e"], owner: Int[Tensor, " n"], lengths: Int[Tensor, " o"]
) -> Float[Tensor, "n 1"]:
    """Root mean square over all slots of a slot's owner, a head of a row."""
    sums = x.new_zeros(len(lengths)).index_add(0, owner, x.square().mean(-1))
    return (sums / lengths).sqrt()[owner, None]
