"""What the shipped wire costs and saves at 4x: bytes and score of its messages with each codec, and
ratios of time and cache, as an evaluation measures them.

    .venv/bin/python reproduce/wire-smollm2-4x/costs.py squad_dev.jsonl

The first 100 questions of SQuAD v1.1 dev, times on the first eight passages; costs.json beside this
file is what it gave. Some ten minutes of CPU time on one thread.
"""

import json
import statistics
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from zstandard import compress

from latentwire.evals.baselines import full_text
from latentwire.evals.harness import evaluate, summarise
from latentwire.files import write_whole
from latentwire.tasks.qa import by_context, load_questions
from latentwire.wire.codec import BITS
from latentwire.wire.costs import TIMED, costs
from latentwire.wire.message import Message
from latentwire.wire.wire import Wire

QUESTIONS = 100
OUT = Path(__file__).with_suffix(".json")


def main(data: str) -> None:
    """Answer every question from the text and from messages of every codec, and measure."""
    wire = Wire.from_pretrained("default")
    passages = by_context(load_questions(data, QUESTIONS))
    lengths: dict[int, dict[str, int]] = {bits: {} for bits in BITS}

    @lru_cache(maxsize=16)
    def sent(text: str) -> Message:
        return wire.send([text])[0]

    def through(bits: int, texts) -> list[Message]:
        packed = [replace(sent(text), bits=bits).to_bytes() for text in texts]
        lengths[bits].update(zip(texts, map(len, packed), strict=True))
        return [Message.from_bytes(data) for data in packed]

    rows = {"text": full_text(wire.lm)} | {
        f"bits{bits}": lambda texts, bits=bits: wire.receive(through(bits, texts)) for bits in BITS
    }
    answers = []
    for batch in evaluate(wire.lm, wire.format, passages, rows):
        answers += batch
        print(len(answers) // len(rows), "questions", flush=True)
    text = summarise([a for a in answers if a.condition == "text"])
    full = {a.id: a.answer for a in answers if a.condition == "bits16"}
    result = {
        "wire": wire.id.hex(),
        "data": Path(data).name,
        "n": len(full),
        "passages": len(passages),
        "text": text,
        "text_bytes": statistics.fmean(len(p.context.encode()) for p in passages),
        "zstd_bytes": statistics.fmean(len(compress(p.context.encode(), 19)) for p in passages),
        **costs(wire, passages[:TIMED]),
    }
    for bits in BITS:
        own = [a for a in answers if a.condition == f"bits{bits}"]
        row = summarise(own)
        result[f"bits{bits}"] = {
            "message_bytes": statistics.fmean(lengths[bits].values()),
            **row,
            "retention": row["f1"] / text["f1"],
            "same_answer_as_16": statistics.fmean(a.answer == full[a.id] for a in own),
        }
        print(bits, "bits", result[f"bits{bits}"], flush=True)
    write_whole(OUT, json.dumps(result, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
