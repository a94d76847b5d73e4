"""Measures what uniform selection costs: the NLL of answers behind a wire whose heads compete for
slots, beside that of the same wire with as many in every head, on the first passages of a file.

    python reproduce/uniform.py squad_dev.jsonl | tee reproduce/uniform.txt
"""

import sys
from pathlib import Path

from latentwire import Wire
from latentwire.evals.baselines import full_text
from latentwire.evals.harness import evaluate, summarise
from latentwire.evals.metrics import paired_difference
from latentwire.tasks.qa import by_context, read_questions

PASSAGES = 12


def main() -> None:
    """Print a row for each condition, and the paired difference."""
    wire = Wire.from_pretrained("default")
    uniform = wire.uniform()
    passages = by_context(read_questions(Path(sys.argv[1])))[:PASSAGES]
    conditions = {
        "text": full_text(wire.lm),
        "competing": lambda texts: wire.prefix(wire.encode(texts)),
        "uniform": lambda texts: uniform.prefix(uniform.encode(texts)),
    }
    batches = evaluate(wire.lm, wire.format, passages, conditions, answer_tokens=1)
    answers = [answer for batch in batches for answer in batch]
    rows = {name: [a for a in answers if a.condition == name] for name in conditions}
    count = len(rows["text"])
    print(f"{wire.reader} at {wire.ratio}x: {count} questions about {len(passages)} passages")
    for name, row in rows.items():
        print(f"{name:10} NLL a token {summarise(row)['nll']:.3f}")
    even, competing = ([a.nll / a.tokens for a in rows[n]] for n in ("uniform", "competing"))
    difference = paired_difference(even, competing, [a.context for a in rows["uniform"]])
    print("uniform - competing, mean over questions {mean:+.3f}".format(**difference), end=" ")
    print("({low:+.3f} to {high:+.3f})".format(**difference))


if __name__ == "__main__":
    main()
