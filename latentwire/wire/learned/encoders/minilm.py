"""Token states of a frozen sentence encoder, read by learned queries: it needs no LM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from latentwire.lm import FrozenLM
from latentwire.lm.sentences import SentenceEncoder
from latentwire.positions import sinusoids
from latentwire.wire.folder import WireError
from latentwire.wire.learned.encoders.base import (
    EncoderConfig,
    WritingEncoder,
    padded,
    transformer,
    writer,
)
from latentwire.wire.learned.pooling import Queries


class MiniLM(WritingEncoder):
    """A sentence encoder's states, bidirectional layers, queries.

    Its units are word pieces. They fold case and accents and have one id for all that they do not
    know, so names come back without capitals at best, and emoji not at all; no text is refused for
    it, as none is for what latents lose.
    """

    lm_units = False

    def __init__(self, lm: FrozenLM, config: EncoderConfig):
        super().__init__(lm, config)
        self.sentences = SentenceEncoder.from_pretrained(config.sentence_encoder, lm.device)
        if self.sentences.room < config.ratio:
            raise WireError(
                f"ratio is {config.ratio}; {config.sentence_encoder} reads "
                f"{self.sentences.room} tokens at a time"
            )
        self.read = nn.Linear(self.sentences.width, config.width)
        self.layers = transformer(config.width, config.layers)
        self.pool = Queries(config.width, config.ratio)
        self.write = writer(config.width, config.channels)

    @property
    def others(self) -> Mapping[str, SentenceEncoder]:
        return {self.config.sentence_encoder: self.sentences}

    @property
    def per_window(self) -> int:
        room = self.sentences.room
        return min(self.config.window, room - room % self.config.ratio)

    def units(self, text: str) -> Tensor:
        return self.sentences.tokenize(text)

    def states(self, windows: Sequence[Tensor]) -> list[Tensor]:
        batch, mask = padded([states[1:-1] for states in self.sentences.states(windows)])
        places = (mask.long().cumsum(1) - 1).clamp(min=0)
        rows = self.read(batch) + sinusoids(places, self.config.width)
        rows = self.layers(rows, src_key_padding_mask=~mask)
        both = zip(rows, windows, strict=True)
        return [self.pool(row[-len(window) :]) for row, window in both]
