"""Tokens drawn at random stay: the floor that any selector must be above."""

from __future__ import annotations

import hashlib

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from latentwire.lm import FrozenLM
from latentwire.wire.selectors.base import Reading, Selector, ranked


class Random(Selector):
    """Draws for each head by itself, as many in each. The text is the seed."""

    def scores(self, lm: FrozenLM, reading: Reading) -> Float[Tensor, "l b h t"]:
        layers, heads, width = len(lm.blocks), lm.kv_shape[0], reading.mask.shape[1]
        rows = []
        for ids in reading.ids:
            digest = hashlib.sha256(repr(ids.tolist()).encode()).digest()
            seeded = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
            drawn = torch.rand(layers, heads, len(ids), generator=seeded)
            rows.append(pad(drawn, (width - len(ids), 0)))
        return ranked(torch.stack(rows, 1).to(lm.device), reading.mask)
