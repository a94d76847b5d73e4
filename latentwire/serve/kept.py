"""Finds the tokens of a text that its latents hold."""

from __future__ import annotations

from typing import Any

import torch

from latentwire.lm import KVPrefix
from latentwire.wire.codes.wire import CodeWire


def kept_tokens(wire: Any, prefix: KVPrefix, text: str) -> list[tuple[str, float]] | None:
    """A text in pieces, one for each token, with the share of all heads of all layers that kept a
    slot for it; None where windows of a long text overlap, so that a position is several tokens'.

    prefix: what the wire's first reader makes of it.
    """
    lm = wire.source if isinstance(wire, CodeWire) else wire.readers[0].lm
    begins = lm.offsets(text)[:, 0].tolist()
    span = int(prefix.next_position) - len(prefix)
    if span != len(begins):
        return None
    positions = torch.cat([slots.positions for slots in prefix.ragged]) - len(prefix)
    heads = sum(slots.lengths.numel() for slots in prefix.ragged)
    shares = (positions.bincount(minlength=span) / heads).tolist()
    ends = [*begins[1:], len(text)]
    begins[0] = 0
    return [(text[a:b], round(share, 4)) for a, b, share in zip(begins, ends, shares, strict=True)]
