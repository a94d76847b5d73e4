"""ARC-AGI: find the rule behind pairs of grids and write it as a program.

    task = load_arc(Path("arc_agi_training.json"), limit=20)
    task.grade(task.problems[0], answer)     # does the answer's program solve the test inputs?

An answer has a section `## Description` and a section `## Program`. Problems hold the training
pairs and the test inputs; what comes out of those is known to `grade` alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from latentwire.reading import check_unicode, parse_json, shortened
from latentwire.tasks.base import DataError, Problem, Task, read_text
from latentwire.tasks.sandbox import Grid, as_grid, run_program
from latentwire.tasks.sandbox_child import MODULES


@dataclass(frozen=True)
class Pair:
    """A grid and what the rule makes of it."""

    input: Grid
    output: Grid


ASKED = f"""\
Answer in two sections. Under the heading `## Description`, say in words how an output comes from \
its input. Under the heading `## Program`, write that as one Python function in a ```python block:

solve(grid: list[list[int]]) -> list[list[int]]

Cells are integers from 0 to 9. The function must work for any input of this rule. It may import \
{", ".join(MODULES[:-1])} and {MODULES[-1]}; it must not read or print anything."""
"""The request of a prompt after the grids."""


def load_arc(path: Path, limit: int | None = None) -> Task:
    """Tasks of a JSON file {id: task}, or of a folder with one task in each .json file, named by
    its id; the first `limit` of them. A task is {"train": pairs, "test": pairs}, a pair {"input":
    grid, "output": grid}. Raises DataError naming the file and the task at fault."""
    problems, tests = [], {}
    for name, where, task in islice(_tasks(path), limit):
        train, tests[name] = (_pairs(task, part, where) for part in ("train", "test"))
        question = _question(train, [pair.input for pair in tests[name]])
        problems.append(Problem(name, question, f"{question}\n\n{ASKED}", shown=train))
    if not problems:
        raise DataError(f"{path} has no tasks; expected {{id: task}} or a folder of .json files")

    def grade(problem: Problem, text: str, finished: bool = True) -> bool:
        """True where the answer's program gives exactly the output for every test input."""
        code = find_program(text)
        if code is None:
            return False
        pairs = tests[problem.id]
        return run_program(code, [p.input for p in pairs]) == [p.output for p in pairs]

    return Task("arc", tuple(problems), grade)


def find_program(answer: str) -> str | None:
    """The code in the last ```python block; None where there is none or it does not end."""
    starts = [m.end() for m in re.finditer(r"```python[ \t]*\r?\n", answer)]
    code, end, _ = answer[starts[-1] :].partition("```") if starts else ("", "", "")
    return code if end else None


def _question(train: tuple[Pair, ...], inputs: list[Grid]) -> str:
    parts = ["One rule turns each input grid into its output grid."]
    for number, pair in enumerate(train, 1):
        parts += [
            f"Input {number}:\n{_text(pair.input)}",
            f"Output {number}:\n{_text(pair.output)}",
        ]
    for number, grid in enumerate(inputs, 1):
        name = "Test input" if len(inputs) == 1 else f"Test input {number}"
        parts.append(f"{name}:\n{_text(grid)}")
    return "\n\n".join(parts)


def _text(grid: Grid) -> str:
    return "\n".join(" ".join(map(str, row)) for row in grid)


def _tasks(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Each task's id, how an error names it, and the task as it stands in the file."""
    if path.is_dir():
        for file in sorted(path.glob("*.json")):
            try:  # a name of a file need not be UTF-8, and an id is written
                check_unicode(file.stem)
            except ValueError as error:
                raise DataError(f"{path}: a file's name: {error}") from None
            yield file.stem, f"{file}, task {shortened(file.stem)}", _json(file)
        return
    tasks = _json(path)
    if not isinstance(tasks, dict):
        raise DataError(f"{path}: a JSON {type(tasks).__name__}; expected an object {{id: task}}")
    for name, task in tasks.items():
        yield name, f"{path}, task {shortened(name)}", task


def _json(path: Path) -> Any:
    try:
        return parse_json(read_text(path))
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); expected ARC tasks") from None


def _pairs(task: Any, part: str, where: str) -> tuple[Pair, ...]:
    pairs = task.get(part) if isinstance(task, dict) else None
    if not isinstance(pairs, list) or not pairs:
        raise DataError(f"{where}: no {part!r} pairs; expected a task with 'train' and 'test'")
    found = []
    for number, pair in enumerate(pairs, 1):
        grids = []
        for side in ("input", "output"):
            if not isinstance(pair, dict) or side not in pair:
                raise DataError(f"{where}: {part} pair {number} has no {side!r}; expected a grid")
            try:
                grids.append(as_grid(pair[side]))
            except ValueError as error:
                raise DataError(f"{where}: {part} pair {number}, {side}: {error}") from None
        found.append(Pair(*grids))
    return tuple(found)
