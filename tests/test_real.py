"""The real reader and the shipped wire, as a user has them: fetched where they are not here yet."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from latentwire.evals.harness import evaluate, f1_differences, summarise
from latentwire.lm import FrozenLM, Prompt
from latentwire.lm.doctor import CHECKS, LOGIT_TOLERANCE, ROUNDING, rounding
from latentwire.tasks.needles import with_needles
from latentwire.tasks.qa import ask, by_context, load_questions
from latentwire.wire.evaluation import ALMANAC, conditions
from latentwire.wire.text_message import TextMessage
from latentwire.wire.text_wire import TextWire
from latentwire.wire.wire import Wire


@pytest.fixture(scope="module")
def wire() -> Wire:
    return Wire.from_pretrained("default")


def test_the_reader_passes_the_doctor(wire):
    logits = max(LOGIT_TOLERANCE, ROUNDING * rounding(wire.lm))  # as `examine` has it
    for name, (check, kinds, tolerance) in CHECKS.items():
        allowed = logits if tolerance == LOGIT_TOLERANCE else tolerance
        assert check(wire.lm, kinds[-1], True) <= allowed, name


def test_chat_prompts_are_the_tokenizers_own(wire):
    lm: FrozenLM = wire.lm
    theirs = lm.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Name 12 rivers."}], add_generation_prompt=True
    )["input_ids"]
    expected = lm.embed(torch.tensor([theirs]).to(lm.device))
    assert torch.equal(Prompt.from_chat(lm, ["Name 12 rivers."]).embeds, expected)


def test_the_shipped_wire_reads_paragraphs_it_has_never_seen(wire):
    passages = by_context(load_questions(ALMANAC, 20))
    names = ("text", "wire", "closed_book", "mismatched_latents")
    rows = {k: v for k, v in conditions(wire, passages).items() if k in names}
    rows["wire at 16x"] = conditions(wire.at(16), passages)["wire"]
    answers = [a for batch in evaluate(wire.lm, wire.format, passages, rows) for a in batch]
    scores = {k: summarise([a for a in answers if a.condition == k]) for k in rows}
    better = f1_differences(answers)
    assert better["closed_book"]["low"] > 0 and better["mismatched_latents"]["low"] > 0
    assert scores["wire"]["nll"] < scores["wire at 16x"]["nll"] < scores["closed_book"]["nll"] - 0.3
    assert scores["text"]["f1"] > 0.3


def test_questions_asked_by_eight_threads_are_answered_as_by_one(wire):
    rows = load_questions(ALMANAC, 8)
    messages = {c: wire.send([c])[0] for c in {row.context for row in rows}}

    def answered(row):
        return ask(wire, messages[row.context], [row.question])

    alone = [answered(row) for row in rows]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(answered, rows)) == alone


def test_numbers_are_copied_from_latents_and_where_there_are_few_from_what_is_kept_as_text(wire):
    made = with_needles(by_context(load_questions(ALMANAC, 20)), "number")
    copied = {}
    for name, one in {
        "4x": wire,
        "16x": wire.at(16),
        "16x, numbers": wire.at(16).keeping("numbers"),
    }.items():
        messages = one.send([p.context for p in made])
        said = [ask(one, m, [p.questions[0].question]) for m, p in zip(messages, made, strict=True)]
        right = [[*p.questions[0].answers[:1]] == a for a, p in zip(said, made, strict=True)]
        copied[name] = sum(right)
    assert len(made) == 4 and copied["4x"] == copied["16x, numbers"] == 4 > copied["16x"]


SAID = "The lighthouse was finished in 1759 by John Smeaton. 灯台 😀"
SENT = bytes.fromhex(
    "4c575458011a8e26b6a592a0d39255d1b8a87535d817000000f30d8123b5dd489b1134f157aa8d6c3de0a9a1b3adf480"
)
"""SAID, as one machine sent it."""


def test_another_machines_message_says_what_was_said(wire):
    shared = TextWire(wire.lm, [wire])
    assert shared.texts([TextMessage.from_bytes(SENT)]) == [SAID]
    assert shared.send([SAID])[0].to_bytes() == SENT
