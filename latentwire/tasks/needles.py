"""Needles: what must be copied letter for letter. Each passage gets one sentence with a random
12-digit number or UUID in it, and the question asks for that; a latent that holds only the gist of
its tokens loses it.

    passages = with_needles(by_context(load_questions("squad_dev.jsonl", 100)), "uuid")
"""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Sequence

from latentwire.tasks.base import DataError
from latentwire.tasks.qa import Passage, Question

KINDS = ("number", "uuid")
NEEDLE_TOKENS = 48
"""Longest copy, in tokens: a UUID has 36 characters, which some tokenizers take one by one."""


def with_needles(passages: Sequence[Passage], kind: str, seed: int = 0) -> list[Passage]:
    """Each passage with a needle between two of its sentences, and a question for it in place of
    its own. The same for the same seed. Raises DataError for a kind that is not in KINDS."""
    if kind not in KINDS:
        raise DataError(f"no needles of kind {kind!r}; expected one of {', '.join(KINDS)}")
    draw = random.Random(seed)
    made = []
    for i, passage in enumerate(passages):
        number = "".join(draw.choices("0123456789", k=12))
        needle = number if kind == "number" else str(uuid.UUID(int=draw.getrandbits(128)))
        sentences = re.split(r"(?<=[.!?]) ", passage.context)
        sentences.insert(draw.randint(0, len(sentences)), f"The archive number is {needle}.")
        context = " ".join(sentences)
        question = Question(f"{kind}-{i}", context, "What is the archive number?", (needle,))
        made.append(Passage(context, (question,)))
    return made
