"""Readers of the shipped latent codes at 1x to 8x, through the bytes of their messages, beside the
full text, as many of its tokens, no text, and every control.

    python reproduce/interlingua/ratios.py squad_dev.jsonl gemma3-270m gemma3-270m.json

The first 200 questions of the file. Some 20 minutes on one thread for each reader. `differences`
are of F1 on the same questions: the wire's minus the row's, with 95% intervals over passages.
"""

import json
import sys
from itertools import chain
from pathlib import Path

import torch

from latentwire.evals.harness import evaluate, f1_differences, summarise
from latentwire.files import write_whole
from latentwire.tasks.qa import by_context, load_questions
from latentwire.wire.evaluation import conditions
from latentwire.wire.load import load_wire

QUESTIONS = 200
ROWS = (
    *((1, name) for name in ("wire", "text", "mismatched_latents", "mean_slots", "zero_latents")),
    *((1, "closed_book"), (4, "wire"), (4, "truncated_tokens"), (2, "wire"), (8, "wire")),
    *((2, "truncated_tokens"), (8, "truncated_tokens"), (4, "mismatched_latents")),
)


def main(data: str, name: str, out: str) -> None:
    torch.set_num_threads(1)
    passages = by_context(load_questions(data, QUESTIONS))
    wire = load_wire("interlingua")
    given = {}
    result = {"data": Path(data).name, "reader": name, "passages": len(passages), "rows": {}}
    for ratio, row in ROWS:
        reader = wire.at(ratio).reader(name)
        some = {row: conditions(reader, passages)[row]}
        given[ratio, row] = list(chain(*evaluate(reader.lm, reader.format, passages, some)))
        result["n"] = len(given[ratio, row])
        result["rows"][f"{ratio}x {row}"] = summarise(given[ratio, row])
        print(ratio, row, f"{100 * result['rows'][f'{ratio}x {row}']['f1']:.1f}", flush=True)
        result["differences"] = {}
        for at in {r for r, _ in given}:
            if (at, "wire") in given:
                rest = [a for (r, n), a in given.items() if r in (1, at) and n != "wire"]
                answers = [*given[at, "wire"], *chain(*rest)]
                result["differences"][f"{at}x"] = f1_differences(answers)
        write_whole(Path(out), json.dumps(result, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
