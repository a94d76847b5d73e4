"""Maths problems: reading them."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from latentwire.seek.rewards.base import Attempt, Reward, rate
from latentwire.seek.rewards.exact import Exact
from latentwire.tasks.base import DataError, Problem
from latentwire.tasks.maths import INSTRUCTIONS, load_maths


def write(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


def test_reading_a_file(tmp_path):
    source = write(
        tmp_path / "mine.jsonl",
        {"id": "a", "question": "What is {6} times 12?", "answer": "6*12 = <<6*12=72>>72\n#### 72"},
        "",
        {"problem": r"What is $\frac{1}{2}$?", "answer": 0.5, "unique_id": "m/1"},
        {"question": "Two?", "answer": 2},
        {"id": 7, "question": "Nobody knows?"},
    )
    task = load_maths(source)
    assert task.name == "mine"
    assert [p.id for p in task.problems] == ["a", "m/1", "mine-4", "7"]
    assert [p.gold for p in task.problems] == ["72", "0.5", "2", None]
    first, *_, unknown = task.problems
    assert task.grade(first, r"\boxed{72}") and not task.grade(first, r"\boxed{73}")
    assert task.grade(first, "so it is 72") and not task.grade(first, "so it is 72", False)
    assert not task.grade(first, "") and not task.grade(unknown, r"\boxed{72}")
    assert [p.id for p in load_maths(source, limit=2).problems] == ["a", "m/1"]


@pytest.mark.parametrize("form", INSTRUCTIONS)
def test_a_prompt_has_the_question_word_for_word(tmp_path, form):
    question = 'If $f(x) = \\frac{1}{x}$, is "{0}" {x}?\n 50% '
    source = write(tmp_path / "a.jsonl", {"question": question, "answer": "1"})
    (problem,) = load_maths(source, form=form).problems
    assert problem.question == question and problem.prompt.startswith(question + "\n\n")
    keys = {"boxed": [r"\boxed{}"], "json": ['"thought process"', '"final answer"']}
    assert all(key in problem.prompt for key in keys[form])


def test_json_form_grades_json(tmp_path):
    source = write(tmp_path / "a.jsonl", {"question": "?", "answer": "9"})
    task = load_maths(source, form="json")
    text = '{"thought process": "I try 8, then 9, then 10", "final answer": "9"} of 10'
    assert task.grade(task.problems[0], text)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": "1"}, "line 3: no text in field 'question'"),
        ({"question": " ", "answer": "1"}, "line 3: no text in field 'question'"),
        ({"question": "?", "answer": ["1"]}, "line 3: field 'answer' is list"),
        ('{"question": "?", "answer": NaN}', "line 3: field 'answer' is nan; expected a finite"),
        ('{"question": "?", "answer": 1e999}', "line 3: field 'answer' is inf; expected a finite"),
        ({"question": "?", "answer": "so " * 200}, "line 3: field 'answer' has 599 characters"),
        ("{", "line 3: not JSON"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, message):
    source = write(tmp_path / "a.jsonl", {"question": "?", "answer": "1"}, "", row)
    with pytest.raises(DataError, match=message):
        load_maths(source)


def test_bad_sources(tmp_path):
    with pytest.raises(DataError, match="is empty"):
        load_maths(write(tmp_path / "a.jsonl"))
    with pytest.raises(DataError, match=r"no such file; expected FILE.jsonl or one of"):
        load_maths(str(tmp_path / "b.jsonl"))


def test_the_hub(monkeypatch):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return [{"question": f"{n}?", "answer": f"so\n#### {n}"} for n in range(5)]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    task = load_maths("gsm8k", limit=2)
    assert asked == [(("openai/gsm8k", "main"), {"split": "test"})]
    assert [(p.id, p.gold) for p in task.problems] == [("gsm8k-1", "0"), ("gsm8k-2", "1")]


def test_the_hub_out_of_reach(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(DataError, match=r"aime .*no route; give a FILE.jsonl instead"):
        load_maths("aime")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"needs datasets: pip install .*or give a FILE.jsonl"):
        load_maths("math500")


def test_exact(tmp_path):
    task = load_maths(write(tmp_path / "a.jsonl", {"question": "6*12?", "answer": "72"}))
    reward: Reward = Exact(task.grade)
    ids = torch.tensor([1, 2])
    (known,), unknown = task.problems, Problem("u", "?", "?")
    attempts = [
        Attempt(known, ids, r"\boxed{72.0}"),
        Attempt(unknown, ids, r"\boxed{72}"),
        Attempt(known, ids, r"\boxed{73}"),
    ]
    right, none, wrong = rate(reward, attempts)
    assert (reward.low, reward.high) == (-1.0, 0.0)
    assert right.value == reward.high and wrong.value == reward.low
    assert right.failure is None and wrong.failure is None
    assert none.failure and "'u' has no gold answer" in none.failure
