"""Input embeddings over which the reader runs with a small LoRA on (Hu et al. 2021, arXiv
2106.09685): it may learn to read latents, and reads everything after them as it always did."""

from __future__ import annotations

from typing import ClassVar

from latentwire.lm import FrozenLM, KVPrefix
from latentwire.lm.adapters import as_module, fresh_lora
from latentwire.wire.learned.injectors.base import Calibration, LatentBatch
from latentwire.wire.learned.injectors.embeddings import Embeddings


class Lora(Embeddings):
    """`embeddings`, run over with a LoRA in the first blocks. Zero at first, so step 0 is
    `embeddings`.

    The tensors lie in the reader's model, in float32, under a name that no other wire has; here
    they are parameters like others, so that they are trained, saved and loaded with the wire.
    """

    BLOCKS: ClassVar[int] = 4
    """First blocks of the reader that have one."""
    RANK: ClassVar[int] = 4

    def __init__(self, lm: FrozenLM, channels: int, width: int, calibration: Calibration):
        super().__init__(lm, channels, width, calibration)
        self.view = fresh_lora(lm, self.RANK, self.BLOCKS)
        self.lora = as_module(self.view)

    def forward(self, lm: FrozenLM, head: KVPrefix, slots: LatentBatch) -> KVPrefix:
        return super().forward(self.view, head, slots)
