"""Questions about a passage, with short answers: SQuAD and every file of the same form.

    rows = read_questions(Path("squad_dev.jsonl"))     # {"id", "context", "question", "answers"}
    passages = by_context(rows)

Rows of HotpotQA are read too: a context of titles and sentences, and one `answer`.

The layout of a question is here too, once, for training, scoring and answering:
head, context, soft prompt, "\\n\\n" + question, tail, answer, EOS. The context, in whatever form,
is a KVPrefix; `with_soft_prompt`, `question_prompt` and `answer_ids` make the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from latentwire.lm import FrozenLM, KVPrefix, Prompt, Sampler, pad_right
from latentwire.lm.joining import after_one_another, side_by_side
from latentwire.lm.samplers import sampler_of, seed_of
from latentwire.reading import shortened
from latentwire.tasks.base import (
    DataError,
    check_ids,
    check_row,
    load_hub,
    numbered_rows,
    read_array,
)
from latentwire.texts import check_texts


@dataclass(frozen=True)
class Question:
    """One question; any of `answers` is right."""

    id: str
    context: str
    question: str
    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        check_texts(self.answers, "answers")


@dataclass(frozen=True)
class Passage:
    """A context and the questions asked of it."""

    context: str
    questions: tuple[Question, ...]


def read_questions(path: Path, limit: int | None = None) -> list[Question]:
    """Rows of a JSONL file, or of a .json file of one array, or the first `limit`; raises DataError
    naming the line at fault."""
    fields, questions = {"id": str, "context": str, "question": str, "answers": list}, []
    for where, row in islice(_file_rows(path), limit):
        squad = _as_squad(row, where)
        check_row(squad, fields, where)
        questions.append(_question(squad, str(path)))
    return questions


def _file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Rows, each with where it stands."""
    if (array := read_array(path)) is not None:
        yield from ((f"{path}, row {number}", row) for number, row in enumerate(array, 1))
    else:
        yield from ((f"{path}, line {number}", row) for number, row in numbered_rows(path, {}))


def _as_squad(row: Any, where: str) -> Any:
    """A row with SQuAD's fields where it has those of the hub's SQuAD or of HotpotQA, else as it
    is. Raises DataError for one of SQuAD 2.0 that has no answer."""
    if not isinstance(row, dict):
        return row
    row = dict(row)
    if "answers" not in row and "answer" in row:  # HotpotQA's
        row["answers"] = [row["answer"]]
    if "id" not in row and "_id" in row:
        row["id"] = row["_id"]
    if isinstance(row.get("answers"), dict):  # as the hub has SQuAD's
        row["answers"] = row["answers"].get("text")
    if row.get("answers") == []:
        raise DataError(
            f"{where}: no answers, as SQuAD 2.0's unanswerable questions have none; answers are "
            "scored by their words: write the rows that have some to a FILE.jsonl, and give that"
        )
    if isinstance(row.get("context"), dict | list) and row["context"]:
        row["context"] = _titled(row["context"], where)
    return row


def _titled(context: Any, where: str) -> str:
    """The text of HotpotQA's paragraphs: [[title, sentences], ...], or on the hub {"title": [...],
    "sentences": [...]}; each one's title is a line before it."""
    try:
        if isinstance(context, dict):
            context = zip(context["title"], context["sentences"], strict=True)
        return "\n\n".join(f"{title}\n{''.join(texts).strip()}" for title, texts in context)
    except (KeyError, TypeError, ValueError):
        raise DataError(
            f"{where}: context is {shortened(context)}; expected text, or titles and sentences as "
            "HotpotQA has them"
        ) from None


def _question(row: Mapping[str, Any], source: str) -> Question:
    """Raises DataError for a row that asks nothing, or has no answer in words."""
    where, answers = f"{source}: row {shortened(row['id'])}", row["answers"]
    if not isinstance(answers, list) or not all(isinstance(a, str) and a.strip() for a in answers):
        raise DataError(
            f"{where}: answers are {shortened(answers)}; expected a list of non-empty strings"
        )
    for name in ("context", "question"):
        if not isinstance(row[name], str) or not row[name].strip():
            raise DataError(f"{where}: {name} is {shortened(row[name])}; expected text")
    return Question(str(row["id"]), row["context"], row["question"], tuple(answers))


