"""Caches put together: rows of one batch side by side, contexts of one row after one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import pad

from latentwire.lm.families import family_of, moved
from latentwire.lm.frozen import FrozenLM
from latentwire.lm.prompt import KVPrefix, RaggedKV


def side_by_side(parts: Sequence[KVPrefix]) -> KVPrefix:
    """The rows of all parts as one prefix, each row as it is alone: what the others have more is
    masked. Raises ValueError for memories, which belong to one batch."""
    if any(part.memories for part in parts):
        raise ValueError("a prefix with memories cannot share a batch with others")
    width = max(len(part) for part in parts)

    def stacked(tensors: Sequence[Tensor], axis: int) -> Tensor:
        ends = [(0, 0)] * (tensors[0].dim() - 1 - axis)
        flat = [n for end in ends for n in end]
        return torch.cat([pad(t, (*flat, width - t.shape[axis], 0)) for t in tensors])

    layers = range(len(parts[0].keys))
    ragged = ()
    if any(part.ragged for part in parts):
        of_parts = [[*map(_by_row, part.ragged or _no_slots(part))] for part in parts]
        ragged = tuple(
            RaggedKV(
                torch.cat([p[i].keys for p in of_parts]),
                torch.cat([p[i].values for p in of_parts]),
                torch.cat([p[i].positions for p in of_parts]),
                torch.cat([p[i].lengths for p in of_parts]),
            )
            for i in layers
        )
    return KVPrefix(
        tuple(stacked([part.keys[i] for part in parts], 2) for i in layers),
        tuple(stacked([part.values[i] for part in parts], 2) for i in layers),
        stacked([part.mask for part in parts], 1),
        stacked([part.positions for part in parts], 1),
        torch.cat([part.next_position for part in parts]),
        ragged=ragged,
    )


def staying(prefix: KVPrefix, index: Int[Tensor, " n"]) -> KVPrefix:
    """The rows that `index` names, without the columns that none of them has."""
    rows = prefix.rows(index)
    columns = rows.mask.any(0).nonzero()[:, 0]
    return replace(
        rows,
        keys=tuple(keys[:, :, columns] for keys in rows.keys),
        values=tuple(values[:, :, columns] for values in rows.values),
        mask=rows.mask[:, columns],
        positions=rows.positions[:, columns],
        ragged=tuple(map(_by_row, rows.ragged)),
    )


def after_one_another(lm: FrozenLM, contexts: KVPrefix) -> KVPrefix:
    """Contexts, one row each behind the same head, as one row: each begins at the position where
    the one before it ends, its keys rotated to where they stand now.

    Raises ValueError for a model that adds positions to its embeddings, whose keys cannot be moved,
    and for contexts that are not slots of single heads.
    """
    if len(contexts.mask) == 1:
        return contexts
    if not contexts.ragged:
        raise ValueError("this wire has no slots of single heads; it reads one context at a time")
    if not family_of(lm.model.config).rotary:
        raise ValueError(f"{lm.name} has no rotary positions; it reads one context at a time")
    span = contexts.next_position - len(contexts)
    shift = span.cumsum(0) - span
    layers = [_in_line(lm, i, slots, shift) for i, slots in enumerate(contexts.ragged)]
    first = contexts.rows(torch.zeros(1, dtype=torch.long, device=span.device))
    end = (len(contexts) + span.sum())[None]
    return replace(first, ragged=tuple(layers), next_position=end)


def _in_line(lm: FrozenLM, layer: int, slots: RaggedKV, shift: Int[Tensor, " b"]) -> RaggedKV:
    """The slots of all rows as those of one, each row's moved by its shift."""
    rows, heads = slots.lengths.shape
    of_slot = shift.repeat_interleave(slots.lengths.sum(1))
    moving = (of_slot > 0).nonzero()[:, 0]
    was, keys = slots.positions[None, None, moving], slots.keys.clone()
    keys[moving] = moved(lm.model, layer, keys[None, None, moving], was, of_slot[moving])[0, 0]
    head = torch.arange(heads, device=keys.device).repeat(rows)
    order = head.repeat_interleave(slots.lengths.flatten()).argsort(stable=True)
    places = slots.positions + of_slot
    lengths = slots.lengths.sum(0, keepdim=True)
    return RaggedKV(keys[order], slots.values[order], places[order], lengths)


def _by_row(slots: RaggedKV) -> RaggedKV:
    """Slots of which each row has its own, and those of no other context are held."""
    if slots.owners is None:
        return slots
    first = slots.lengths.flatten().cumsum(0).view_as(slots.lengths) - slots.lengths
    lengths = slots.lengths[slots.owners]
    column = torch.arange(int(lengths.max()) if lengths.numel() else 0, device=lengths.device)
    which = (first[slots.owners][..., None] + column)[column < lengths[..., None]]
    return RaggedKV(slots.keys[which], slots.values[which], slots.positions[which], lengths)


def _no_slots(prefix: KVPrefix) -> tuple[RaggedKV, ...]:
    """The slots of single heads that a prefix without any has, in each layer."""
    rows, heads, _, width = prefix.keys[0].shape
    none = prefix.keys[0].new_empty(0, width)
    places = prefix.positions.new_empty(0)
    lengths = prefix.positions.new_zeros(rows, heads)
    return (RaggedKV(none, none, places, lengths),) * len(prefix.keys)
