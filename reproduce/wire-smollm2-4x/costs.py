"""What the shipped wire costs and saves at 4x: bytes of its messages with each codec, and ratios of
time and cache, as an evaluation measures them.

    .venv/bin/python reproduce/wire-smollm2-4x/costs.py squad_dev.jsonl

The passages of the first 100 questions of SQuAD v1.1 dev, times on the first eight; costs.json
beside this file is what it gave. Some three minutes of CPU time on one thread.
"""

import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path

from latentwire.files import write_whole
from latentwire.recipes.evaluation import TIMED, costs
from latentwire.tasks.qa import by_context, load_questions
from latentwire.wire.codec import BITS
from latentwire.wire.wire import Wire

QUESTIONS = 100
OUT = Path(__file__).with_suffix(".json")


def main(data: str) -> None:
    """Measure, write and print."""
    wire = Wire.from_pretrained("default")
    passages = by_context(load_questions(data, QUESTIONS))
    lengths = {bits: [] for bits in BITS}
    for passage in passages:
        message = wire.send([passage.context])[0]
        for bits in BITS:
            lengths[bits].append(len(replace(message, bits=bits).to_bytes()))
    result = {
        "wire": wire.id.hex(),
        "passages": len(passages),
        "text_bytes": statistics.fmean(len(p.context.encode()) for p in passages),
        **{f"bits{bits}": statistics.fmean(sizes) for bits, sizes in lengths.items()},
        **costs(wire, passages[:TIMED]),
    }
    write_whole(OUT, json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
