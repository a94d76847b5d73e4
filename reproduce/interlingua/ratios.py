"""Readers of the shipped latent codes at 1x to 8x, through the bytes of their messages, beside the
full text, as many of its tokens, no text, and every control.

    python reproduce/interlingua/ratios.py squad_dev.jsonl gemma3-270m gemma3-270m.json

The first 200 questions of the file. Two to five minutes a row on one thread; the same command goes
on with a run that was stopped, whose answers are in runs/interlingua. `differences` are of F1 on
the same questions: the wire's minus the row's, with 95% intervals over passages. Names of rows
after the file ("4x wire") ask for these alone.
"""

import json
import sys
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import torch

from latentwire.evals.harness import Answer, evaluate, f1_differences, summarise
from latentwire.files import write_whole
from latentwire.tasks.qa import by_context, load_questions
from latentwire.wire.evaluation import conditions
from latentwire.wire.load import load_wire

QUESTIONS = 200
ROWS = (
    *("1x wire", "4x wire", "1x mismatched_latents", "1x text", "4x truncated_tokens"),
    *("1x mean_slots", "1x zero_latents", "1x closed_book", "2x wire", "8x wire"),
    *("2x truncated_tokens", "8x truncated_tokens", "4x mismatched_latents"),
)


def main(data: str, name: str, out: str, *rows: str) -> None:
    torch.set_num_threads(1)
    passages = by_context(load_questions(data, QUESTIONS))
    wire = load_wire("interlingua")
    kept = Path("runs/interlingua") / f"{wire.reader(name).id.hex()}-{name}"
    kept.mkdir(parents=True, exist_ok=True)
    for row in rows or ROWS:
        if (path := kept / f"{row}.json").exists():
            continue
        ratio, condition = row.split("x ")
        reader = wire.at(int(ratio)).reader(name)
        some = {condition: conditions(reader, passages)[condition]}
        answers = chain(*evaluate(reader.lm, reader.format, passages, some))
        write_whole(path, json.dumps([asdict(answer) for answer in answers]))
        write_whole(Path(out), json.dumps(collected(kept, name, data), indent=1))
        print(row, flush=True)


def collected(kept: Path, name: str, data: str) -> dict:
    """All rows that were answered, and the wire's paired differences to those of its ratio."""
    given = {}
    for path in sorted(kept.glob("*.json")):
        records = json.loads(path.read_text())
        given[path.stem] = [Answer.of_record(r) for r in records]
    result = {"data": Path(data).name, "reader": name, "rows": {}, "differences": {}}
    result["rows"] = {row: summarise(answers) for row, answers in given.items()}
    result["n"] = {row: len(answers) for row, answers in given.items()}
    for row in (r for r in given if r.endswith("wire")):
        at = row.split()[0]
        beside = [r for r in given if r.split()[0] in ("1x", at) and not r.endswith("wire")]
        result["differences"][row] = {
            other: f1_differences([*given[row], *given[other]])[other.split()[1]]
            for other in beside
        }
    return result


if __name__ == "__main__":
    main(*sys.argv[1:])
