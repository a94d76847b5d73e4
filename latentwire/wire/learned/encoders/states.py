"""The base of encoders of an LM's states: it reads them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from latentwire.lm import FrozenLM, KVPrefix, Prompt
from latentwire.wire.compressed_kv import head_of
from latentwire.wire.learned.encoders.base import EncoderConfig, WritingEncoder, transformer, writer
from latentwire.wire.learned.pooling import sinusoids
from latentwire.wire.selectors.scorer import normed

MIXTURES = 4
"""Weighted sums over the layers that are read side by side."""


class StatesEncoder(WritingEncoder):
    """The LM reads the text once; a few layers of our own, which see both ways, read what it
    computed. Nothing in the LM gets a gradient."""

    def __init__(self, lm: FrozenLM, config: EncoderConfig):
        super().__init__(lm, config)
        depth = len(lm.blocks) + 1
        # Each mixture begins around a depth of its own, the first at the embeddings.
        centre = torch.linspace(0, depth - 1, MIXTURES)
        self.gates = nn.Parameter(-(torch.arange(depth)[:, None] - centre).abs() / 2)
        self.read = nn.Linear(MIXTURES * lm.width, config.width)
        self.layers = transformer(config.width, config.layers)
        self.write = writer(config.width, config.channels)

    @abstractmethod
    def pooled(
        self, windows: Sequence[Tensor], rows: Sequence[Float[Tensor, "_ w"]]
    ) -> list[Float[Tensor, "_ w"]]:
        """Windows of ids [n] and the states [n, w] of their tokens, as states of latents."""

    @cached_property
    def head(self) -> KVPrefix:
        """The text that the LM reads before every window, as a cache of one row."""
        return head_of(self.lm)

    def units(self, text: str) -> Tensor:
        return self.lm.tokenize(text)

    def states(self, windows: Sequence[Tensor]) -> list[Tensor]:
        head = self.head.repeat(len(windows))
        prompt = Prompt.from_ids(self.lm, windows, head)
        outputs = self.lm.states(prompt)
        layers = normed(torch.cat([outputs.inputs, outputs.final[None]]))
        mixed = torch.einsum("lbtd,lg->btgd", layers, self.gates.softmax(0))
        rows = self.read(mixed.flatten(-2)) + sinusoids(prompt.positions, self.config.width)
        rows = self.layers(rows, src_key_padding_mask=~prompt.mask)
        rows = [row[-len(w) :] for row, w in zip(rows, windows, strict=True)]
        return self.pooled(windows, rows)
