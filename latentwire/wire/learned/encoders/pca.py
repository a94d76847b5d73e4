"""Principal components of input embeddings: a baseline in which nothing is learned by gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latentwire.lm import FrozenLM
from latentwire.lm.devices import precise
from latentwire.wire.learned.encoders.base import Encoder, EncoderConfig
from latentwire.wire.learned.pooling import Strided


class PCA(Encoder):
    """The means of windows of embeddings, on their first components, each at a variance of 1."""

    learns = False
    mean: Tensor
    components: Tensor

    def __init__(self, lm: FrozenLM, config: EncoderConfig):
        super().__init__(lm, config)
        self.pool = Strided(lm.width, config.ratio).requires_grad_(False)
        self.register_buffer("mean", torch.zeros(lm.width))
        self.register_buffer("components", torch.zeros(lm.width, config.channels))

    def units(self, text: str) -> Tensor:
        return self.lm.tokenize(text)

    @torch.no_grad()
    def compress(self, windows: Sequence[Tensor]) -> list[Tensor]:
        return [(p - self.mean) @ self.components for p in self._pooled(windows)]

    @torch.no_grad()
    def fit(self, texts: Sequence[str]) -> None:
        """Mean and components of training texts, never of an evaluation's. Raises ValueError where
        they have fewer windows than there are channels."""
        rows = precise(torch.cat(self._pooled([self.units(t) for t in texts])))
        if len(rows) <= self.config.channels:
            raise ValueError(
                f"{len(texts)} texts have {len(rows)} windows; expected more than the "
                f"{self.config.channels} channels"
            )
        self.mean.copy_(rows.mean(0))
        _, spread, axes = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
        deviation = (spread / len(rows) ** 0.5).clamp(min=1e-6)
        self.components.copy_((axes / deviation[:, None])[: self.config.channels].T)

    def _pooled(self, windows: Sequence[Tensor]) -> list[Tensor]:
        return [self.pool(self.lm.embed(ids).float()) for ids in windows]
