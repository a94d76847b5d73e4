"""A learned residual that makes each kept slot stand for the tokens since the slot before it.

What a selector drops is not lost: a low-rank residual, zero at the start, moves the key and the
value of each slot by what the tokens before it held. So step 0 is a cache with tokens left out,
which the reader already understands, and training fills the gaps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from latentwire.lm import FrozenLM
from latentwire.lm.families import rotate
from latentwire.wire.selectors.base import Reading
from latentwire.wire.selectors.scorer import normed


@dataclass(frozen=True)
class LayerSlots:
    """The slots that stay in one layer of some rows: all rows of the first head, then those of the
    next, each in order of its tokens."""

    head: Int[Tensor, " n"]
    row: Int[Tensor, " n"]
    token: Int[Tensor, " n"]
    """Column of the padded rows."""
    keys: Float[Tensor, "n e"]
    values: Float[Tensor, "n e"]
    lengths: Int[Tensor, "b h"]
    """Slots of each head."""
    movable: Bool[Tensor, " n"] | None
    """Those that a corrector moves; None for all."""


class ResidualCorrector(nn.Module):
    """The residual: per layer a bottleneck of `rank` over [kept state, mean of its segment]."""

    def __init__(self, layers: int, width: int, heads: int, head_dim: int, rank: int):
        super().__init__()
        down = torch.randn(layers, 2 * width, rank, generator=torch.Generator().manual_seed(0))
        self.down = nn.Parameter(down / (2 * width) ** 0.5)
        self.up = nn.Parameter(torch.zeros(layers, heads, rank, 2 * head_dim))

    def forward(
        self, lm: FrozenLM, reading: Reading, slots: Sequence[LayerSlots]
    ) -> Iterator[LayerSlots]:
        """The slots of each layer, moved. Rows go through a layer together: on a GPU the number of
        operations is what a step costs."""
        # unbind, since the gradient of each parameter[layer] would be as large as the parameter
        parts = zip(slots, self.down.unbind(), self.up.unbind(), strict=True)
        for layer, (kept, down, up) in enumerate(parts):
            states = normed(reading.states.inputs[layer])
            features = kept_and_segment(states, reading.mask, kept.head, kept.row, kept.token)
            of_heads = kept.lengths.sum(0).tolist()
            hidden = torch.nn.functional.gelu(features @ down).split(of_heads)
            moves = torch.cat([x @ own for x, own in zip(hidden, up.unbind(), strict=True)])
            if kept.movable is not None:
                moves = moves * kept.movable[:, None]
            delta_k, delta_v = moves.chunk(2, -1)
            positions = reading.prompt.positions[kept.row, kept.token]
            turned = rotate(lm.model, layer, delta_k[None, None], positions[None, None])
            # Deltas are in units of the head's own keys and values, whose sizes differ by layer.
            owner = (kept.row * len(up) + kept.head, kept.lengths.flatten())
            yield replace(
                kept,
                keys=kept.keys + turned[0, 0] * _rms(kept.keys, *owner),
                values=kept.values + delta_v * _rms(kept.values, *owner),
            )


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
