"""What it costs in F1 to read two documents together: each question of the almanac with its own
document alone, with another one before it, and with another one behind it.

    python reproduce/serve/together.py [QUESTIONS] | tee reproduce/serve/together.txt
"""

import sys
import tempfile

from latentwire import Contexts, Store, load_wire
from latentwire.evals.metrics import f1
from latentwire.tasks.qa import load_questions
from latentwire.wire.evaluation import ALMANAC


def main(limit: int) -> None:
    rows, wire = load_questions(ALMANAC, limit), load_wire("default")
    texts = list(dict.fromkeys(row.context for row in rows))
    with tempfile.TemporaryDirectory() as folder:
        contexts = Contexts(wire, Store(folder))
        list(contexts.store.add(wire, {str(i): text for i, text in enumerate(texts)}))
        own = [texts.index(row.context) for row in rows]
        other = [(i + 1) % len(texts) for i in own]
        orders = {
            "alone": [[str(i)] for i in own],
            "another before it": [[str(j), str(i)] for i, j in zip(own, other, strict=True)],
            "another behind it": [[str(i), str(j)] for i, j in zip(own, other, strict=True)],
        }
        for name, documents in orders.items():
            asked = [(docs, row.question) for docs, row in zip(documents, rows, strict=True)]
            answers = contexts.ask(asked)
            scores = [f1(a, row.answers) for a, row in zip(answers, rows, strict=True)]
            print(f"{name}: F1 {100 * sum(scores) / len(scores):.1f} ({len(scores)} questions)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
