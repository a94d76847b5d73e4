"""Writes what both packages read: token ids of contexts and questions, gold answers and budgets of
each data set, and each reader's prompt head, stop ids and soft prompt.

    python inputs.py OUT --train squad_train.jsonl --squad squad_dev.jsonl --other quoref.jsonl
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from cells import CELLS, READERS, TUNE
from safetensors.torch import save_file

from latentwire.lm import FrozenLM
from latentwire.lm.zoo import locate
from latentwire.tasks.needles import NEEDLE_TOKENS, with_needles
from latentwire.tasks.qa import (
    ANSWER_TOKENS,
    Passage,
    Question,
    by_context,
    load_questions,
    question_ids,
)
from latentwire.wire.folder import folder_of
from latentwire.wire.wire import Wire

QUESTIONS, OTHER, NEEDLES = 200, 100, 60
"""Questions of SQuAD, of the other data set (two for a passage), and needles."""
LONGEST = 480
"""Most tokens of a passage of the other data set, so that it fits one window of the wire, and
Gemma's sliding window with the question. Longer ones are left out."""
LONG, ASKED, LONG_TEXTS = 2000, 5, 12
"""Tokens of a long text, questions about each, and how many of them."""
WIRES = dict(zip(READERS, ("reader-0", "reader-1"), strict=True))
"""Folders of the shared wire."""


def wire_of(reader: str) -> Wire:
    """The shipped wire of a reader."""
    return Wire.from_pretrained(folder_of("shared") / WIRES[reader])


def long_texts(lm: FrozenLM, passages: Sequence[Passage]) -> list[Passage]:
    """Texts of several passages, each with a question about some of them, evenly over the text."""
    texts, parts, rest = [], [], iter(passages)
    while len(texts) < LONG_TEXTS:
        parts.append(next(rest))
        context = "\n\n".join(part.context for part in parts)
        if len(lm.tokenize(context)) < LONG:
            continue
        places = [round(i * (len(parts) - 1) / (ASKED - 1)) for i in range(ASKED)]
        asked = [parts[place].questions[0] for place in places]
        questions = (Question(q.id, context, q.question, q.answers) for q in asked)
        texts.append(Passage(context, tuple(questions)))
        parts = []
    return texts


def main() -> None:
    """Write the inputs of every reader."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", required=True)
    parser.add_argument("--squad", required=True)
    parser.add_argument("--other", required=True)
    options = parser.parse_args()
    squad_dev = by_context(load_questions(options.squad, QUESTIONS))
    known = {passage.context for passage in squad_dev}
    unread = [p for p in by_context(load_questions(options.squad)) if p.context not in known]
    other = by_context(load_questions(options.other))
    lms = {reader: wire_of(reader) for reader in READERS}
    lm = lms[READERS[0]].lm
    fitting = [p for p in other if len(lm.tokenize(p.context)) <= LONGEST]
    sets = {
        TUNE: by_context(load_questions(options.train, CELLS[TUNE].questions)),
        "squad_dev": squad_dev,
        Path(options.other).stem: [Passage(p.context, p.questions[:2]) for p in fitting],
        "needles": with_needles(squad_dev[:NEEDLES], "number"),
        "long": long_texts(lm, unread),
    }
    for reader, wire in lms.items():
        folder = options.out / "inputs" / reader
        folder.mkdir(parents=True, exist_ok=True)
        lm = wire.lm
        about = {
            "model": str(locate(reader)),
            "prefix": lm.frame.prefix.tolist(),
            "stops": list(lm.stop_ids),
        }
        (folder / "reader.json").write_text(json.dumps(about))
        save_file({"soft": wire.format.detach().contiguous()}, folder / "soft.safetensors")
        for name, passages in sets.items():
            budget = NEEDLE_TOKENS if name == "needles" else ANSWER_TOKENS
            lines = [json.dumps(record(lm, i, p, budget)) for i, p in enumerate(passages)]
            (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
            print(reader, name, len(passages), "passages", flush=True)


def record(lm: FrozenLM, index: int, passage: Passage, budget: int) -> dict:
    """One passage as a line of the inputs."""
    return {
        "passage": index,
        "context": passage.context,
        "ids": lm.tokenize(passage.context).tolist(),
        "budget": budget,
        "questions": [
            {
                "id": q.id,
                "question": q.question,
                "ids": question_ids(lm, q.question).tolist(),
                "gold": list(q.answers),
            }
            for q in passage.questions
        ],
    }


if __name__ == "__main__":
    main()
