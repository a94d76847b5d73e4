"""States of a frozen LM, gated over its layers, made bidirectional, pooled over windows."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from latentwire.lm import FrozenLM
from latentwire.wire.learned.encoders.base import EncoderConfig
from latentwire.wire.learned.encoders.states import StatesEncoder
from latentwire.wire.learned.pooling import POOLINGS


class LMStates(StatesEncoder):
    """The LM's own states, of which `config.pooling` makes fewer."""

    def __init__(self, lm: FrozenLM, config: EncoderConfig):
        super().__init__(lm, config)
        self.pool = POOLINGS[config.pooling](config.width, config.ratio)

    def pooled(self, windows: Sequence[Tensor], rows: Sequence[Tensor]) -> list[Tensor]:
        return [self.pool(row) for row in rows]
