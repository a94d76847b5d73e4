"""Latents as input embeddings, which the reader runs over itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latentwire.lm import FrozenLM, KVPrefix, Prompt
from latentwire.lm.prompt import Span
from latentwire.wire.ways_in.base import Slots, WayIn


class Embeddings(WayIn):
    """An MLP to the reader's width, in units of each channel's own mean and deviation."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, lm: FrozenLM, width: int, first: bool):
        super().__init__(lm, width, first)
        self.map = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(),
            nn.Linear(2 * width, lm.width),
        )  # fmt: skip
        self.register_buffer("mean", torch.zeros(lm.width))
        self.register_buffer("deviation", torch.ones(lm.width))

    def forward(
        self, lm: FrozenLM, head: KVPrefix, slots: Slots, before: KVPrefix | None
    ) -> KVPrefix:
        embeds = self.mean + self.deviation * self.map(slots.states)
        rows = [
            [Span(row[-n:], span)]
            for row, n, span in zip(
                embeds, slots.mask.sum(1).tolist(), slots.spans.tolist(), strict=True
            )
        ]
        # A row goes on after its span, which may end behind the last slot's centre.
        end = int(head.next_position[0]) + slots.spans
        start = head.rows(torch.zeros(len(rows), dtype=torch.long, device=end.device))
        made = lm.prefill(Prompt.of(lm, rows, start))
        return KVPrefix(made.keys, made.values, made.mask, made.positions, end)

    @torch.no_grad()
    def calibrate(self, lm: FrozenLM, texts: Sequence[str]) -> None:
        embeds = lm.embed(torch.cat([lm.ids(text) for text in texts])).float()
        self.mean.copy_(embeds.mean(0))
        self.deviation.copy_(embeds.std(0))
