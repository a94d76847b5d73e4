"""Between our values and Hugging Face's machinery: a prefix as a cache, a prompt as its mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from latentwire.lm.families import sliding_windows
from latentwire.lm.prompt import KVPrefix, Prompt


class Room:
    """A buffer that keys or values [b, h, n, e] grow into, so that a decoding step does not copy
    all that came before it. Columns up to `used` are somebody's and are never written again."""

    def __init__(self, start: Tensor, more: int):
        b, h, n, e = start.shape
        self.buffer = start.new_empty(b, h, n + more + max(64, n // 2), e)
        self.buffer[:, :, :n] = start
        self.used = n

    def continues(self, tensor: Tensor, more: int) -> bool:
        """Whether `tensor` is all that is in here, and `more` columns fit behind it."""
        ours = tensor.data_ptr() == self.buffer.data_ptr() and len(tensor) == len(self.buffer)
        whole = tensor.shape[2] == self.used
        return ours and whole and self.used + more <= self.buffer.shape[2]


class GrowingLayer(DynamicLayer):
    """Grows in place where no gradient is wanted, by concatenation where one is. One pass goes over
    it, but twice with gradient checkpointing, so it always grows from what it began with."""

    def __init__(self, began: tuple[Tensor, Tensor] | None = None, kept: bool = True):
        super().__init__()
        self.began, self.kept, self.grown = began, kept, False
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
        return keys, values


def _appended(tensor: Tensor, new: Tensor, room: Room | None) -> tuple[Tensor, Room]:
    n, more = tensor.shape[2], new.shape[2]
    if room is None or not room.continues(tensor, more):
        room = Room(tensor, more)
    room.buffer[:, :, n : n + more] = new
    room.used = n + more
    return room.buffer[:, :, : n + more], room


def as_cache(prefix: KVPrefix | None, kept: bool) -> Any:
    """A cache that starts as the prefix's own tensors, which are never written to. kept: whether it
    will be gone on with, so that room to grow pays. Layers are full-length ones also where the
    model's attention is windowed, because the window is in our mask."""
    cache = DynamicCache()
    cache.layer_class_to_replicate = GrowingLayer
    if prefix is not None:
        rooms = prefix.rooms or (None,) * len(prefix.keys)
        for keys, values, room in zip(prefix.keys, prefix.values, rooms, strict=True):
            layer = GrowingLayer((keys, values), kept)
            layer.rooms = room
            cache.layers.append(layer)
    return cache


def grown(cache: Any, prompt: Prompt) -> KVPrefix:
    """The cache after a pass over `prompt`, as a value."""
    mask, positions, memories = prompt.mask, prompt.positions, ()
    if prompt.prefix is not None:
        mask = torch.cat([prompt.prefix.mask, mask], 1)
        positions = torch.cat([prompt.prefix.positions, positions], 1)
        memories = prompt.prefix.memories
    keys = tuple(layer.keys for layer in cache.layers)
    values = tuple(layer.values for layer in cache.layers)
    rooms = tuple(layer.rooms for layer in cache.layers)
    return KVPrefix(keys, values, mask, positions, prompt.next_position, memories, rooms)


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
