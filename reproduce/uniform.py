"""Measures what uniform selection costs: answers from a wire whose heads compete for slots beside
those of the same wire with as many in every head, on the first passages of a file.

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
    """Print a row for each condition, and the paired differences."""
    wire = Wire.from_pretrained("default")
    uniform = wire.uniform()
    passages = by_context(read_questions(Path(sys.argv[1])))[:PASSAGES]

    def latents(compressing):
        return lambda texts: wire.prefix(compressing.encode(texts))

    conditions = {
        "text": full_text(wire.lm),
        "competing": latents(wire),
        "uniform": latents(uniform),
        "competing, no residual": latents(wire.evicting()),
        "uniform, no residual": latents(uniform.evicting()),
    }
    batches = evaluate(wire.lm, wire.format, passages, conditions)
    answers = [answer for batch in batches for answer in batch]
    rows = {name: [a for a in answers if a.condition == name] for name in conditions}
    count = len(rows["text"])
    print(f"{wire.reader} at {wire.ratio}x: {count} questions about {len(passages)} passages")
    for name, row in rows.items():
        scores = summarise(row)
        print(f"{name:24} NLL a token {scores['nll']:.3f}  F1 {100 * scores['f1']:.1f}")
    for ending in ("", ", no residual"):
        even, competing = rows["uniform" + ending], rows["competing" + ending]
        contexts = [a.context for a in even]
        nlls, scores = (
            [[value(a) for a in row] for row in (even, competing)]
            for value in (lambda a: a.nll / a.tokens, lambda a: 100 * a.f1)
        )
        nll = paired_difference(nlls[0], nlls[1], contexts)
        f1 = paired_difference(scores[0], scores[1], contexts)
        print(
            f"uniform - competing{ending}, over questions: NLL a token {nll['mean']:+.3f} "
            f"({nll['low']:+.3f} to {nll['high']:+.3f}), F1 {f1['mean']:+.1f} "
            f"({f1['low']:+.1f} to {f1['high']:+.1f})"
        )


if __name__ == "__main__":
    main()
