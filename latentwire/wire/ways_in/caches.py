"""Keys and values of slots: turned to their positions and back, measured, and moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentwire.lm import FrozenLM, KVPrefix, Prompt
from latentwire.lm.families import rotate


def turned(
    lm: FrozenLM, keys: Sequence[Tensor], positions: Int[Tensor, "b n"]
) -> list[Float[Tensor, "b h n e"]]:
    """Keys of all layers, each [b, h, n, e], rotated by positions; negative ones turn them back."""
    by = [positions[:, None].expand(k.shape[:3]) for k in keys]
    return [rotate(lm.model, i, k, p) for i, (k, p) in enumerate(zip(keys, by, strict=True))]


def moved(before: KVPrefix, keys: Sequence[Tensor], values: Sequence[Tensor]) -> KVPrefix:
    """A cache whose last m slots are moved, in each layer, by keys (turned already) and values
    [b, h, m, e]."""

    def added(old: Sequence[Tensor], by: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(
            torch.cat([x[:, :, : -d.shape[2]], x[:, :, -d.shape[2] :] + d], 2)
            for x, d in zip(old, by, strict=True)
        )

    return replace(
        before, keys=added(before.keys, keys), values=added(before.values, values), rooms=None
    )


@torch.no_grad()
def statistics(
    lm: FrozenLM, texts: Sequence[str]
) -> tuple[Float[Tensor, "l 2 h e"], Float[Tensor, "l 2 h e"]]:
    """Mean and deviation of each channel of the reader's own keys (before rotation) and values."""
    seen: list[Tensor] = []
    for text in texts:
        ids = torch.cat([lm.frame.head, lm.ids(text)])
        cache = lm.prefill(Prompt.from_ids(lm, [ids]))
        keys = turned(lm, cache.keys, -cache.positions)
        both = torch.stack([torch.stack(keys), torch.stack(cache.values)], 1)[:, :, 0]
        seen.append(both[..., len(lm.frame.head) :, :].float())  # l 2 h n e
    every = torch.cat(seen, 3)
    return every.mean(3), every.std(3)