def load_questions(source: str, limit: int | None = None, least: int = 1) -> list[Question]:
    """Questions of a file (`read_questions`), or of a data set on the Hugging Face hub that has
    the columns of SQuAD or HotpotQA: hub:NAME, hub:NAME#SPLIT or hub:NAME:CONFIG#SPLIT
    ("hub:rajpurkar/squad#validation", "hub:hotpotqa/hotpot_qa:distractor"; the train split if none
    is named; needs `pip install datasets`). Raises DataError for fewer than `least` passages, and
    for an id that two questions have."""
    rows = _read_hub(source[4:], limit) if source.startswith("hub:") else None
    rows = read_questions(Path(source), limit) if rows is None else rows
    check_ids((row.id for row in rows), "questions", source)
    passages = len({row.context for row in rows})
    if passages < least:
        asked = "" if limit is None else f" in the first {limit} questions"
        raise DataError(f"{source}: {passages} passages{asked}; expected at least {least}")
    return rows


def _read_hub(name: str, limit: int | None) -> list[Question]:
    place, _, split = name.partition("#")
    path, _, config = place.partition(":")
    part = (split or "train") + (f"[:{limit}]" if limit else "")
    rows = load_hub(f"hub:{name}", path, config or None, part)
    columns = set(rows.column_names) | ({"answers"} if "answer" in rows.column_names else set())
    if missing := {"id", "context", "question", "answers"} - columns:
        raise DataError(
            f"hub:{name}: no column {sorted(missing)}; expected SQuAD's columns, or HotpotQA's"
        )
    named = ((f"hub:{name}: row {shortened(row['id'])}", row) for row in rows)
    return [_question(_as_squad(row, where), f"hub:{name}") for where, row in named]


def by_context(rows: Sequence[Question]) -> list[Passage]:
    """Passages in order of first appearance, each with its questions in order."""
    found: dict[str, list[Question]] = {}
    for row in rows:
        found.setdefault(row.context, []).append(row)
    return [Passage(context, tuple(questions)) for context, questions in found.items()]


def in_parts(passages: Sequence[Passage], most: int) -> list[Passage]:
    """The same questions, at most so many to a passage: one that has more comes several times."""
    return [
        Passage(p.context, p.questions[start : start + most])
        for p in passages
        for start in range(0, len(p.questions), most)
    ]


def answer_ids(lm: FrozenLM, answer: str) -> Tensor:
    """Target ids of an answer, EOS at the end, which is trained and scored like any token."""
    return torch.cat(
        [lm.tokenize(lm.frame.answer_prefix + answer), torch.tensor(lm.stop_ids[:1]).to(lm.device)]
    )


def with_soft_prompt(lm: FrozenLM, soft_prompt: Tensor | None, prefix: KVPrefix) -> KVPrefix:
    """Each row of a context's prefix with the soft prompt [n, d] after it, once for all of its
    questions; the prefix as it is where there is no soft prompt, or an empty one."""
    if soft_prompt is None or len(soft_prompt) == 0:
        return prefix
    return lm.prefill(Prompt.of(lm, [[soft_prompt]] * len(prefix.mask), prefix))


ROWS = 64
"""Most questions that are answered together: each has a copy of its passage's cache."""
ANSWER_TOKENS = 20
"""Longest answer in tokens behind a soft prompt, which asks for a short span."""
LONG_ANSWER_TOKENS = 256
"""Longest answer in tokens without one."""


def question_ids(lm: FrozenLM, question: str) -> Tensor:
    """The ids that follow context and soft prompt, up to where the answer begins."""
    return torch.cat([lm.tokenize("\n\n" + question.strip()), lm.frame.suffix])


def question_prompt(
    lm: FrozenLM, questions: Sequence[str], prefix: KVPrefix, soft_prompt: Tensor | None = None
) -> Prompt:
    """One row per question, each after its row of `prefix`. soft_prompt: goes before it where the
    prefix does not hold it: one pass in place of two where a context has one question."""
    check_texts(questions, "questions")
    before = [] if soft_prompt is None else [soft_prompt]
    return Prompt.of(lm, [[*before, question_ids(lm, q)] for q in questions], prefix)


def tokenise(lm: FrozenLM, passages: Sequence[Passage]) -> None:
    """Have the LM remember the ids of all that a step of training asks of these passages."""
    for passage in passages:
        lm.tokenize(passage.context)
        for q in passage.questions:
            question_ids(lm, q.question)
            answer_ids(lm, q.answers[0])


def answer_targets(
    lm: FrozenLM, passages: Sequence[Passage]
) -> tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"]]:
    """Targets of all questions of some passages, their first answers, and the mask of real ones."""
    return pad_right([answer_ids(lm, q.answers[0]) for p in passages for q in p.questions])


def passages_prompt(
    lm: FrozenLM, soft_prompt: Tensor | None, passages: Sequence[Passage], context: KVPrefix
) -> Prompt:
    """All questions of some passages, each after its own row of `context` and the soft prompt."""
    owner = [row for row, p in enumerate(passages) for _ in p.questions]
    questions = [q.question for p in passages for q in p.questions]
    formatted = with_soft_prompt(lm, soft_prompt, context)
    return question_prompt(lm, questions, formatted.rows(torch.tensor(owner).to(lm.device)))


