"""A second look: the reader runs over the slots, and what it made of them refines them."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from latentwire.lm import FrozenLM, KVPrefix
from latentwire.wire.learned.encoders.base import in_blocks, padded, transformer
from latentwire.wire.learned.injectors.base import Calibration, LatentBatch
from latentwire.wire.learned.injectors.embeddings import Embeddings, run_over, slots_prompt


class Refiner(Embeddings):
    """`embeddings`, run over twice. A few bidirectional layers read the slots' states with the
    reader's own last states over them, and move the input embeddings by a residual; the second run
    is the cache. The residual is zero at first, so step 0 is `embeddings`.

    A causal reader makes a slot's state without the slots behind it; here each is corrected with
    all of them seen. `coprocessor` moves what came out, slot by slot; this moves what goes in.
    """

    LAYERS: ClassVar[int] = 2

    def __init__(
        self, lm: FrozenLM, channels: int, width: int, first: bool, calibration: Calibration
    ):
        super().__init__(lm, channels, width, first, calibration)
        self.seen = nn.Sequential(nn.LayerNorm(lm.width), nn.Linear(lm.width, width))
        self.layers = transformer(width, self.LAYERS)
        self.correction = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, lm.width))
        for parameter in self.correction[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, lm: FrozenLM, head: KVPrefix, slots: LatentBatch, before: KVPrefix | None
    ) -> KVPrefix:
        embeds = self.embeds(slots)
        looked = lm.last_hidden(slots_prompt(lm, head, slots, embeds)).float()
        both = slots.states + self.seen(looked)
        rows = [row[mask] for row, mask in zip(both, slots.mask, strict=True)]
        refined = padded(in_blocks(self.layers, rows, slots.block))[0]
        by = self.deviation * self.correction(refined)
        return run_over(lm, head, slots, embeds + by)
