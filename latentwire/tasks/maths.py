r"""Maths problems with one short answer: GSM8K, MATH-500, AIME and every file of the same form.

    task = load_maths("gsm8k", limit=100)              # or FILE.jsonl: {"question", "answer"}
    task.grade(task.problems[0], r"... so it is \boxed{72}.")

An answer is graded by `latentwire.tasks.answers`.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any

from latentwire.tasks.answers import LONGEST, Form, final_answer, same_answer
from latentwire.tasks.base import DataError, Problem, Task, load_hub, read_jsonl, read_text

INSTRUCTIONS: dict[Form, str] = {
    "boxed": "Please reason step by step, and put your final answer within \\boxed{}.",
    "json": (
        "Solve this problem. Reply with one JSON object and nothing else. It has two keys: "
        '"thought process", a string with your reasoning step by step, and "final answer", '
        "a string with the answer alone."
    ),
}
"""The instruction after the question, by form."""

HUB = {
    "gsm8k": ("openai/gsm8k", "main", "test"),
    "math500": ("HuggingFaceH4/MATH-500", None, "test"),
    "aime": ("HuggingFaceH4/aime_2024", None, "train"),
}
"""Data sets on the Hugging Face hub, by the name they have here: path, configuration, split."""


def load_maths(source: str, limit: int | None = None, form: Form = "boxed") -> Task:
    """Problems of a JSONL file, or of gsm8k, math500 or aime (2024) on the Hugging Face hub, which
    needs `pip install datasets`; the first `limit` if given.

    A row is {"id", "question", "answer"}. The question may be called "problem". The answer is the
    final one, as text or as a number, or a solution that ends in "#### 72"; the problem of a row
    without one has no gold answer, and `grade` finds every answer to it wrong. Without an id it is
    the file's stem and the line. Raises DataError naming the line at fault."""
    if form not in INSTRUCTIONS:
        raise ValueError(f"form {form!r}; expected one of {sorted(INSTRUCTIONS)}")
    if source in HUB:
        name, rows = source, _hub_rows(source)
    elif Path(source).exists():
        name, rows = Path(source).stem, _file_rows(Path(source))
    else:
        raise DataError(f"{source}: no such file; expected FILE.jsonl or one of {sorted(HUB)}")
    problems = tuple(_problem(name, n, where, row, form) for n, where, row in islice(rows, limit))

    def grade(problem: Problem, text: str, finished: bool = True) -> bool:
        answer = final_answer(text, form, finished)
        return answer is not None and problem.gold is not None and same_answer(answer, problem.gold)

    return Task(name, problems, grade)


Row = tuple[int, str, dict[str, Any]]
"""Its number, where it stands for an error message, and its fields."""


def _file_rows(path: Path) -> Iterator[Row]:
    lines = [n for n, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]
    for number, row in zip(lines, read_jsonl(path, {}), strict=True):
        yield number, f"{path}, line {number}", row


def _hub_rows(name: str) -> Iterator[Row]:
    path, config, split = HUB[name]
    for number, row in enumerate(load_hub(name, path, config, split), 1):
        yield number, f"{path}, row {number}", row


def _problem(name: str, number: int, where: str, row: dict[str, Any], form: Form) -> Problem:
    question = row.get("question", row.get("problem"))
    if not isinstance(question, str) or not question.strip():
        raise DataError(f"{where}: no text in field 'question' (or 'problem'); expected some")
    answer = row.get("answer")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float | None):
        got = type(answer).__name__
        raise DataError(f"{where}: field 'answer' is {got}; expected a string or a number")
    if isinstance(answer, float):
        if not isfinite(answer):
            raise DataError(f"{where}: field 'answer' is {answer}; expected a finite number")
        answer = format(Decimal(str(answer)), "f")  # not 1e-07, where e is a number
    gold = "" if answer is None else str(answer).rpartition("####")[2].strip()
    if len(gold) > LONGEST:
        raise DataError(
            f"{where}: field 'answer' has {len(gold)} characters; expected at most {LONGEST}, or a "
            "solution that ends in '#### ' and the final answer"
        )
    given_id = row.get("id", row.get("unique_id"))
    id = f"{name}-{number}" if given_id in (None, "") else str(given_id)
    return Problem(id, question, f"{question}\n\n{INSTRUCTIONS[form]}", gold or None)
