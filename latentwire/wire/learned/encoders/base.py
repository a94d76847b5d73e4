"""The base of every encoder of a shared wire, and the layers that encoders share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from latentwire.lm import FrozenLM
from latentwire.lm.sentences import SentenceEncoder


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of an encoder."""

    ratio: int = 4
    """Tokens in per latent out; of bytes, four times as many."""
    window: int = 512
    """Most tokens that are encoded together; longer texts are cut into windows."""
    channels: int = 8
    """Numbers in a latent."""
    width: int = 384
    """Width of the states inside."""
    layers: int = 2
    """Bidirectional layers."""
    pooling: str = "strided"
    """strided, windows, queries or hierarchical, of lm_states; the others have one of their own."""
    sentence_encoder: str = "all-minilm-l6-v2"
    """Zoo name, Hugging Face id or folder of the sentence encoder that anchor reads."""


class Encoder(nn.Module, ABC):
    """Texts to latents. One encoder sends for all readers, so it is never told who reads."""

    learns: ClassVar[bool] = True
    """Says that something in it is trained by gradient."""
    lm_units: ClassVar[bool] = True
    """Says that units are the LM's token ids, which must hold all of a text."""

    def __init__(self, lm: FrozenLM, config: EncoderConfig):
        super().__init__()
        self.lm, self.config = lm, config

    @abstractmethod
    def units(self, text: str) -> Tensor:
        """Token ids or bytes [n], n >= 0, of which windows are cut."""

    @property
    def others(self) -> Mapping[str, SentenceEncoder]:
        """Frozen models that it reads beside the LM, by name."""
        return {}

    @property
    def per_latent(self) -> int:
        """Units that a latent stands for."""
        return self.config.ratio

    @property
    def per_window(self) -> int:
        """Units of a whole window."""
        return self.config.window * (self.per_latent // self.config.ratio)

    @abstractmethod
    def compress(self, windows: Sequence[Tensor]) -> list[Float[Tensor, "_ c"]]:
        """Windows of units [n] as latents, ceil(n / per_latent) of each; not yet bounded."""

    def fit(self, texts: Sequence[str]) -> None:
        """Compute from training texts what has a closed form, before any step."""

    def lengths(self, text: str) -> list[int]:
        """Latents of each window of a text."""
        units, most = len(self.units(text)), self.per_window
        sizes = [min(most, units - start) for start in range(0, units, most)]
        return [math.ceil(n / self.per_latent) for n in sizes]

    def span(self, text: str) -> int:
        """Positions that the text takes up in a reader: about its tokens."""
        return math.ceil(len(self.units(text)) * self.config.ratio / self.per_latent)

    def forward(self, texts: Sequence[str]) -> list[Float[Tensor, "_ c"]]:
        """Latents of each text, its windows one after another."""
        cut = [self.units(text).split(self.per_window) for text in texts]
        made = iter(self.compress([window for windows in cut for window in windows]))
        return [torch.cat([next(made) for _ in windows]) for windows in cut]


class WritingEncoder(Encoder):
    """An encoder that makes states of latents, and writes channels from them."""

    write: nn.Sequential

    @abstractmethod
    def states(self, windows: Sequence[Tensor]) -> list[Float[Tensor, "_ w"]]:
        """Windows of units [n] as states of latents, ceil(n / per_latent) of each."""

    def compress(self, windows: Sequence[Tensor]) -> list[Float[Tensor, "_ c"]]:
        rows = self.states(windows)
        return list(self.write(torch.cat(rows)).split([len(row) for row in rows]))


def writer(width: int, channels: int) -> nn.Sequential:
    """From states of latents to their channels."""
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, channels))


def padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows [n, ...] as one batch [b, n, ...] with zeros on the left, and its mask [b, n]."""
    width = max(len(row) for row in rows)
    batch = torch.stack([torch.cat([r.new_zeros(width - len(r), *r.shape[1:]), r]) for r in rows])
    lengths = torch.tensor([len(row) for row in rows], device=batch.device)
    return batch, torch.arange(width, device=batch.device)[None] >= width - lengths[:, None]


def transformer(width: int, layers: int) -> nn.TransformerEncoder:
    """Bidirectional pre-norm layers (Vaswani et al. 2017, arXiv 1706.03762), heads of 64."""
    layer = nn.TransformerEncoderLayer(
        width,
        max(1, width // 64),
        2 * width,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=True,
    )
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


def in_blocks(layers: nn.TransformerEncoder, rows: Sequence[Tensor], size: int) -> list[Tensor]:
    """Rows [n, w] through bidirectional layers, blocks of up to `size` each on its own: so a long
    text is read as training's short ones were."""
    blocks = [row.split(size) for row in rows]
    batch, mask = padded([block for row in blocks for block in row])
    out = layers(batch, src_key_padding_mask=~mask)
    made = iter(zip(out, mask.sum(1).tolist(), strict=True))
    taken = [[next(made) for _ in row] for row in blocks]
    return [torch.cat([states[-n:] for states, n in row]) for row in taken]
