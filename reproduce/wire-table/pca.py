"""The baseline in which nothing is trained: principal components of smollm2-135m's input
embeddings, a code for every token of the text, and each reader's embeddings by regression on it.

    .venv/bin/python reproduce/wire-table/pca.py squad_train.jsonl squad_dev.jsonl

As many components as a code may have, 8 bits each. Fitted on 64 training passages; scored on the
first 100 questions of SQuAD v1.1 dev with the soft prompt of the shipped wires. pca.json beside
this file is what it gave. Some six minutes of CPU time on one thread.
"""

import json
import statistics
import sys
from itertools import chain
from pathlib import Path

from latentwire.evals.harness import evaluate, summarise
from latentwire.files import write_whole
from latentwire.tasks.qa import by_context, load_questions
from latentwire.wire.evaluation import conditions
from latentwire.wire.learned.encoders.base import EncoderConfig
from latentwire.wire.learned.shared_wire import SharedConfig, SharedWire
from latentwire.wire.load import load_wire

FITTED, QUESTIONS, CHANNELS = 64, 100, 255
OUT = Path(__file__).with_suffix(".json")


def main(train: str, data: str) -> None:
    """Fit, and score each reader; its scores are written as soon as they are there."""
    texts = [p.context for p in by_context(load_questions(train))[:FITTED]]
    passages = by_context(load_questions(data, QUESTIONS))
    shipped = load_wire("shared").readers
    lms, formats = {r.reader: r.lm for r in shipped}, {r.reader: r.format for r in shipped}
    results = {
        "data": Path(data).name,
        "n": QUESTIONS,
        "passages": len(passages),
        "channels": CHANNELS,
    }
    text_bytes = statistics.fmean(len(p.context.encode()) for p in passages)
    sizes = EncoderConfig(ratio=1, channels=CHANNELS, width=64)
    config = SharedConfig(
        tuple(lms), "smollm2-135m", "pca", "embeddings", sizes, bits=8, trunk_layers=1
    )
    wire = SharedWire(config, lms)
    wire.fit(texts)
    for reader in wire.readers:
        rows = conditions(reader, passages)
        asked = {name: rows[name] for name in ("wire", "mismatched_latents")}
        made = evaluate(reader.lm, formats[reader.reader], passages, asked)
        answers = list(chain.from_iterable(made))
        scores = {k: summarise([a for a in answers if a.condition == k]) for k in asked}
        sent = statistics.fmean(reader.cost(p.context)[1] for p in passages)
        of = {"message_bytes": sent, "text_bytes": text_bytes, "rows": scores}
        results[reader.reader] = of
        write_whole(OUT, json.dumps(results, indent=1))
        figures = {key: f"{100 * row['f1']:.1f}" for key, row in scores.items()}
        print(reader.reader, f"{sent:.0f} bytes", figures, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
