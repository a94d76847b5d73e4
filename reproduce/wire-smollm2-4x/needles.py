"""Twelve-digit numbers and UUIDs hidden in passages, and copied from the latents: the shipped wire
at each ratio, as it is and with the rule that keeps such spans as text.

    .venv/bin/python reproduce/wire-smollm2-4x/needles.py squad_dev.jsonl

The passages of the first 24 questions of SQuAD v1.1 dev; needles.json beside this file is what it
gave. Some 45 minutes of CPU time on one thread.
"""

import json
import sys
from pathlib import Path

from latentwire.files import write_whole
from latentwire.recipes.evaluation import evaluate_wire
from latentwire.wire.load import load_with

QUESTIONS = 24
KEEP = {"number": "numbers", "uuid": "names"}
OUT = Path(__file__).with_suffix(".json")


def main(data: str) -> None:
    """Every kind at every ratio, written as soon as it is there."""
    results = []
    for kind, rule in KEEP.items():
        for ratio in (2, 4, 8, 16):
            for keep in (None, rule):
                wire = load_with("default", ratio, keep)
                result = evaluate_wire(wire, data, QUESTIONS, needles=kind)
                results.append({"keep": keep, **result})
                write_whole(OUT, json.dumps(results, indent=1))
                exact = {name: f"{100 * row['em']:.0f}" for name, row in result["rows"].items()}
                print(kind, ratio, keep, f"{result['latents_out']:.0f} latents", exact, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