def check_generation(max_new_tokens: int, stop: Sequence[str], temperature: float) -> None:
    """Raises ValueError for options of generation that are out of their range, and TypeError for
    `stop` that is one text."""
    check_texts(stop, "stop")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; expected at least 1")
    if not all(stop):
        raise ValueError("a text of stop is empty; expected texts that end an answer")
    if not 0 <= temperature <= 100:
        raise ValueError(f"temperature is {temperature}; expected 0 to 100")


@dataclass(frozen=True)
class Answering:
    """The settings of generated answers. Behind a wire's soft prompt, which asks for a short span,
    they are those of a short answer by default; without it they leave room for several lines."""

    soft_prompt: bool = True
    """With the wire's soft prompt behind the context, which it was trained with."""
    max_new_tokens: int | None = None
    """Longest answer, in tokens, cut to the room that the model's context has left; 20 with the
    soft prompt and 256 without it if None."""
    stop: Sequence[str] | None = None
    """Texts of which the first to come ends an answer, and is no part of it; with the soft prompt a
    line break and without it nothing if None."""
    temperature: float = 0.0
    """0 takes the most probable token."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_generation(self.longest, self.ends, self.temperature)

    @property
    def longest(self) -> int:
        """Longest answer, in tokens."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        return ANSWER_TOKENS if self.soft_prompt else LONG_ANSWER_TOKENS

    @property
    def ends(self) -> Sequence[str]:
        """Texts that end an answer."""
        if self.stop is not None:
            return self.stop
        return ("\n",) if self.soft_prompt else ()

    def sampler(self, rows: Iterable[int]) -> Sampler:
        """Chooses the tokens of these questions, each by a seed of its own."""
        return sampler_of(self.temperature, [seed_of(self.seed, row) for row in rows])


@torch.no_grad()
def answers(
    lm: FrozenLM,
    questions: Sequence[str],
    prefix: KVPrefix,
    soft_prompt: Tensor | None = None,
    answering: Answering = Answering(),
) -> list[str]:
    """Answers to questions about one context, a prefix of one row. soft_prompt [n, d]: goes behind
    it, unless `answering` leaves it out. Raises TypeError for questions that are one text."""
    check_texts(questions, "questions")
    soft_prompt, said = soft_prompt if answering.soft_prompt else None, []
    if len(questions) > 1:
        prefix, soft_prompt = with_soft_prompt(lm, soft_prompt, prefix), None
    for start in range(0, len(questions), ROWS):
        some = questions[start : start + ROWS]
        prompt = question_prompt(lm, some, prefix.repeat(len(some)), soft_prompt)
        sampler = answering.sampler(range(start, start + len(some)))
        most = min(answering.longest, max(1, lm.context_length - int(prompt.next_position.max())))
        said += lm.generate(prompt, sampler, most, stop_strings=answering.ends).texts
    return [text.strip() for text in said]


@runtime_checkable
class Receiver(Protocol):
    """A frozen LM with what it needs in order to read messages: any reader of a wire."""

    message_type: ClassVar[type[Any]]

    @property
    def lm(self) -> FrozenLM: ...
    @property
    def format(self) -> Tensor | None: ...
    def receive(self, messages: Sequence[Any], /) -> KVPrefix: ...


def ask(reader: Receiver, message: Any, questions: Sequence[str], **options: Any) -> list[str]:
    """A reader's answers to questions about the text of a message, of which it sees the latents
    alone; of several messages, about their texts one after another.

    reader: a wire of one reader, or one of any wire's `.readers`. message: one, or a list of them,
    as they came from `send`, or their bytes. options: soft_prompt, max_new_tokens, stop,
    temperature and seed, of Answering. Raises what `reader.receive` raises, MessageError for bytes
    that are no message, and TypeError for questions that are one text.
    """
    check_texts(questions, "questions")
    answering = Answering(**options)
    prefix = received(reader, message if isinstance(message, list | tuple) else [message])
    return answers(reader.lm, questions, prefix, reader.format, answering)


@torch.no_grad()
def received(reader: Receiver, messages: Sequence[Any]) -> KVPrefix:
    """Messages, or their bytes, as a prefix of one row: each begins at the position where the one
    before it ends. Raises ValueError for none."""
    if not messages:
        raise ValueError("got no message; expected at least one")
    parse = reader.message_type.from_bytes
    rows = [reader.receive([parse(m) if isinstance(m, bytes) else m]) for m in messages]
    return rows[0] if len(rows) == 1 else after_one_another(reader.lm, side_by_side(rows))
