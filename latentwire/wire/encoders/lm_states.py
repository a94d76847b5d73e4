"""States of a frozen LM, gated over its layers, made bidirectional, pooled over windows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from latentwire.lm import FrozenLM, KVPrefix, Prompt
from latentwire.positions import sinusoids
from latentwire.wire.encoders.base import Encoder, EncoderConfig, padded, transformer
from latentwire.wire.pooling import Strided
from latentwire.wire.scorer import normed

MIXTURES = 4
"""Weighted sums over the layers that are read side by side."""


class LMStates(Encoder):
    """The LM reads the text once; a few layers of our own turn what it computed into latents."""

    def __init__(self, lm: FrozenLM, config: EncoderConfig):
        super().__init__(lm, config)
        depth = len(lm.blocks) + 1
        # Each mixture begins around a depth of its own, the first at the embeddings.
        centre = torch.linspace(0, depth - 1, MIXTURES)
        self.gates = nn.Parameter(-(torch.arange(depth)[:, None] - centre).abs() / 2)
        self.read = nn.Linear(MIXTURES * lm.width, config.width)
        self.layers = transformer(config.width, config.layers)
        self.pool = Strided(config.width, config.ratio)
        self.write = nn.Sequential(
            nn.LayerNorm(config.width), nn.Linear(config.width, config.channels)
        )

    @cached_property
    def head(self) -> KVPrefix:
        """What the LM reads before every window, as a cache of one row."""
        with torch.no_grad():
            return self.lm.prefill(Prompt.from_ids(self.lm, [self.lm.frame.head]))

    def units(self, text: str) -> Tensor:
        return self.lm.ids(text)

    def compress(self, windows: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            head = self.head.rows(torch.zeros(len(windows), dtype=torch.long).to(self.lm.device))
            prompt = Prompt.from_ids(self.lm, windows, head)
            states = self.lm.states(prompt)
        layers = normed(torch.cat([states.inputs, states.final[None]]))
        mixed = torch.einsum("lbtd,lg->btgd", layers, self.gates.softmax(0))
        rows = self.read(mixed.flatten(-2)) + sinusoids(prompt.positions, self.config.width)
        rows = self.layers(rows, src_key_padding_mask=~prompt.mask)
        pooled = [self.pool(row[-len(w) :]) for row, w in zip(rows, windows, strict=True)]
        batch, _ = padded(pooled)
        written = self.write(batch)
        return [row[-len(p) :] for row, p in zip(written, pooled, strict=True)]
