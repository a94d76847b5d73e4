"""What injectors share that make or move keys and values: turning them to their positions and back,
moving those of a cache, and measuring the reader's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentwire.lm import FrozenLM, KVPrefix, Prompt
from latentwire.lm.families import rotate
from latentwire.wire.learned.injectors.base import Calibration, Injector


def turned(
    lm: FrozenLM, keys: Sequence[Tensor], positions: Int[Tensor, "b n"], back: bool = False
) -> list[Float[Tensor, "b h n e"]]:
    """Keys of all layers, each [b, h, n, e], rotated to positions, or back from there."""
    by = [positions[:, None].expand(k.shape[:3]) for k in keys]
    return [rotate(lm.model, i, k, p, back) for i, (k, p) in enumerate(zip(keys, by, strict=True))]


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


class CacheInjector(Injector):
    """An injector that makes or moves keys and values, in units of the reader's own."""

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, lm: FrozenLM, channels: int, width: int, first: bool, calibration: Calibration
    ):
        super().__init__(lm, channels, width, first, calibration)
        self.shape = (len(lm.blocks), 2, *lm.kv_shape)
        self.register_buffer("mean", torch.zeros(self.shape))
        self.register_buffer("deviation", torch.ones(self.shape))

    @torch.no_grad()
    def calibrate(
        self,
        lm: FrozenLM,
        texts: Sequence[str],
        values: Sequence[Float[Tensor, "_ c"]],
        units: Sequence[float],
    ) -> None:
        """Mean and deviation of each channel of the reader's own keys (before rotation) and values,
        [l, 2, h, e]."""
        seen: list[Tensor] = []
        for text in texts:
            ids = torch.cat([lm.frame.prefix, lm.tokenize(text)])
            cache = lm.prefill(Prompt.from_ids(lm, [ids]))
            keys = turned(lm, cache.keys, cache.positions, back=True)
            both = torch.stack([torch.stack(keys), torch.stack(cache.values)], 1)[:, :, 0]
            seen.append(both[..., len(lm.frame.prefix) :, :].float())  # l 2 h n e
        every = torch.cat(seen, 3)
        self.mean.copy_(every.mean(3))
        self.deviation.copy_(every.std(3))
