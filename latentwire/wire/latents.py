"""Latents: a context as the few slots of keys and values that a reader sees in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from latentwire.lm import FrozenLM, KVPrefix, Prompt


@dataclass(frozen=True)
class Latents:
    """One compressed context: keys and values [l, h, m, e], keys rotated to their positions, and
    the span, the number of positions that the context takes up."""

    keys: Float[Tensor, "l h m e"]
    values: Float[Tensor, "l h m e"]
    span: int

    def __len__(self) -> int:
        return self.keys.shape[2]

    def zeros(self) -> Latents:
        """The same slots with nothing in them: a control."""
        return replace(self, keys=torch.zeros_like(self.keys), values=torch.zeros_like(self.values))


def as_prefix(head: KVPrefix, latents: Sequence[Latents]) -> KVPrefix:
    """The head's cache (one row), then each context's latents: one row of prefix per context."""
    width = max(len(z) for z in latents)
    rows = len(latents)
    start = int(head.next_position[0])

    def joined(per_head: tuple[Tensor, ...], pick: str) -> tuple[Tensor, ...]:
        stacked = torch.stack([_padded(getattr(z, pick), width) for z in latents], 1)
        return tuple(
            torch.cat([h.expand(rows, -1, -1, -1), z.to(h)], 2)
            for h, z in zip(per_head, stacked, strict=True)
        )

    count = torch.tensor([len(z) for z in latents], device=head.mask.device)[:, None]
    span = torch.tensor([z.span for z in latents], device=head.mask.device)
    slot = torch.arange(width, device=head.mask.device)[None]
    centre = start + ((slot + 0.5) * span[:, None] / count).long()
    return KVPrefix(
        joined(head.keys, "keys"),
        joined(head.values, "values"),
        torch.cat([head.mask.expand(rows, -1), slot < count], 1),
        torch.cat([head.positions.expand(rows, -1), torch.where(slot < count, centre, 0)], 1),
        start + span,
    )


def _padded(slots: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(slots, (0, 0, 0, width - slots.shape[2]))


def head_of(lm: FrozenLM) -> KVPrefix:
    """What every prompt begins with (chat template's head, or BOS), as a cache of one row, in the
    LM's own float type: a first use may be inside a training step's autocast, and what is kept of
    it is used outside too."""
    with torch.no_grad(), torch.autocast(lm.device.type, enabled=False):
        return lm.prefill(Prompt.from_ids(lm, [lm.frame.head]))
