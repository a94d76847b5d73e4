"""Latents that are private to one reader of a shared wire: which of a message's they are, and what
writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from latentwire.wire.learned.encoders.base import padded, writer
from latentwire.wire.message import MessageError


@dataclass(frozen=True)
class Layout:
    """How latents stand in a row: window by window, those that all readers share, then those of
    each owner. Only the last window may have fewer shared ones than the others."""

    block: int
    """Shared latents of a whole window."""
    private: int
    """Latents of one owner in each window."""
    owners: int
    """Readers that own some: the first ones."""

    @property
    def behind(self) -> int:
        """Private latents of a window."""
        return self.private * self.owners

    @property
    def size(self) -> int:
        """Latents of a whole window."""
        return self.block + self.behind

    def count(self, windows: Sequence[int]) -> int:
        """Latents of a row, given the shared ones of each window."""
        return sum(windows) + self.behind * len(windows)

    def check(self, count: int) -> None:
        """Raises MessageError for a number of latents that no text gives."""
        if -count % self.size >= self.block:
            raise MessageError(
                f"message has {count} latents; expected windows of {self.size}, the last one with "
                f"at least one before its {self.behind} private ones"
            )

    def places(self, count: int) -> Int[Tensor, " m"]:
        """Place of each latent of a row in a whole window; private ones stand from `block` on,
        however few are before them."""
        missing = -count % self.size
        places = torch.arange(self.size).repeat((count + missing) // self.size)
        private = len(places) - self.behind  # where those of the last window begin
        return torch.cat([places[: private - missing], places[private:]])

    def shared(self, rows: Tensor) -> Tensor:
        """Of a row's latents [m, ...] those that all readers share."""
        return rows[self.places(len(rows)) < self.block]

    def heard(self, rows: Tensor, reader: int) -> Tensor:
        """Of a row's latents [m, ...] those that a reader gets: shared ones and its own."""
        first = self.block + self.private * reader
        places = self.places(len(rows))
        own = (first <= places) & (places < first + self.private)
        return rows[(places < self.block) | own]

    def of(self, reader: int) -> Layout:
        """Of what a reader gets."""
        return replace(self, owners=int(reader < self.owners))


class Private(nn.Module):
    """The private latents of one owner: learned queries that attend to the states of a window's
    latents, and a map of its own to channels."""

    def __init__(self, width: int, channels: int, count: int):
        super().__init__()
        self.query = nn.Parameter(torch.randn(count, width))
        self.attention = nn.MultiheadAttention(width, max(1, width // 64), batch_first=True)
        self.write = writer(width, channels)

    def forward(self, rows: Sequence[Float[Tensor, "_ w"]]) -> Float[Tensor, "b p c"]:
        """rows: states of each window's latents."""
        states, mask = padded(rows)
        query = self.query.expand(len(rows), -1, -1)
        read, _ = self.attention(query, states, states, ~mask, need_weights=False)
        return self.write(read)
