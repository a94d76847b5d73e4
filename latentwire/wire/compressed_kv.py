"""Latents: a context as the few slots of keys and values that a reader sees in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentwire.lm import FrozenLM, KVPrefix, Prompt, RaggedKV


@dataclass(frozen=True)
class CompressedKV:
    """One compressed context: keys and values [n, e] of all layers' KV heads, one head after
    another, and of each slot the position in the context that it stands at, ascending in a head.

    keys are rotated to where the slots stand in the reader, lengths [l, h] are slots of each head,
    and span is the number of positions that the context takes up.
    """

    keys: Float[Tensor, "n e"]
    values: Float[Tensor, "n e"]
    positions: Int[Tensor, " n"]
    lengths: Int[Tensor, "l h"]
    span: int

    def __len__(self) -> int:
        """Slots of a head, on average, rounded up."""
        return -(-len(self.keys) // self.lengths.numel())

    def zeros(self) -> CompressedKV:
        """The same slots with nothing in them: a control."""
        return replace(self, keys=torch.zeros_like(self.keys), values=torch.zeros_like(self.values))

    @classmethod
    def joined(
        cls, windows: Sequence[CompressedKV], starts: Sequence[int], span: int
    ) -> CompressedKV:
        """Windows of one text, which begin at these positions of its span, as its latents."""
        lengths = torch.stack([z.lengths for z in windows])
        heads = torch.arange(lengths[0].numel(), device=lengths.device).repeat(len(windows))
        head = heads.repeat_interleave(lengths.flatten())
        places = torch.cat([z.positions + at for z, at in zip(windows, starts, strict=True)])
        order = (head * (span + 1) + places).argsort(stable=True)
        return cls(
            torch.cat([z.keys for z in windows])[order],
            torch.cat([z.values for z in windows])[order],
            places[order],
            lengths.sum(0),
            span,
        )


def as_prefix(head: KVPrefix, latents: Sequence[CompressedKV]) -> KVPrefix:
    """The head's cache (one row), then each context's latents: one row of prefix per context."""
    rows = torch.arange(1, device=head.mask.device).expand(len(latents))
    start = int(head.next_position[0])
    span = torch.tensor([z.span for z in latents], device=head.mask.device)
    totals = [z.lengths.sum(-1).tolist() for z in latents]
    by_layer = [
        zip(*(x.split(n) for x in (z.keys, z.values, z.positions)), z.lengths, strict=True)
        for z, n in zip(latents, totals, strict=True)
    ]
    slots = []
    for like, *row in zip(head.keys, *by_layer, strict=True):
        keys, values, positions, lengths = zip(*row, strict=True)
        slots.append(
            RaggedKV(
                torch.cat(keys).to(like),
                torch.cat(values).to(like),
                torch.cat(positions).to(like.device) + start,
                torch.stack(lengths).to(like.device),
            )
        )
    return replace(head.rows(rows), next_position=start + span, ragged=tuple(slots))


def head_of(lm: FrozenLM) -> KVPrefix:
    """The beginning of every prompt (chat template's head, or BOS), as a cache of one row, in the
    LM's own float type: a first use may be inside a training step's autocast, and what is kept of
    it is used outside too."""
    with torch.no_grad(), torch.autocast(lm.device.type, enabled=False):
        return lm.prefill(Prompt.from_ids(lm, [lm.frame.prefix]))
