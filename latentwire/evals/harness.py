"""One evaluation of many conditions on the same questions.

    for answers in evaluate(lm, soft_prompt, passages, {"text": full_text(lm), ...}):
        print(summarise(answers)["f1"])

For every question and condition: the greedy answer with its exact match and F1, the NLL of the
first gold answer's tokens (EOS counted), and whether its first token is among the top 1 and top 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from latentwire.evals.baselines import Condition
from latentwire.evals.metrics import bootstrap, exact_match, f1, paired_difference
from latentwire.lm import FrozenLM, Greedy, KVPrefix, Prompt, pad_right, token_log_probs
from latentwire.lm.prompt import LAST
from latentwire.tasks.qa import (
    ANSWER_TOKENS,
    ROWS,
    Passage,
    Question,
    answer_ids,
    question_prompt,
    with_soft_prompt,
)

BATCH, GPU_BATCH = 6, 32
"""Passages that are read together."""


@dataclass(frozen=True)
class Answer:
    """One question under one condition."""

    condition: str
    id: str
    context: str
    question: str
    gold: tuple[str, ...]
    answer: str
    em: float
    f1: float
    nll: float
    """Sum over the gold answer's tokens, in nats."""
    tokens: int
    """The number of those tokens, EOS included."""
    first1: float
    first5: float

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Answer:
        """The answer of a record as JSON keeps it, `asdict`'s."""
        return cls(**{**record, "gold": tuple(record["gold"])})


@torch.no_grad()
def evaluate(
    lm: FrozenLM,
    soft_prompt: Tensor | None,
    passages: Sequence[Passage],
    conditions: Mapping[str, Condition],
    answer_tokens: int = ANSWER_TOKENS,
) -> Iterator[list[Answer]]:
    """Answers of all conditions, of up to answer_tokens, a batch of passages at a time."""
    size = batch_size(lm)
    for start in range(0, len(passages), size):
        part = passages[start : start + size]
        questions = [q for p in part for q in p.questions]
        owner = torch.tensor([i for i, p in enumerate(part) for _ in p.questions]).to(lm.device)
        done = []
        for name, condition in conditions.items():
            prefix = with_soft_prompt(lm, soft_prompt, condition([p.context for p in part]))
            for first in range(0, len(questions), ROWS):
                some = slice(first, first + ROWS)
                done += _answers(lm, name, questions[some], prefix.rows(owner[some]), answer_tokens)
        yield done


def cut_answers(lm: FrozenLM, passages: Sequence[Passage], answer_tokens: int) -> float:
    """The share of questions whose shortest gold answer has more than answer_tokens tokens, so that
    no answer can be right in full."""
    shortest = [
        min(len(answer_ids(lm, answer)) - 1 for answer in q.answers)  # EOS is no part of it
        for p in passages
        for q in p.questions
    ]
    return sum(tokens > answer_tokens for tokens in shortest) / len(shortest)


def batch_size(lm: FrozenLM) -> int:
    """Passages that are read together where the model is."""
    return BATCH if lm.device.type == "cpu" else GPU_BATCH


def summarise(answers: Sequence[Answer]) -> dict[str, float]:
    """One condition's row: means, and the 95% interval of F1 over passages."""
    n = len(answers)
    low, high = bootstrap([a.f1 for a in answers], [a.context for a in answers])
    em_low, em_high = bootstrap([a.em for a in answers], [a.context for a in answers])
    return {
        "em": sum(a.em for a in answers) / n,
        "em_low": em_low,
        "em_high": em_high,
        "f1": sum(a.f1 for a in answers) / n,
        "f1_low": low,
        "f1_high": high,
        "nll": sum(a.nll for a in answers) / sum(a.tokens for a in answers),
        "first1": sum(a.first1 for a in answers) / n,
        "first5": sum(a.first5 for a in answers) / n,
    }


def f1_differences(
    answers: Sequence[Answer], condition: str = "wire"
) -> dict[str, dict[str, float]]:
    """The F1 of one condition minus that of every other on the same questions, each with its 95%
    interval over passages: {other: {"mean", "low", "high"}}. Raises ValueError where two conditions
    did not answer the same questions."""
    f1_of: dict[str, dict[tuple[str, str], float]] = {}
    for a in answers:
        f1_of.setdefault(a.condition, {})[a.context, a.id] = a.f1
    scores = f1_of.pop(condition)
    differences = {}
    for other, baseline in f1_of.items():
        if baseline.keys() != scores.keys():
            count = len(baseline.keys() ^ scores.keys())
            raise ValueError(
                f"{count} questions were answered under only one of {condition} and {other}; "
                "expected the same questions under both"
            )
        aligned = [baseline[question] for question in scores]
        contexts = [context for context, _ in scores]
        differences[other] = paired_difference(list(scores.values()), aligned, contexts)
    return differences


def _answers(
    lm: FrozenLM,
    name: str,
    questions: Sequence[Question],
    prefix: KVPrefix,
    answer_tokens: int,
) -> Iterator[Answer]:
    prompt = _last_column(lm, question_prompt(lm, [q.question for q in questions], prefix))
    targets, mask = pad_right([answer_ids(lm, q.answers[0]) for q in questions])
    logits = lm.logits(prompt, targets, mask)
    log_probs = token_log_probs(logits, targets) * mask
    rank = (logits[:, 0] > logits[:, 0].gather(-1, targets[:, :1])).sum(-1)
    out = lm.generate(prompt, Greedy(), answer_tokens, stop_strings=("\n",))
    for i, q in enumerate(questions):
        answer = out.texts[i].strip()
        yield Answer(
            condition=name,
            id=q.id,
            context=q.context,
            question=q.question,
            gold=q.answers,
            answer=answer,
            em=exact_match(answer, q.answers),
            f1=f1(answer, q.answers),
            nll=-log_probs[i].sum().item(),
            tokens=int(mask[i].sum()),
            first1=float(rank[i] < 1),
            first5=float(rank[i] < 5),
        )


def _last_column(lm: FrozenLM, prompt: Prompt) -> Prompt:
    """The prompt's last token alone, after a prefill of all before it: scoring the gold answer and
    decoding our own then share the work."""
    before = replace(prompt.columns(slice(None, -1)), prefix=prompt.prefix)
    return replace(prompt.columns(LAST), prefix=lm.prefill(before))
