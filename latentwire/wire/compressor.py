"""Compression of a text's cache: one reader's states of it become a few slots of keys and values.

A selector scores the tokens for each head, and those with the highest scores stay, at their own
positions. All heads of all layers compete for one number of slots, since a few of them look far
back and most do not, and each keeps at least one (AdaKV, Feng et al. 2024, arXiv 2407.11550;
KVzip, Kim et al. 2025, arXiv 2505.23416); a uniform selection keeps as many in each. A corrector,
where there is one, moves what stayed; without it this is eviction alone. Tokens may be named that
every head keeps beside these, whatever their scores.

    compressor = KVCompressor(lm, selector_of("key_norm"))
    latents = compressor(reading, ratio=4)          # of `Wire.read`, one CompressedKV a row
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from latentwire.lm import FrozenLM
from latentwire.lm.finite import check_finite
from latentwire.wire.compressed_kv import CompressedKV
from latentwire.wire.corrector import LayerSlots, ResidualCorrector
from latentwire.wire.folder import WireError
from latentwire.wire.selectors import Reading, Selector
from latentwire.wire.selectors.base import ranked


@dataclass(frozen=True)
class KVCompressor:
    """Turns one reader's states of texts into compressed keys and values."""

    lm: FrozenLM
    selector: Selector
    corrector: ResidualCorrector | None = None
    """None leaves the slots as the reader made them."""
    uniform: bool = False
    """Keep as many slots in every head of every layer, for engines whose caches have one length."""

    def __call__(
        self, reading: Reading, ratio: int, verbatim: Sequence[Bool[Tensor, " _"]] | None = None
    ) -> list[CompressedKV]:
        """The slots of each row: one of `ratio` tokens stays, and all of those that are verbatim,
        which are moved only in heads that would have kept them anyway. verbatim: one for each row;
        None for no token. The selector gets no gradient, the corrector does. Raises WireError where
        a score is not finite."""
        mask, sizes = reading.mask, reading.mask.sum(-1)
        with torch.no_grad():
            scores = self.selector.scores(self.lm, reading)
            check_finite({"a score of a token": scores}, WireError)
        counts = (sizes + ratio - 1) // ratio
        kept, movable = chosen(scores, mask, counts, uniform=self.uniform), None
        if verbatim is not None:
            alone, width = kept, mask.shape[1]
            named = torch.stack([pad(window, (width - len(window), 0)) for window in verbatim])
            counts = torch.minimum(counts + named.sum(-1), sizes)
            kept = chosen(scores, mask, counts, named, self.uniform)
            movable = alone | ~named[:, None]
        slots = _gathered(reading, kept, movable)
        moved = slots if self.corrector is None else self.corrector(self.lm, reading, slots)
        return _by_row(moved, mask)


def chosen(
    scores: Float[Tensor, "l b h t"],
    mask: Bool[Tensor, "b t"],
    counts: Int[Tensor, " b"],
    verbatim: Bool[Tensor, "b t"] | None = None,
    uniform: bool = False,
) -> Bool[Tensor, "l b h t"]:
    """The verbatim tokens of every head, and of all heads' others those with the highest scores,
    `counts` a head on average and at least one in each, or, uniform, `counts` in each; of each row
    by itself."""
    scores = scores.masked_fill(~mask[:, None], -torch.inf)
    if verbatim is not None:
        scores = scores.masked_fill(verbatim[:, None], torch.inf)
    if uniform:
        scores = ranked(scores, mask)
    scores = scores.scatter(-1, scores.argmax(-1, keepdim=True), torch.inf)
    flat = scores.transpose(0, 1).flatten(1)
    total = counts[:, None] * scores[:, 0, :, 0].numel()
    best = torch.arange(flat.shape[1], device=flat.device) < total
    kept = torch.zeros_like(best).scatter(
        -1, flat.argsort(dim=-1, descending=True, stable=True), best
    )
    return kept.unflatten(1, (len(scores), *scores.shape[2:])).transpose(0, 1)


def _gathered(
    reading: Reading, kept: Bool[Tensor, "l b h t"], movable: Bool[Tensor, "l b h t"] | None
) -> list[LayerSlots]:
    """The reader's own keys and values of the kept tokens, layer by layer."""
    lengths = kept.sum(-1)
    # Heads before rows, since a corrector has matrices for each head.
    places = kept.transpose(1, 2).nonzero()[:, 1:].split(lengths.sum((1, 2)).tolist())
    layers = []
    for layer, (place, k, v) in enumerate(zip(places, reading.keys, reading.values, strict=True)):
        head, row, token = place.unbind(1)
        keys, values = (x[row, head, token].float() for x in (k, v))
        moves = None if movable is None else movable[layer, row, head, token]
        layers.append(LayerSlots(head, row, token, keys, values, lengths[layer], moves))
    return layers


def _by_row(
    layers: Iterator[LayerSlots] | list[LayerSlots], mask: Bool[Tensor, "b t"]
) -> list[CompressedKV]:
    """Slots of all layers as one context for each row."""
    sizes, rows, lengths = mask.sum(-1), [[] for _ in mask], []
    for slots in layers:
        order = slots.row.argsort(stable=True)
        of_text = slots.token - (mask.shape[1] - sizes)[slots.row]
        of_rows = slots.lengths.sum(1).tolist()
        split = (x[order].split(of_rows) for x in (slots.keys, slots.values, of_text))
        for parts, row in zip(rows, zip(*split, strict=True), strict=True):
            parts.append(row)
        lengths.append(slots.lengths)
    compressed = []
    for parts, counts, span in zip(rows, torch.stack(lengths, 1), sizes.tolist(), strict=True):
        keys, values, places = (torch.cat(part) for part in zip(*parts, strict=True))
        compressed.append(CompressedKV(keys, values, places, counts, span))
    return compressed
