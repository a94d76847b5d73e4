"""An interlingua around an anchor: one vector says what a window is about, and each latent how it
differs at its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from latentwire.lm import FrozenLM
from latentwire.lm.sentences import SentenceEncoder
from latentwire.wire.learned.encoders.base import EncoderConfig
from latentwire.wire.learned.encoders.states import StatesEncoder
from latentwire.wire.learned.pooling import Queries


class Anchor(StatesEncoder):
    """Every query begins at its window's anchor, a projection of a frozen sentence encoder's
    vector, and attends to the LM's states: a latent is the anchor, its place and what it read.

    `read`, through which the states come, is this LM's own; the anchor is the same whatever the LM.
    """

    def __init__(self, lm: FrozenLM, config: EncoderConfig):
        super().__init__(lm, config)
        self.sentences = SentenceEncoder.from_pretrained(config.sentence_encoder, lm.device)
        self.anchor = nn.Linear(self.sentences.width, config.width)
        self.pool = Queries(config.width, config.ratio)

    @property
    def others(self) -> Mapping[str, SentenceEncoder]:
        return {self.config.sentence_encoder: self.sentences}

    def pooled(self, windows: Sequence[Tensor], rows: Sequence[Tensor]) -> list[Tensor]:
        vectors = self.sentences.vectors([self.lm.detokenize(ids) for ids in windows])
        anchors = self.anchor(vectors * self.sentences.width**0.5)  # at a root mean square of 1
        return [self.pool(row, anchor) for row, anchor in zip(rows, anchors, strict=True)]
