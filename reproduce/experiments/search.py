"""Search at test time on tasks that a small model solves 20 to 60% of the time.

    python reproduce/experiments/search.py choose squad_sentence.jsonl
    python reproduce/experiments/search.py run squad_sentence.jsonl search.json runs/search

`choose` prints greedy rates of every task on problems that are for choosing. `run` searches other
problems with every reward, each beside the controls of `latentwire seek`: greedy, the same search
with the sign of its updates tossed, best of N and pass@K at equal tokens, and first answers rated
twice. It takes the cells in turn, PART problems each, so that it can be stopped at any time: the
JSON holds what is done, and the same command goes on.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import cache
from itertools import pairwise
from operator import eq
from pathlib import Path
from random import Random
from typing import Any

import torch

from latentwire.evals.metrics import exact_match, paired_difference
from latentwire.files import write_whole
from latentwire.lm import ChatFrame, FrozenLM, Greedy, Prompt
from latentwire.seek.recipe import SeekRecipe
from latentwire.seek.rewards.base import Attempt, Rating, attempt_of
from latentwire.seek.run import run_seek
from latentwire.seek.summary import rights_of, summary_of
from latentwire.tasks.base import Problem, Task, read_jsonl

CHOICE = 40
"""Problems of a greedy rate."""
PART, PARTS = 20, 2
"""Problems of a cell that are searched before the next cell's turn, and such turns: 40."""
DTYPE = "bfloat16"
MODELS = ("smollm2-135m", "gemma3-270m")
READERS = (("smollm2-135m", "repair 3"), ("gemma3-270m", "extract"))
"""What is searched: a model, and a task that it solves 20 to 60% of the time."""
STATES = SeekRecipe(k=0.5, steps=5, lr=0.01, dtype=DTYPE)
RECIPES = {
    "exact": replace(STATES, reward="exact"),
    "program": STATES,
    "confidence": STATES,
    "thoughts": SeekRecipe(strategy="thoughts", steps=10, reward="confidence", dtype=DTYPE),
}
"""Searches by name; `search_part` makes the rewards of "program" and "confidence"."""

VALUES: dict[str, Sequence[Any]] = {
    "name": ["Adam", "Alice", "Ben", "Clara", "David", "Emma", "Frank", "Helen", "Laura", "Nick"],
    "age": range(10, 90),
    "city": ["Paris", "Rome", "Oslo", "Lima", "Cairo"],
    "job": ["cook", "nurse", "pilot", "judge"],
    "year": range(1900, 2020),
    "color": ["red", "blue", "green"],
}
UNITS = {
    ("km", "m"): 1000,
    ("kg", "g"): 1000,
    ("hours", "minutes"): 60,
    ("minutes", "seconds"): 60,
    ("m", "cm"): 100,
    ("days", "hours"): 24,
    ("weeks", "days"): 7,
    ("feet", "inches"): 12,
}


Drawn = tuple[str, str, Any]
"""A question, its answer, and what a checker may see of it."""


@dataclass(frozen=True)
class Kind:
    """A kind of problem. draw: makes one. same: judges an answer by the right one. check: shares,
    by name, of what a program can tell of an answer without knowing the right one. shots: worked
    examples before each. new: answer budget in tokens."""

    draw: Callable[[Random], Drawn]
    same: Callable[[str, str], bool]
    check: Callable[[Any, str], dict[str, float]]
    shots: int
    new: int


def draw_sort(random: Random) -> Drawn:
    numbers = random.sample(range(1, 100), 3)
    question, gold = (", ".join(map(str, row)) for row in (numbers, sorted(numbers)))
    return f"Sort: {question}", gold, numbers


def check_sort(numbers: list[int], answer: str) -> dict[str, float]:
    parts = [part.strip() for part in answer.split(",")]
    given = [int(part) if part.isdecimal() else -1 for part in parts]
    kept = (Counter(given) & Counter(numbers)).total() / max(len(given), len(numbers))
    steps = [a < b for a, b in pairwise(given)]
    return {"items": kept, "order": sum(steps) / max(1, len(steps))}


