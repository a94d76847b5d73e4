"""Names the rewards and the problem sets that `latentwire seek` takes; docs/adding.md says how to
add one.

    task = load_problems("arc:arc_agi_training.json", limit=10)
    reward = REWARDS["program"](lm, task)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from latentwire.lm import FrozenLM
from latentwire.seek.rewards.base import Reward
from latentwire.seek.rewards.confidence import Confidence
from latentwire.seek.rewards.exact import Exact
from latentwire.seek.rewards.program import Program
from latentwire.seek.rewards.self_verify import SelfVerify
from latentwire.tasks.arc import load_arc
from latentwire.tasks.base import Task, check_ids
from latentwire.tasks.maths import Form, load_maths

RewardName = Literal["self", "exact", "program", "confidence"]
REWARDS: dict[RewardName, Callable[[FrozenLM, Task], Reward]] = {
    "self": lambda lm, task: SelfVerify(lm),
    "exact": lambda lm, task: Exact(task.grade),
    "program": lambda lm, task: Program(),
    "confidence": lambda lm, task: Confidence(lm),
}
"""Makes each reward for a model and the task that its problems are from."""

TASKS: dict[str, Callable[[Path, int | None], Task]] = {"arc": load_arc}
"""Loads the first problems of a file or folder, by what stands before the colon of --data."""


def source_of(data: str) -> tuple[str | None, str]:
    """The one of TASKS that a value of --data names (None: maths problems), and its file."""
    kind, colon, source = data.partition(":")
    return (kind, source) if colon and kind in TASKS else (None, data)


def load_problems(data: str, limit: int | None = None, form: Form = "boxed") -> Task:
    """The problems that a value of --data names. Raises DataError for a source without any, or with
    an id twice."""
    kind, source = source_of(data)
    task = TASKS[kind](Path(source), limit) if kind else load_maths(source, limit, form)
    check_ids((p.id for p in task.problems), "problems", data)
    return task
