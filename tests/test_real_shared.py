"""The shipped shared wire, in a file of its own so that it runs beside the other real models."""

from dataclasses import replace

from latentwire.evals.harness import evaluate, summarise
from latentwire.tasks.qa import Passage, by_context, load_questions
from latentwire.wire.evaluation import ALMANAC, conditions
from latentwire.wire.load import load_wire


def beginning(passage: Passage) -> Passage:
    """Its first sentences, and what is asked of them."""
    text = passage.context[: passage.context.index(". ", 400) + 1]
    asked = [q for q in passage.questions if q.answers[0] in text]
    return Passage(text, tuple(replace(q, context=text) for q in asked))


def test_both_readers_of_the_shipped_shared_wire_read_the_same_bytes():
    shared = load_wire("shared")
    whole = by_context(load_questions(ALMANAC, 10))
    sent = sum(len(m.to_bytes()) for m in shared.send([p.context for p in whole]))
    assert sent < 0.25 * sum(len(p.context.encode()) for p in whole)
    passages = [beginning(p) for p in whole]
    for reader in shared.readers:
        names = ("wire", "mismatched_latents")
        rows = {k: v for k, v in conditions(reader, passages).items() if k in names}
        told = evaluate(reader.lm, reader.format, passages, rows, answer_tokens=1)
        answers = [a for part in told for a in part]
        nll = {k: summarise([a for a in answers if a.condition == k])["nll"] for k in names}
        assert nll["wire"] < nll["mismatched_latents"] - 0.3, (reader.reader, nll)
