"""Asks the first questions of a file on one thread, and again on eight threads of the same wire;
the answers must be the same to the letter.

    python reproduce/threads.py squad_dev.jsonl | tee reproduce/threads.txt
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from latentwire import ask, load_wire
from latentwire.tasks.qa import by_context, read_questions

THREADS = 8


def compare(name: str, reader_name: str, count: int) -> bool:
    """Return whether all answers are equal. Each question is a call of its own."""
    wire = load_wire(name)
    reader = next(reader for reader in wire.readers if reader.lm.name == reader_name)
    passages = by_context(read_questions(Path(sys.argv[1]), count))
    messages = wire.send([passage.context for passage in passages])
    asked = [
        (message, question.question)
        for message, passage in zip(messages, passages, strict=True)
        for question in passage.questions
    ]

    def answer(pair):
        message, question = pair
        return ask(reader, message, [question])[0]

    start = time.monotonic()
    alone = [answer(pair) for pair in asked]
    middle = time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(answer, asked))
    seconds = (
        f"{middle - start:.0f} s on one thread, {time.monotonic() - middle:.0f} s on {THREADS}"
    )
    equal = sum(a == b for a, b in zip(alone, together, strict=True))
    print(f"{name}, read by {reader_name}: {len(set(alone))} different answers; {seconds}")
    print(f"equal {equal} of {len(asked)}", flush=True)
    return equal == len(asked)


if __name__ == "__main__":
    held = [compare("default", "smollm2-135m", 200), compare("interlingua", "gemma3-270m", 40)]
    sys.exit(not all(held))
