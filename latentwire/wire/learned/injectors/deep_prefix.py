"""Keys and values of every layer, generated from the latents: a prefix (Li and Liang 2021, arXiv
2101.00190) that depends on the text."""

from __future__ import annotations

import torch
from torch import nn

from latentwire.lm import FrozenLM, KVPrefix
from latentwire.wire.learned.injectors.base import Calibration, LatentBatch
from latentwire.wire.learned.injectors.caches import CacheInjector, moved, turned


class DeepPrefix(CacheInjector):
    """A linear map from a slot's state to the keys (before rotation) and values of all layers, in
    units of each channel's own mean and deviation.

    Alone, slots begin near the reader's mean key and value. After another injector they begin as
    what that one made, and the map, zero at first, moves them.
    """

    place = "any"

    def __init__(
        self, lm: FrozenLM, channels: int, width: int, first: bool, calibration: Calibration
    ):
        super().__init__(lm, channels, width, first, calibration)
        self.first = first
        self.norm = nn.LayerNorm(width)
        self.map = nn.Linear(width, torch.Size(self.shape).numel(), bias=False)
        nn.init.normal_(self.map.weight, std=0.5 / width**0.5 if first else 0.0)

    def forward(
        self, lm: FrozenLM, head: KVPrefix, slots: LatentBatch, before: KVPrefix | None
    ) -> KVPrefix:
        b, m = slots.mask.shape
        made = self.map(self.norm(slots.states)).view(b, m, *self.shape) * self.deviation
        if self.first:
            made = made + self.mean
        raw, values = made.to(lm.dtype).permute(3, 2, 0, 4, 1, 5)  # 2 l b h m e
        start = int(head.next_position[0])
        positions = start + slots.positions
        keys = turned(lm, raw.unbind(), positions)
        if before is not None:
            return moved(before, keys, values.unbind())
        end = start + slots.spans
        first = head.rows(torch.zeros(b, dtype=torch.long, device=end.device))
        return KVPrefix(
            tuple(torch.cat([h, k], 2) for h, k in zip(first.keys, keys, strict=True)),
            tuple(torch.cat([h, v], 2) for h, v in zip(first.values, values, strict=True)),
            torch.cat([first.mask, slots.mask], 1),
            torch.cat([first.positions, positions * slots.mask], 1),
            end,
        )
