"""Keys and values of every layer, generated from the latents: a prefix (Li and Liang 2021, arXiv
2101.00190) that depends on the text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from latentwire.lm import FrozenLM, KVPrefix
from latentwire.wire.ways_in.base import Calibration, Slots, WayIn
from latentwire.wire.ways_in.caches import moved, statistics, turned


class DeepPrefix(WayIn):
    """A linear map from a slot's state to the keys (before rotation) and values of all layers, in
    units of each channel's own mean and deviation.

    Alone, slots begin near the reader's mean key and value. After another way in they begin as what
    that one made, and the map, zero at first, moves them.
    """

    place = "any"
    mean: Tensor
    deviation: Tensor

    def __init__(
        self, lm: FrozenLM, channels: int, width: int, first: bool, calibration: Calibration
    ):
        super().__init__(lm, channels, width, first, calibration)
        self.shape = (len(lm.blocks), 2, *lm.kv_shape)
        self.first = first
        self.norm = nn.LayerNorm(width)
        self.map = nn.Linear(width, torch.Size(self.shape).numel(), bias=False)
        nn.init.normal_(self.map.weight, std=0.5 / width**0.5 if first else 0.0)
        self.register_buffer("mean", torch.zeros(self.shape))
        self.register_buffer("deviation", torch.ones(self.shape))

    def forward(
        self, lm: FrozenLM, head: KVPrefix, slots: Slots, before: KVPrefix | None
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

    @torch.no_grad()
    def calibrate(
        self,
        lm: FrozenLM,
        texts: Sequence[str],
        values: Sequence[Float[Tensor, "_ c"]],
        units: Sequence[float],
    ) -> None:
        mean, deviation = statistics(lm, texts)
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)
