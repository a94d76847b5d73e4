"""Deltas of keys and values on a cache that another injector made. After the coprocessor that reads
a frozen model's cache and augments it (Liu et al. 2024, Deliberation in Latent Space via
Differentiable Cache Augmentation, arXiv 2412.17747)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from latentwire.lm import FrozenLM, KVPrefix
from latentwire.wire.learned.injectors.base import Calibration, LatentBatch
from latentwire.wire.learned.injectors.caches import CacheInjector, moved, turned


class Coprocessor(CacheInjector):
    """Reads a slot's keys and values of all layers beside its state, through a bottleneck, and adds
    to all of them. Zero at first, so step 0 is the injector before this one.

    Theirs is a language model that appends latents to the cache; this one is small and changes the
    slots that are there. Keys are read and moved as they are before rotation, in units of the
    reader's own mean and deviation, so that neither depends on where a slot stands.
    """

    place = "later"
    RANK: ClassVar[int] = 128
    """Of what is added to all layers of a slot together."""

    def __init__(
        self, lm: FrozenLM, channels: int, width: int, first: bool, calibration: Calibration
    ):
        super().__init__(lm, channels, width, first, calibration)
        numbers = torch.Size(self.shape).numel()
        self.from_state = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, self.RANK))
        self.from_cache = nn.Sequential(nn.LayerNorm(numbers), nn.Linear(numbers, self.RANK))
        self.to_cache = nn.Linear(self.RANK, numbers, bias=False)
        nn.init.zeros_(self.to_cache.weight)

    def forward(
        self, lm: FrozenLM, head: KVPrefix, slots: LatentBatch, before: KVPrefix | None
    ) -> KVPrefix:
        assert before is not None
        b, m = slots.mask.shape
        positions = before.positions[:, -m:]
        keys = turned(lm, [k[:, :, -m:].float() for k in before.keys], positions, back=True)
        values = [v[:, :, -m:].float() for v in before.values]
        both = torch.stack([torch.stack(keys), torch.stack(values)])  # 2 l b h m e
        seen = (both.permute(2, 4, 1, 0, 3, 5) - self.mean) / self.deviation  # b m l 2 h e
        thought = self.from_state(slots.states) + self.from_cache(seen.flatten(2))
        made = self.to_cache(nn.functional.gelu(thought)).view(b, m, *self.shape)
        by_key, by_value = (made * self.deviation).to(lm.dtype).permute(3, 2, 0, 4, 1, 5)
        return moved(before, turned(lm, by_key.unbind(), positions), by_value.unbind())
