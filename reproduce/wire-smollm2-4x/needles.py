"""Twelve-digit numbers and UUIDs hidden in passages, and copied from the latents: the shipped wire
at each ratio, as it is and with the rule that keeps such spans as text.

    .venv/bin/python reproduce/wire-smollm2-4x/needles.py squad_dev.jsonl number    # or uuid

The passages of the first 24 questions of SQuAD v1.1 dev, under four of an evaluation's conditions;
needles-number.json and needles-uuid.json beside this file are what it gave. Some 20 minutes of CPU
time on one thread.
"""

import json
import statistics
import sys
from itertools import chain
from pathlib import Path

from latentwire.evals.harness import evaluate, summarise
from latentwire.files import write_whole
from latentwire.wire.evaluation import conditions, load_passages
from latentwire.wire.wire import Wire

QUESTIONS, RATIOS = 24, (2, 4, 8, 16)
KEEP = {"number": "numbers", "uuid": "names"}


def main(data: str, kind: str) -> None:
    """One kind at every ratio, written as soon as it is there."""
    results, default = [], Wire.from_pretrained("default")
    passages, answer_tokens = load_passages(data, QUESTIONS, kind)
    for ratio in RATIOS:
        for keep in (None, KEEP[kind]):
            wire = default.at(ratio).keeping(keep)
            rows = conditions(wire, passages)
            asked = ["wire"]
            if keep is None:
                asked += ["truncated_tokens"]
            if keep is None and ratio == RATIOS[0]:  # the text is the same at all ratios
                asked += ["text", "mismatched_latents"]
            some = {name: rows[name] for name in asked}
            made = evaluate(wire.lm, wire.format, passages, some, answer_tokens)
            answers = list(chain.from_iterable(made))
            result = {
                "wire": wire.id.hex(),
                "needles": kind,
                "ratio": ratio,
                "keep": keep,
                "n": len(passages),
                "latents_out": statistics.fmean(wire.latents(p.context) for p in passages),
                "rows": {
                    name: summarise([a for a in answers if a.condition == name]) for name in asked
                },
            }
            results.append(result)
            write_whole(
                Path(__file__).with_name(f"needles-{kind}.json"), json.dumps(results, indent=1)
            )
            exact = {name: f"{100 * row['em']:.0f}" for name, row in result["rows"].items()}
            print(kind, ratio, keep, f"{result['latents_out']:.0f} latents", exact, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