def draw_units(random: Random) -> Drawn:
    (large, small), factor = random.choice(list(UNITS.items()))
    count = random.randint(2, 9)
    return f"Convert {count} {large} to {small}.", f"{count * factor} {small}", (count, small)


def check_units(shown: tuple[int, str], answer: str) -> dict[str, float]:
    number, _, unit = answer.partition(" ")
    larger = number.isdecimal() and int(number) > shown[0]
    return {"number": number.isdecimal(), "unit": unit == shown[1], "larger": larger}


def draw_repair(fields: int) -> Callable[[Random], Drawn]:
    def draw(random: Random) -> Drawn:
        keys = random.sample(list(VALUES), fields)
        gold = json.dumps({key: random.choice(VALUES[key]) for key in keys})
        place = random.choice([i for i, letter in enumerate(gold) if letter in '"{}:,'])
        broken = gold[:place] + gold[place + 1 :]
        return f"Repair this JSON: {broken}", gold, broken

    return draw


def same_json(answer: str, gold: str) -> bool:
    return parsed(answer) == json.loads(gold)


def check_repair(broken: str, answer: str) -> dict[str, float]:
    letters = ["".join(filter(str.isalnum, text)) for text in (broken, answer)]
    alike = SequenceMatcher(None, *letters, autojunk=False).ratio()
    return {"parses": isinstance(parsed(answer), dict), "characters": alike}


def parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def draw_extract(rows: Sequence[dict]) -> Callable[[Random], Drawn]:
    def draw(random: Random) -> Drawn:
        row = random.choice(rows)
        question = f"Passage: {row['context']}\nQuestion: {row['question']}"
        return question, row["answers"][0], (row["context"], row["question"])

    return draw


def check_extract(shown: tuple[str, str], answer: str) -> dict[str, float]:
    passage, question = shown
    words = answer.lower().split()
    asked = any(len(word) > 3 and word in question.lower() for word in words)
    return {"stands": answer in passage, "short": 0 < len(words) <= 4, "not asked": not asked}


