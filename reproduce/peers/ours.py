"""Answers of the shipped wires, and of each selector alone, to the inputs of inputs.py.

    python ours.py OUT --cell squad-4x-8x --reader smollm2-135m

The text is read once for all rows and ratios. Slots are used as they are computed, without codes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from cells import CELLS, READERS, Records, batches, passages_of, rows_at, timed
from inputs import wire_of
from torch import Tensor

from latentwire.evals.baselines import full_text
from latentwire.lm import FrozenLM, KVPrefix
from latentwire.tasks.qa import answers, with_soft_prompt
from latentwire.wire.compressed_kv import CompressedKV
from latentwire.wire.selectors import SELECTORS, Reading, Selector, selector_of
from latentwire.wire.wire import Wire

TEXT, WIRE, SCORER = "text", "wire", "scorer"


class Remembered(Selector):
    """A selector that scores a reading once for all ratios."""

    def __init__(self, selector: Selector):
        self.selector, self.reading, self.known = selector, None, torch.empty(0)

    def scores(self, lm: FrozenLM, reading: Reading) -> Tensor:
        if reading is not self.reading:
            self.reading, self.known = reading, self.selector.scores(lm, reading)
        return self.known


def read_once(wire: Wire) -> None:
    """Have a wire, and the copies of it that are made later, remember the last reading."""
    read, known = wire.read, {}

    def remembered(pieces, starts) -> Reading:
        key = tuple(tuple(piece.tolist()) for piece in pieces), tuple(starts)
        if key not in known:
            known.clear()
            known[key] = read(pieces, starts)
        return known[key]

    wire.read = remembered


def rows_of(wire: Wire) -> dict[str, Wire]:
    """The wire, and eviction alone by its scorer and by every other selector."""
    alone = {name: wire.evicting(Remembered(selector_of(name))) for name in SELECTORS}
    return {WIRE: wire, SCORER: wire.evicting(), **alone}


def held(wire: Wire, latents: CompressedKV) -> dict[str, int]:
    """Slots of all heads and layers with the prompt's head, and the bytes of keys and values."""
    layers, (heads, width) = len(wire.lm.blocks), wire.lm.kv_shape
    slots = len(latents.keys) + layers * heads * len(wire.lm.frame.prefix)
    return {"slots": slots, "bytes": slots * 2 * width * latents.keys.element_size()}


def answered(
    wire: Wire, prefix: KVPrefix, soft: Tensor | None, batch: list[dict]
) -> list[list[str]]:
    """Answers to the questions of each passage of a batch."""
    owner = torch.tensor([row for row, p in enumerate(batch) for _ in p["questions"]])
    asked = [q["question"] for p in batch for q in p["questions"]]
    prefix = with_soft_prompt(wire.lm, soft, prefix).rows(owner)
    texts = iter(answers(wire.lm, asked, prefix, batch[0]["budget"]))
    return [[next(texts) for _ in p["questions"]] for p in batch]


@torch.no_grad()
def main() -> None:
    """Answer one cell for one reader, as far as it is not answered yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cell", choices=CELLS, required=True)
    parser.add_argument("--reader", choices=READERS, required=True)
    parser.add_argument("--batches", type=int, help="answer the first of them alone")
    options = parser.parse_args()
    cell, reader = CELLS[options.cell], options.reader
    wire, records = wire_of(reader), Records(options.out / "latentwire.jsonl")
    read_once(wire)
    rows, soft = rows_of(wire), wire.format.detach() if cell.soft else None
    parts = batches(passages_of(options.out, reader, cell))[: options.batches]
    for batch in timed(parts, f"latentwire {options.cell} {reader}"):
        wanted = [
            (ratio, row)
            for ratio in cell.ratios
            for row in rows_at(cell, ratio, "latentwire", TEXT, rows)
            if records.missing(cell, reader, ratio, row, batch)
        ]
        begin = time.process_time()
        caches: dict[tuple[int, str], list[CompressedKV]] = {key: [] for key in wanted}
        for passage in batch:  # one at a time, so that it is read once for all rows
            for ratio, row in wanted:
                if row != TEXT:
                    caches[ratio, row] += rows[row].at(ratio).encode([passage["context"]])
        print(f"caches: {time.process_time() - begin:.1f} s", flush=True)
        for ratio, row in wanted:
            begin = time.process_time()
            latents = caches[ratio, row]
            if row == TEXT:
                prefix = full_text(wire.lm)([passage["context"] for passage in batch])
                sizes = [held_by_text(wire, passage) for passage in batch]
            else:
                prefix = wire.prefix(latents)
                sizes = [held(wire, one) for one in latents]
            texts = answered(wire, prefix, soft, batch)
            spent = (time.process_time() - begin) / len(batch)
            records.add(cell, reader, ratio, row, [
                {"passage": passage["passage"], "answers": said, **size, "cpu": round(spent, 3)}
                for passage, said, size in zip(batch, texts, sizes, strict=True)
            ])  # fmt: skip


def held_by_text(wire: Wire, passage: dict) -> dict[str, int]:
    """What the cache of a whole text holds."""
    layers, (heads, width) = len(wire.lm.blocks), wire.lm.kv_shape
    slots = layers * heads * (len(passage["ids"]) + len(wire.lm.frame.prefix))
    return {"slots": slots, "bytes": slots * 2 * width * 4}


if __name__ == "__main__":
    main()
