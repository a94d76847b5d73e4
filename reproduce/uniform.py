"""Measures what uniform selection costs: the NLL of answers behind a wire whose heads compete for
slots, behind the same wire with as many in every head, and behind one that was trained so, on the
first passages of a file.

    latentwire train smollm2-4x --name smollm2-uniform --init-from default --wire.uniform \
      --ratios 4 8 --format.steps 0 --slots.steps 400 --data squad_train.jsonl \
      --mixed-precision bf16
    python reproduce/uniform.py squad_dev.jsonl runs/smollm2-uniform/wire > reproduce/uniform.txt
"""

import sys
from pathlib import Path

from latentwire import Wire
from latentwire.evals.baselines import Condition, full_text
from latentwire.evals.harness import evaluate, summarise
from latentwire.evals.metrics import paired_difference
from latentwire.tasks.qa import by_context, read_questions

PASSAGES = 40


def main(data: str, trained: str) -> None:
    """Print a row for each condition, and its paired difference to competing heads."""
    wire = Wire.from_pretrained("default")
    conditions = {
        "competing": through(wire),
        "text": full_text(wire.lm),
        "uniform": through(wire.uniform()),
        "trained": through(Wire.from_pretrained(trained, wire.lm)),
    }
    passages = by_context(read_questions(Path(data)))[:PASSAGES]
    batches = evaluate(wire.lm, wire.format, passages, conditions, answer_tokens=1)
    answers = [answer for batch in batches for answer in batch]
    rows = {name: [a for a in answers if a.condition == name] for name in conditions}
    count = len(rows["text"])
    print(f"{wire.reader} at {wire.ratio}x: {count} questions about {len(passages)} passages")
    competing = [a.nll / a.tokens for a in rows["competing"]]
    for name, row in rows.items():
        line = f"{name:10} NLL a token {summarise(row)['nll']:.3f}"
        if name != "competing":
            each = [a.nll / a.tokens for a in row]
            more = paired_difference(each, competing, [a.context for a in row])
            line += ", minus competing {mean:+.3f} ({low:+.3f} to {high:+.3f})".format(**more)
        print(line)


def through(wire: Wire) -> Condition:
    return lambda texts: wire.prefix(wire.encode(texts))


if __name__ == "__main__":
    main(*sys.argv[1:])