def kinds(path: str, report: bool) -> dict[str, Kind]:
    """All tasks; report: whether passages are those that no choice was made on."""
    fields = {"context": str, "answers": list}
    rows = {row["context"]: row for row in read_jsonl(Path(path), fields)}
    fit = [
        row
        for row in rows.values()
        if len(row["context"].split()) <= 30 and len(row["answers"][0].split()) <= 4
    ]
    extract = draw_extract(fit[len(fit) // 2 :] if report else fit[: len(fit) // 2])

    found = {"sort": Kind(draw_sort, eq, check_sort, 3, 15)}
    found["units"] = Kind(draw_units, eq, check_units, 3, 9)
    for n in (2, 3):
        found[f"repair {n}"] = Kind(draw_repair(n), same_json, check_repair, 2, 8 + 10 * n)
    extracted = Kind(extract, lambda a, b: exact_match(a, [b]) > 0, check_extract, 1, 10)
    return found | {"extract": extracted}


def answer_of(text: str) -> str:
    return text.strip().rstrip(".")


def task_of(name: str, path: str, report: bool, count: int) -> tuple[Task, Kind]:
    """Different problems of one kind, behind the same worked examples for choice and report."""
    kind, random = kinds(path, False)[name], Random(f"{name}, examples")
    shots = [kind.draw(random) for _ in range(kind.shots)]
    head = "".join(f"{question}\nAnswer: {gold}\n\n" for question, gold, _ in shots)
    drawn = {question for question, *_ in shots}
    kind, random, problems = kinds(path, report)[name], Random(f"{name}, report {report}"), []
    while len(problems) < count:
        question, gold, shown = kind.draw(random)
        if question not in drawn:
            drawn.add(question)
            id = f"{name}-{len(problems)}"
            problems.append(Problem(id, question, head + question, gold, shown))

    def grade(problem: Problem, text: str, finished: bool = True) -> bool:
        return finished and kind.same(answer_of(text), problem.gold or "")

    return Task(name, tuple(problems), grade), kind


@dataclass(frozen=True)
class Checker:
    """The program's reward: 0 where all checks pass, else at most a quarter below, so that a search
    stops at nothing less."""

    kind: Kind
    low: float = -1.0
    high: float = 0.0

    def __call__(self, attempts: Sequence[Attempt]) -> list[Rating]:
        return [self._rating(a) for a in attempts]

    def _rating(self, attempt: Attempt) -> Rating:
        parts = self.kind.check(attempt.problem.shown, answer_of(attempt.text))
        parts = {name: float(share) for name, share in parts.items()}
        parts["finished"] = float(attempt.finished)
        mean = sum(parts.values()) / len(parts)
        return Rating(0.0 if min(parts.values()) == 1 else 0.75 * mean - 1, parts)


@cache
def model(name: str) -> FrozenLM:
    """A model that continues worked examples: no chat template, and a line ends an answer."""
    lm = FrozenLM.from_pretrained(name, DTYPE)
    begin = torch.tensor([lm.tokenizer.bos_token_id])
    lm.frame = ChatFrame(begin, lm.tokenize("\nAnswer:"), answer_prefix=" ")
    lm.stop_ids = (*lm.stop_ids, *(int(lm.tokenize(end)[0]) for end in ("\n", "\n\n")))
    return lm


def choose(path: str) -> None:
    """Greedy rates of all tasks, on problems that no report uses."""
    torch.set_num_threads(1)
    for name in MODELS:
        lm = model(name)
        for kind in kinds(path, False):
            task, given = task_of(kind, path, False, CHOICE)
            prompt = Prompt.from_chat(lm, [problem.prompt for problem in task.problems])
            out = lm.generate(prompt, Greedy(), given.new)
            rows = zip(task.problems, out.ids, out.mask, strict=True)
            attempts = [attempt_of(lm, problem, ids[mask]) for problem, ids, mask in rows]
            right = sum(task.grade(a.problem, a.text, a.finished) for a in attempts)
            print(f"{right / CHOICE:4.0%}  {name}, {kind}", flush=True)


def run(path: str, out: str, folder: str) -> None:
    """Search every cell, PART problems of each in turn."""
    torch.set_num_threads(1)
    tasks = {kind: task_of(kind, path, True, PART * PARTS) for _, kind in READERS}
    for part in range(PARTS):
        for reward in RECIPES:
            for name, kind in READERS:
                search_part(model(name), *tasks[kind], reward, part, Path(folder))
                write_whole(Path(out), json.dumps(result_of(Path(folder)), indent=1))


def search_part(lm: FrozenLM, task: Task, kind: Kind, reward: str, part: int, folder: Path) -> None:
    kept = folder / cell_of(lm.name, task.name, reward) / str(part)
    if (kept / "results.json").exists():
        return
    problems = task.problems[part * PART :][:PART]
    recipe = replace(RECIPES[reward], data=task.name, max_new_tokens=kind.new, batch=PART)
    own = Checker(kind) if reward == "program" else None
    began = time.process_time()
    run_seek(lm, recipe, kept, Task(task.name, problems, task.grade), reward=own)
    print(f"{time.process_time() - began:5.0f} s  {kept}", flush=True)


def cell_of(name: str, kind: str, reward: str) -> str:
    return f"{name}, {kind}, {reward}"


def result_of(folder: Path) -> dict[str, Any]:
    """All cells: the summary of `latentwire seek` over the parts that are done, and what greedy and
    the search with tossed signs differ by."""
    cells = {}
    for name, kind in READERS:
        for reward in RECIPES:
            cell = cell_of(name, kind, reward)
            files = sorted(folder.glob(f"{cell}/*/predictions.jsonl"))
            done = [file for file in files if file.with_name("results.json").exists()]
            if records := [json.loads(line) for file in done for line in file.open()]:
                cells[cell] = summary_of(records, last=False)
                rights, ids = [rights_of(r) for r in records], [r["id"] for r in records]
                columns = [[r[arm] for r in rights] for arm in ("random_sign", "greedy")]
                cells[cell]["random_sign minus greedy"] = paired_difference(*columns, ids)
    return {"problems": PART * PARTS, "dtype": DTYPE, "cells": cells}


if __name__ == "__main__":
    {"choose": choose, "run": run}[sys.argv[1]](*sys.argv[2:])
