"""A transformer over UTF-8 bytes with learned-query pooling: it needs no LM and no tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latentwire.lm import FrozenLM
from latentwire.wire.learned.encoders.base import (
    EncoderConfig,
    WritingEncoder,
    padded,
    transformer,
    writer,
)
from latentwire.wire.learned.pooling import Queries, sinusoids

BYTES_PER_TOKEN = 4
"""About what a tokenizer makes of English; it sets how many latents a text gets."""


class UTF8(WritingEncoder):
    """Bytes, a convolution that sees the neighbours of each, bidirectional layers, queries."""

    lm_units = False

    def __init__(self, lm: FrozenLM, config: EncoderConfig):
        super().__init__(lm, config)
        self.embed = nn.Embedding(256, config.width)
        self.near = nn.Conv1d(config.width, config.width, 5, padding=2)
        self.layers = transformer(config.width, config.layers)
        self.pool = Queries(config.width, self.per_latent)
        self.write = writer(config.width, config.channels)

    @property
    def per_latent(self) -> int:
        return BYTES_PER_TOKEN * self.config.ratio

    def units(self, text: str) -> Tensor:
        data = torch.frombuffer(bytearray(text.encode() or b"\0"), dtype=torch.uint8)
        return data[: len(text.encode())].long().to(self.embed.weight.device)

    def states(self, windows: Sequence[Tensor]) -> list[Tensor]:
        ids, mask = padded(windows)
        places = (mask.long().cumsum(1) - 1).clamp(min=0)
        rows = self.embed(ids) * mask[..., None]
        rows = rows + torch.nn.functional.gelu(self.near(rows.mT).mT)
        rows = self.layers(rows + sinusoids(places, self.config.width), src_key_padding_mask=~mask)
        both = zip(rows, windows, strict=True)
        return [self.pool(row[-len(window) :]) for row, window in both]
