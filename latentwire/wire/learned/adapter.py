"""The adapter: all that one frozen LM needs in order to read the latents of a shared wire."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from latentwire.lm import FrozenLM, KVPrefix
from latentwire.lm.soft_prompt import initial_soft_prompt
from latentwire.wire.compressed_kv import head_of
from latentwire.wire.learned.encoders.base import in_blocks, padded, transformer
from latentwire.wire.learned.injectors import INJECTORS, Calibration, LatentBatch
from latentwire.wire.windows import room_of


class Adapter(nn.Module):
    """One bidirectional layer of the reader's own, its injector, and its soft prompt."""

    def __init__(
        self,
        lm: FrozenLM,
        channels: int,
        width: int,
        block: int,
        injector: str,
        format_tokens: int,
        calibration: Calibration,
    ):
        """channels: of a code; width: of a state; block: most latents that see one another;
        calibration: of input embeddings."""
        super().__init__()
        self.lm, self.block = lm, block
        self.layer = transformer(width, 1)
        self.injector = INJECTORS[injector](lm, channels, width, calibration)
        self.format = nn.Parameter(initial_soft_prompt(lm, format_tokens).float())
        self.to(lm.device)

    @cached_property
    def head(self) -> KVPrefix:
        """The beginning of every prompt, as a cache of one row."""
        return head_of(self.lm)

    @property
    def room(self) -> int:
        """Positions that a context may take up."""
        return room_of(self.lm)

    def forward(
        self, values: Sequence[Tensor], states: Sequence[Tensor], spans: Sequence[int]
    ) -> KVPrefix:
        """Values [m, c] and states [m, w] of each context's latents as this reader's cache, the
        head before them. A span longer than the room is drawn together, evenly."""
        return self.injector(self.lm, self.head, self.slots(values, states, spans))

    def slots(
        self, values: Sequence[Tensor], states: Sequence[Tensor], spans: Sequence[int]
    ) -> LatentBatch:
        """The batch that the injector is given."""
        states = [row.to(self.format.device) for row in states]
        batch, mask = padded(in_blocks(self.layer, states, self.block))
        codes = padded([row.to(batch.device) for row in values])[0]
        fitting = torch.tensor([min(span, self.room) for span in spans], device=mask.device)
        return LatentBatch(codes, batch, mask, fitting)
