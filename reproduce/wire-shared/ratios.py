"""Both readers of the shipped shared wire at 16x, 8x, 4x and 2x, through the bytes of its messages,
beside full text, as many tokens of it, another passage's latents, and the same slots without the
trained residual (eviction from the cache alone); and at 1x, where every token is a latent: what the
residual alone is worth.

    .venv/bin/python reproduce/wire-shared/ratios.py squad_dev.jsonl

The first 200 questions of the file; ratios.json beside this file is what it gave. Some 50 minutes
of CPU time on one thread. eval.sh has 4x, with all rows of an evaluation.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from latentwire.evals.harness import evaluate, summarise
from latentwire.files import write_whole
from latentwire.tasks.qa import by_context, load_questions
from latentwire.wire.evaluation import conditions
from latentwire.wire.joint import decode_ahead
from latentwire.wire.text_wire import TextReader, TextWire

QUESTIONS = 200
OUT = Path(__file__).with_suffix(".json")
BESIDE = ("wire", "evicted", "truncated_tokens", "mismatched_latents")
ROWS = {16: BESIDE, 8: BESIDE, 4: BESIDE, 2: BESIDE, 1: ("wire", "text")}


def scores_of(reader: TextReader, passages: Sequence, rows: Sequence[str]) -> dict[str, dict]:
    """Some rows of an evaluation of one reader."""
    every, scores = conditions(reader, passages), {}
    for name in rows:
        answers = chain(*evaluate(reader.lm, reader.format, passages, {name: every[name]}))
        scores[name] = summarise(list(answers))
    return scores


def main(data: str, only: str | None = None) -> None:
    """Every ratio for every reader, or for the one named, written as soon as it is there."""
    shared = TextWire.from_pretrained("shared")
    passages = by_context(load_questions(data, QUESTIONS))
    decode_ahead(shared, passages)
    results = {"data": Path(data).name, "n": QUESTIONS, "passages": len(passages)}
    for ratio, rows in ROWS.items():
        for reader in shared.at(ratio).readers:
            if only not in (None, reader.reader):
                continue
            scores = scores_of(reader, passages, rows)
            latents = statistics.fmean(reader.latents(p.context) for p in passages)
            of = {"wire": reader.id.hex(), "latents_out": latents, "rows": scores}
            results.setdefault(f"{ratio}x", {})[reader.reader] = of
            write_whole(OUT, json.dumps(results, indent=1))
            figures = {key: f"{100 * row['f1']:.1f}" for key, row in scores.items()}
            print(ratio, reader.reader, figures, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
