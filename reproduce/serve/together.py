"""Measures what it costs in F1 to read two documents together: each question of the almanac with
its own document alone, with another one before it, and with another one behind it, from latents and
from the full texts.

    python reproduce/serve/together.py [QUESTIONS] | tee reproduce/serve/together.txt
"""

import sys
import tempfile

from latentwire import Contexts, Store, load_wire
from latentwire.evals.metrics import f1, paired_difference
from latentwire.serve.context import Turn
from latentwire.serve.decoding import complete
from latentwire.tasks.qa import ANSWER_TOKENS, load_questions
from latentwire.wire.evaluation import ALMANAC


def main(limit: int) -> None:
    """Print a row for each order and kind, and what it loses to the document alone."""
    rows, wire = load_questions(ALMANAC, limit), load_wire("default")
    texts = list(dict.fromkeys(row.context for row in rows))
    with tempfile.TemporaryDirectory() as folder:
        contexts = Contexts(wire, Store(folder))
        list(contexts.store.add(wire, {str(i): text for i, text in enumerate(texts)}))

        def from_latents(documents: list[list[int]]) -> list[str]:
            names = [[str(i) for i in of] for of in documents]
            return contexts.ask([(n, row.question) for n, row in zip(names, rows, strict=True)])

        def from_texts(documents: list[list[int]]) -> list[str]:
            asked = []
            for of, row in zip(documents, rows, strict=True):
                prefix = contexts.plain("\n\n".join(texts[i] for i in of))
                turns = [Turn("user", row.question)]
                options = {"max_new_tokens": ANSWER_TOKENS, "stop": ("\n",)}
                asked.append(contexts.request(prefix, turns, **options))
            return complete(contexts.lm(), asked)

        own = [texts.index(row.context) for row in rows]
        other = [(i + 1) % len(texts) for i in own]
        orders = {
            "alone": [[i] for i in own],
            "another before it": [[j, i] for i, j in zip(own, other, strict=True)],
            "another behind it": [[i, j] for i, j in zip(own, other, strict=True)],
        }
        for kind, answered in (("latents at 4x", from_latents), ("full text", from_texts)):
            alone: list[float] = []
            for order, documents in orders.items():
                answers = answered(documents)
                scores = [f1(a, row.answers) for a, row in zip(answers, rows, strict=True)]
                alone = alone or scores
                lost = paired_difference(scores, alone, [row.context for row in rows])
                line = f"{kind}, {order}: F1 {100 * sum(scores) / len(scores):.1f}"
                if order != "alone":
                    mean, low, high = (100 * lost[name] for name in ("mean", "low", "high"))
                    line += f", minus alone {mean:.1f} ({low:.1f} to {high:.1f})"
                print(line, flush=True)
        print(f"{len(rows)} questions about {len(texts)} documents")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
