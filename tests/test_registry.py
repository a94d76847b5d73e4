"""The matrix of rewards and of problem sets: one row each, and what every one of them keeps to."""

import json
from typing import get_args

import pytest
import torch
from tiny import tiny_lm

from latentwire.seek.registry import REWARDS, TASKS, RewardName, load_problems
from latentwire.seek.rewards.base import Attempt, attempt_of, rate
from latentwire.tasks.base import DataError, Problem, Task

PAIRS = {"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[3]], "output": [[4]]}]}
RIGHT = "```python\ndef solve(grid):\n    return [[cell + 1 for cell in row] for row in grid]\n```"

# An answer that a reward rates higher than another; None where that is the model's to say.
REWARD_ROWS: dict[str, tuple[str, str] | None] = {
    "self": None,
    "exact": (r"\boxed{72}", r"\boxed{71}"),
    "program": (RIGHT, "no program"),
    "confidence": None,
}
# A file of one problem, the answer that solves it, and one that does not.
TASK_ROWS = {"arc": ({"a": PAIRS}, RIGHT, "no program")}


@pytest.fixture(scope="module")
def lm():
    return tiny_lm("llama")


@pytest.fixture
def arc(tmp_path) -> Task:
    path = tmp_path / "arc.json"
    path.write_text(json.dumps({"a": PAIRS}))
    return load_problems(f"arc:{path}")


def test_every_reward_and_problem_set_has_its_row():
    assert set(REWARD_ROWS) == set(REWARDS) == set(get_args(RewardName))
    assert set(TASK_ROWS) == set(TASKS)


@pytest.mark.parametrize("name", REWARDS)
def test_a_reward_rates_within_its_range_and_a_batch_as_its_rows(name, lm, arc):
    maths = Problem("m", "What is 6 * 12?", "What is 6 * 12?", gold="72")
    problem = arc.problems[0] if name == "program" else maths
    reward = REWARDS[name](lm, Task("one", (problem,), lambda p, text, finished=True: "72" in text))
    assert reward.low < reward.high
    better, worse = REWARD_ROWS[name] or ("It is 72.", "A longer answer, of 71.")
    attempts = [Attempt(problem, lm.tokenize(text), text) for text in (better, worse)]
    together = rate(reward, attempts)
    assert all(r.failure is None and reward.low <= r.value <= reward.high for r in together)
    for attempt, rating in zip(attempts, together, strict=True):
        assert rate(reward, [attempt])[0].value == pytest.approx(rating.value, abs=1e-4)
    if REWARD_ROWS[name]:
        assert together[0].value == reward.high > together[1].value
    cut = attempt_of(lm, problem, torch.empty(0, dtype=torch.long))
    assert rate(reward, [cut])[0].failure or rate(reward, [cut])[0].value >= reward.low


@pytest.mark.parametrize("name", TASKS)
def test_a_problem_set_loads_and_grades(name, tmp_path):
    content, right, wrong = TASK_ROWS[name]
    path = tmp_path / "problems.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    task = load_problems(f"{name}:{path}", limit=1)
    (problem,) = task.problems
    assert problem.question in problem.prompt
    assert task.grade(problem, right) and not task.grade(problem, wrong)
    with pytest.raises(DataError, match="no such file"):
        load_problems(f"{name}:{tmp_path / 'none.json'}")
