"""Both readers of the shipped shared wire at 16x, 8x and 2x, through the bytes of its messages,
beside full text, as many tokens of it, and another passage's latents; and at 1x, where every token
is a latent: what the trained residual alone is worth.

    .venv/bin/python reproduce/wire-shared/ratios.py squad_dev.jsonl

The first 100 questions of SQuAD v1.1 dev; ratios.json beside this file is what it gave. Some 45
minutes of CPU time on one thread. eval.sh has 4x, with all rows of an evaluation.
"""

import json
import statistics
import sys
from itertools import chain
from pathlib import Path

from latentwire.evals.harness import evaluate, summarise
from latentwire.files import write_whole
from latentwire.recipes.evaluation import conditions
from latentwire.recipes.readers import decode_ahead
from latentwire.tasks.qa import by_context, load_questions
from latentwire.wire.text_wire import TextWire

QUESTIONS = 100
OUT = Path(__file__).with_suffix(".json")


def main(data: str) -> None:
    """Every ratio for every reader, written as soon as it is there."""
    shared = TextWire.from_pretrained("shared")
    passages = by_context(load_questions(data, QUESTIONS))
    decode_ahead(shared, passages)
    results, text = {"data": Path(data).name, "n": QUESTIONS, "passages": len(passages)}, {}
    for ratio in (16, 8, 2, 1):
        for reader in shared.at(ratio).readers:
            rows, name = conditions(reader, passages), reader.reader
            asked = ["wire"] if ratio == 1 else ["wire", "truncated_tokens", "foreign_latents"]
            asked += [] if name in text else ["text"]
            some = {key: rows[key] for key in asked}
            answers = list(chain(*evaluate(reader.lm, reader.format, passages, some)))
            scores = {k: summarise([a for a in answers if a.condition == k]) for k in asked}
            text[name] = scores.setdefault("text", text.get(name, {}))
            kept = scores["wire"]["f1"] / scores["text"]["f1"]
            latents = statistics.fmean(reader.latents(p.context) for p in passages)
            of = {"wire": reader.id.hex(), "latents_out": latents, "retention": kept}
            results.setdefault(f"{ratio}x", {})[name] = of | {"rows": scores}
            write_whole(OUT, json.dumps(results, indent=1))
            figures = {key: f"{100 * row['f1']:.1f}" for key, row in scores.items()}
            print(ratio, name, f"keeps {kept:.0%}", figures, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
