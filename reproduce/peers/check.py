"""Shows that press.py, which reads a text once for all presses, has the caches that kvpress's own
hooks give, of three texts at 4x.

    python check.py OUT --reader smollm2-135m
"""

from __future__ import annotations

import argparse
from logging import ERROR, getLogger
from pathlib import Path

import torch
from cells import CELLS, READERS, passages_of
from kvpress import ExpectedAttentionPress
from press import Peer, scoring_presses
from transformers import DynamicCache


@torch.no_grad()
def check(peer: Peer, passages: list[dict]) -> None:
    """Compare the caches of some texts with those of kvpress's own hooks."""
    stock = {"expected_attention": ExpectedAttentionPress()}
    for row, press in scoring_presses().items():
        if row == "random":
            continue
        for passage in passages:
            kept = peer.compressed(passage, {row: press}, [(4, row)])[4, row]
            cache = DynamicCache()
            own = stock.get(row, press)
            own.compression_ratio = 1 - (peer.kept_slots(passage, 4) + 0.5) / kept.following
            with own(peer.model):
                peer.give_rotary()
                peer.model.model(input_ids=peer.ids(passage), past_key_values=cache)
            for layer, attention, keys, mask in zip(
                cache.layers, peer.attentions, kept.keys, kept.masks, strict=True
            ):
                assert torch.equal(layer.keys, keys), row
                theirs = attention.masked_key_indices
                assert (mask is None) == (theirs is None), row
                assert mask is None or all(map(torch.equal, mask, theirs)), row
                attention.masked_key_indices = None
        print(f"{row}: the same caches as within kvpress, {len(passages)} texts", flush=True)


def main() -> None:
    """Check one reader."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--reader", choices=READERS, required=True)
    options = parser.parse_args()
    getLogger("kvpress").setLevel(ERROR)
    peer = Peer(options.out / "inputs" / options.reader)
    check(peer, passages_of(options.out, options.reader, CELLS["squad-4x-8x"])[:3])


if __name__ == "__main__":
    main()
