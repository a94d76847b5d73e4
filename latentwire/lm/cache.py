"""Between our values and Hugging Face's machinery: a prefix as a cache, a prompt as its mask."""

from __future__ import annotations

from threading import Lock
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from latentwire.lm.families import sliding_windows
from latentwire.lm.prompt import KVPrefix, Prompt, RaggedKV

_CLAIMING = Lock()
"""Held for the moment in which the free columns of a room get an owner."""


class Room:
    """A buffer that keys or values [b, h, n, e] grow into, so that a decoding step does not copy
    all that came before it. Columns up to `used` belong to a prefix and are never written again."""

    def __init__(self, start: Tensor, more: int):
        b, h, n, e = start.shape
        self.buffer = start.new_empty(b, h, n + more + max(64, n // 2), e)
        self.buffer[:, :, :n] = start
        self.used = n + more

    def claimed(self, tensor: Tensor, more: int) -> bool:
        """Take `more` columns behind `tensor` if it is all that is in here and they fit: of several
        that go on from one prefix the first has them, and the others need rooms of their own."""
        ours = tensor.data_ptr() == self.buffer.data_ptr() and len(tensor) == len(self.buffer)
        with _CLAIMING:
            whole = tensor.shape[2] == self.used
            fits = ours and whole and self.used + more <= self.buffer.shape[2]
            self.used += more if fits else 0
        return fits


class GrowingLayer(DynamicLayer):
    """Grows in place under no_grad, by concatenation else. One pass goes over
    it, but twice with gradient checkpointing, so it always grows from what it began with. slots:
    what attention sees before all that; padded for as long as one layer runs, or for as long as
    its gradient is waited for."""

    def __init__(
        self,
        began: tuple[Tensor, Tensor] | None = None,
        kept: bool = True,
        slots: RaggedKV | None = None,
    ):
        super().__init__()
        self.began, self.kept, self.grown, self.slots = began, kept, False, slots
        self.rooms: tuple[Room, Room] | None = None
        if began is not None:
            self.lazy_initialization(*began)
            self.keys, self.values = began

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any):
        new = (key_states, value_states)
        if self.began is None:
            keys, values = (states.contiguous() for states in new)
        elif self.kept and not torch.is_grad_enabled():
            key_room, value_room = self.rooms or (None, None)
            keys, key_room = _appended(self.began[0], key_states, key_room)
            values, value_room = _appended(self.began[1], value_states, value_room)
            self.rooms = (key_room, value_room)
        else:
            keys, values = (torch.cat(pair, 2) for pair in zip(self.began, new, strict=True))
            self.rooms = None
        # A second time, what was grown would only keep the recomputed graph alive.
        if self.kept and not self.grown:
            self.keys, self.values, self.grown = keys, values, True
            self.is_initialized = True
        if self.slots is not None:
            keys = torch.cat([self.slots.padded(self.slots.keys), keys], 2)
            values = torch.cat([self.slots.padded(self.slots.values), values], 2)
        return keys, values


def _appended(tensor: Tensor, new: Tensor, room: Room | None) -> tuple[Tensor, Room]:
    n, more = tensor.shape[2], new.shape[2]
    if room is None or not room.claimed(tensor, more):
        room = Room(tensor, more)
    room.buffer[:, :, n : n + more] = new
    return room.buffer[:, :, : n + more], room


def as_cache(prefix: KVPrefix | None, kept: bool) -> Any:
    """A cache that starts as the prefix's own tensors, which are never written to. kept: whether it
    will be gone on with, so that room to grow pays. Layers are full-length ones also where the
    model's attention is windowed, because the window is in our mask."""
    cache = DynamicCache()
    cache.layer_class_to_replicate = GrowingLayer
    if prefix is not None:
        none = (None,) * len(prefix.keys)
        rooms, slots = prefix.rooms or none, prefix.ragged or none
        layers = zip(prefix.keys, prefix.values, rooms, slots, strict=True)
        for keys, values, room, of_heads in layers:
            layer = GrowingLayer((keys, values), kept, of_heads)
            layer.rooms = room
            cache.layers.append(layer)
    return cache


def grown(cache: Any, prompt: Prompt) -> KVPrefix:
    """The cache after a pass over `prompt`, as a value."""
    mask, positions, memories, slots = prompt.mask, prompt.positions, (), ()
    if prompt.prefix is not None:
        mask = torch.cat([prompt.prefix.mask, mask], 1)
        positions = torch.cat([prompt.prefix.positions, positions], 1)
        memories, slots = prompt.prefix.memories, prompt.prefix.ragged
    keys = tuple(layer.keys for layer in cache.layers)
    values = tuple(layer.values for layer in cache.layers)
    rooms = tuple(layer.rooms for layer in cache.layers)
    return KVPrefix(keys, values, mask, positions, prompt.next_position, memories, slots, rooms)


def attention_mask(prompt: Prompt, config: Any) -> Tensor | dict[str, Tensor]:
    """Additive masks [b, 1, t, p + t]; one for each layer type where types differ."""
    t, device, dtype = prompt.embeds.shape[1], prompt.embeds.device, prompt.embeds.dtype
    seen = prompt.mask[:, None, :] & torch.ones(t, t, dtype=torch.bool, device=device).tril()
    key_positions = prompt.positions
    if prompt.prefix is not None:
        before = prompt.prefix.mask[:, None, :].expand(-1, t, -1)
        seen = torch.cat([before, seen], 2)
        key_positions = torch.cat([prompt.prefix.positions, key_positions], 1)
    # A padding column sees itself, since a row that sees nothing would be NaN.
    itself = torch.eye(t, seen.shape[2], dtype=torch.bool, device=device)
    itself = itself.roll(seen.shape[2] - t, 1)

    def additive(window: int | None) -> Tensor:
        visible = seen
        if window is not None:  # distances are 8 bytes each, the most of all that is made here
            distance = prompt.positions[:, :, None] - key_positions[:, None, :]
            visible = seen & (distance < window)
        mask = torch.zeros(visible.shape, dtype=dtype, device=device)
        return mask.masked_fill(~(visible | itself), torch.finfo(dtype).min)[:, None]

    windows = sliding_windows(config)
    if windows is None:
        return additive(None)
    return {layer_type: additive(window) for layer_type, window in windows.items()}


def head_mask(prompt: Prompt, config: Any, layer: int, mask: Tensor) -> Tensor:
    """A layer's additive mask [b, q, t, r + p + t], q query heads: over the slots that its prefix
    holds for each head, and then over the columns of `mask` [b, 1, t, p + t]."""
    assert prompt.prefix is not None
    slots = prompt.prefix.ragged[layer]
    seen = slots.mask[:, :, None]
    windows = sliding_windows(config)
    if windows is not None and (window := windows[config.layer_types[layer]]) is not None:
        places = slots.padded(slots.positions).int()[:, :, None]
        distance = prompt.positions.int()[:, None, :, None] - places
        seen = seen & (distance < window)
    rows, heads, t = *slots.lengths.shape, mask.shape[2]
    first = mask.new_zeros(rows, heads, t, seen.shape[-1])
    first = first.masked_fill(~seen, torch.finfo(mask.dtype).min)
    queries = config.num_attention_heads
    first = first.repeat_interleave(queries // heads, 1)
    return torch.cat([first, mask.expand(-1, queries, -1, -1)], -1)
