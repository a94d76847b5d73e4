"""Between our values and Hugging Face's machinery: a prefix as a cache, a prompt as its mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from latentwire.lm.families import sliding_windows
from latentwire.lm.prompt import KVPrefix, Prompt


def as_cache(prefix: KVPrefix | None) -> Any:
    """A cache that starts as the prefix's own tensors. They are never written to: a DynamicLayer
    grows by concatenation. Layers are full-length ones also where the model's attention is
    windowed, because the window is in our mask."""
    cache = DynamicCache()
    if prefix is not None:
        for keys, values in zip(prefix.keys, prefix.values, strict=True):
            layer = DynamicLayer()
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            cache.layers.append(layer)
    return cache


def grown(cache: Any, prompt: Prompt) -> KVPrefix:
    """The cache after a pass over `prompt`, as a value."""
    mask, positions = prompt.mask, prompt.positions
    if prompt.prefix is not None:
        mask = torch.cat([prompt.prefix.mask, mask], 1)
        positions = torch.cat([prompt.prefix.positions, positions], 1)
    keys = tuple(layer.keys for layer in cache.layers)
    values = tuple(layer.values for layer in cache.layers)
    return KVPrefix(keys, values, mask, positions, prompt.next_position)


def attention_mask(prompt: Prompt, config: Any) -> Tensor | dict[str, Tensor]:
    """Additive masks [b, 1, t, p + t]; one for each layer type where types differ."""
    t, device, dtype = prompt.embeds.shape[1], prompt.embeds.device, prompt.embeds.dtype
    seen = prompt.mask[:, None, :] & torch.ones(t, t, dtype=torch.bool, device=device).tril()
    key_positions = prompt.positions
    if prompt.prefix is not None:
        before = prompt.prefix.mask[:, None, :].expand(-1, t, -1)
        seen = torch.cat([before, seen], 2)
        key_positions = torch.cat([prompt.prefix.positions, key_positions], 1)
    distance = prompt.positions[:, :, None] - key_positions[:, None, :]
    # A padding column sees itself, since a row that sees nothing would be NaN.
    itself = torch.eye(t, seen.shape[2], dtype=torch.bool, device=device)
    itself = itself.roll(seen.shape[2] - t, 1)

    def additive(window: int | None) -> Tensor:
        visible = seen if window is None else seen & (distance < window)
        mask = torch.zeros(visible.shape, dtype=dtype, device=device)
        return mask.masked_fill(~(visible | itself), torch.finfo(dtype).min)[:, None]

    windows = sliding_windows(config)
    if windows is None:
        return additive(None)
    return {layer_type: additive(window) for layer_type, window in windows.items()}
