"""Between our values and Hugging Face's machinery: a prefix as a cache, of ours or of theirs, a
prompt as its mask."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from latentwire.lm.families import EVERY, family_of, moved, rescales, sliding_windows
from latentwire.lm.prompt import KVPrefix, Prompt

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
        rows = self.buffer.shape[0]
        ours = tensor.data_ptr() == self.buffer.data_ptr() and tensor.shape[0] == rows
        with _CLAIMING:
            whole = tensor.shape[2] == self.used
            fits = ours and whole and self.used + more <= self.buffer.shape[2]
            self.used += more if fits else 0
        return fits


class GrowingLayer(DynamicLayer):
    """Grows in place under no_grad, by concatenation else. One pass goes over
    it, but twice with gradient checkpointing, so it always grows from what it began with. Slots
    that each head has for itself are no part of it (lm/ragged.py)."""

    def __init__(
        self,
        began: tuple[Tensor, Tensor] | None = None,
        kept: bool = True,
    ):
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
        layers = zip(prefix.keys, prefix.values, prefix.rooms or none, strict=True)
        for keys, values, room in layers:
            layer = GrowingLayer((keys, values), kept)
            layer.rooms = room
            cache.layers.append(layer)
    return cache


def transformers_cache(model: Any, prefix: KVPrefix, room: int) -> DynamicCache:
    """A prefix as a cache that transformers' own `generate` continues from, for up to `room` tokens
    more. Raises ValueError where the cache could not be exact."""
    check_one_length(model, prefix, room)
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(of_one_length(model, prefix)):
        cache.update(keys, values, layer)
    return cache


def check_one_length(model: Any, prefix: KVPrefix, room: int) -> None:
    """Raises ValueError where a cache of one length, continued by up to `room` tokens, could not be
    exact: every head of every layer must have as many slots, in all rows."""
    config, name = model.config, model.config.model_type
    if not family_of(config).rotary:
        raise ValueError(f"{name} adds positions to its embeddings: its keys cannot be moved")
    if rescales(model):
        raise ValueError(f"{name} rotates by the input's length (longrope): keys cannot be moved")
    counts = _counts(prefix)
    if len(counts) > 1:
        least, most = min(counts), max(counts)
        raise ValueError(
            f"heads have {least} to {most} slots; a cache has one length: compress with "
            "wire.uniform() or `latentwire compress --uniform`, and give texts of unlike lengths "
            "one at a time"
        )
    if prefix.memories or not bool(prefix.mask.all()):
        raise ValueError("a cache holds no memories and no padding; give rows one at a time")
    windows = [n for n in (sliding_windows(config) or {}).values() if n is not None]
    end = int(prefix.next_position.max()) + room
    if windows and end > min(windows):
        raise ValueError(
            f"{name} has layers that see {min(windows)} tokens, and the context with {room} more "
            f"takes {end} positions: a cache's slots would be counted; expected at most that many"
        )


def of_one_length(model: Any, prefix: KVPrefix) -> Iterator[tuple[Tensor, Tensor]]:
    """Keys and values [b, h, n, e] of each layer of a prefix that `check_one_length` lets pass, for
    an engine that numbers what follows by the cache's length: all keys are rotated by as much as
    that is less than the positions taken up, so every distance stays what it was."""
    (count,) = _counts(prefix)
    shift = len(prefix) + count - prefix.next_position[:, None, None]
    for layer, (keys, values) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
        b, h, _, e = keys.shape
        places = prefix.positions[:, None].expand(b, h, -1)
        if prefix.ragged:  # the order of columns means nothing to what follows all of them
            slots = prefix.ragged[layer]
            rows = torch.arange(b, device=keys.device) if slots.owners is None else slots.owners
            own = slots.keys.view(-1, h, count, e)[rows], slots.values.view(-1, h, count, e)[rows]
            keys, values = (torch.cat(pair, 2) for pair in zip((keys, values), own, strict=True))
            places = torch.cat([places, slots.positions.view(-1, h, count)[rows]], 2)
        yield moved(model, layer, keys.float(), places, shift).to(keys.dtype), values


def _counts(prefix: KVPrefix) -> set[int]:
    """Slots that single heads have beside those that all have."""
    return {int(n) for slots in prefix.ragged for n in slots.lengths.unique()} or {0}


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


def attention_mask(
    prompt: Prompt, config: Any, sparing: bool = False
) -> Tensor | dict[str, Tensor | None] | None:
    """Additive masks [b, 1, t, p + t]; one for each layer type where types differ. sparing: None in
    place of one that hides nothing but what comes later."""
    windows = sliding_windows(config)
    spared = sparing and _hides_nothing(prompt)
    places = None if windows is None else _key_positions(prompt)
    if windows is None or places is None:
        return None if spared else _additive(_seen(prompt), prompt)
    reach = int(prompt.positions.max()) - int(places.min()) if spared else 0
    seen: Tensor | None = None
    masks: dict[str, Tensor | None] = {}
    for layer_type, window in windows.items():
        if spared and (window is None or reach < window):
            masks[layer_type] = None
            continue
        seen = visible = _seen(prompt) if seen is None else seen
        if window is not None:  # distances are 8 bytes each, the most of all that is made here
            distance = prompt.positions[:, :, None] - places[:, None, :]
            visible = seen & (distance < window)
        masks[layer_type] = _additive(visible, prompt)
    return masks.get(EVERY, masks)


def _hides_nothing(prompt: Prompt) -> bool:
    """True where no column is padding and each sees all before it: attention that is causal over a
    square, or over all for one column, then needs no mask."""
    before = prompt.prefix
    if not bool(prompt.mask.all()) or not (before is None or bool(before.mask.all())):
        return False
    return before is None or prompt.embeds.shape[1] == 1


def _key_positions(prompt: Prompt) -> Tensor:
    before = () if prompt.prefix is None else (prompt.prefix.positions,)
    return torch.cat([*before, prompt.positions], 1)


def _seen(prompt: Prompt) -> Tensor:
    """True where a column sees another of prefix and prompt, [b, t, p + t]."""
    t, device = prompt.embeds.shape[1], prompt.embeds.device
    seen = prompt.mask[:, None, :] & torch.ones(t, t, dtype=torch.bool, device=device).tril()
    if prompt.prefix is None:
        return seen
    return torch.cat([prompt.prefix.mask[:, None, :].expand(-1, t, -1), seen], 2)


def _additive(visible: Tensor, prompt: Prompt) -> Tensor:
    """A mask in numbers. A padding column sees itself, since one that sees nothing would be NaN."""
    (t, width), dtype = visible.shape[1:], prompt.embeds.dtype
    itself = torch.eye(t, width, dtype=torch.bool, device=visible.device).roll(width - t, 1)
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill(~(visible | itself), torch.finfo(dtype).min)[:, None]
