"""Programs of answers: what they may not do, how much of a grid counts, and that the test outputs
of ARC stay with the grader."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from latentwire.seek.rewards import program
from latentwire.seek.rewards.base import Attempt, rate
from latentwire.seek.rewards.program import Program, compare
from latentwire.tasks import sandbox, sandbox_child
from latentwire.tasks.arc import Pair, find_program, load_arc
from latentwire.tasks.base import DataError, Problem
from latentwire.tasks.sandbox import Failure, SandboxError, run_program
from latentwire.tasks.sandbox_child import SYSCALLS, SYSTEM

A, B = ((1, 2), (3, 4)), ((5,),)
TASK = {
    "train": [
        {"input": [[1, 2], [3, 4]], "output": [[3, 4], [1, 2]]},
        {"input": [[5], [6], [7]], "output": [[7], [6], [5]]},
    ],
    "test": [{"input": [[8, 1], [9, 0], [2, 6]], "output": [[2, 6], [9, 0], [8, 1]]}],
}
FLIP = "def solve(grid):\n    return grid[::-1]"


def answer(code):
    return f"## Description\nUpside down.\n\n## Program\n\n```python\n{code}\n```\n"


def problem(*pairs):
    return Problem("p", "q", "q", shown=tuple(Pair(*pair) for pair in pairs))


def rated(text, of, **options):
    return rate(Program(**options), [Attempt(of, torch.tensor([1]), text)])[0]


def load(path, content=TASK):
    path.write_text(json.dumps({"flip": content}))
    return load_arc(path)


# All of these return what is asked for, the input, if nothing stops them. POSIX is what an import
# of os would give, got without one.
POSIX = "import collections\nposix = collections._sys.modules['posix']\n"
IDENTITY = "\ndef solve(grid):\n    return grid"
FORGED = 'b"[[1, 2], [3, 4]]\\n[[5]]\\n"'
ATTACKS = {
    "open": ("open('owned', 'w')" + IDENTITY, "forbidden: open"),
    "open, caught": (
        "try:\n    open('OWNED', 'w')\nexcept BaseException:\n    pass" + IDENTITY,
        "forbidden: open",
    ),
    "open in solve": ("def solve(grid):\n    open('OWNED', 'w')\n    return grid", "forbidden: o"),
    "open on the second input": (
        "def solve(grid):\n    return grid if len(grid) > 1 else open('OWNED', 'w')",
        "forbidden: open",
    ),
    "open by posix": (POSIX + "posix.open('OWNED', 65)" + IDENTITY, "forbidden: open"),
    "open by numpy": (
        "import numpy\nnumpy.save('OWNED', numpy.zeros(3))" + IDENTITY,
        "forbidden: open",
    ),
    "remove": (POSIX + "posix.unlink('KEPT')" + IDENTITY, "forbidden: os.remove"),
    "import os": ("import os\nos.system('touch OWNED')" + IDENTITY, "forbidden: import os"),
    "import, caught": (
        "try:\n    import socket\nexcept BaseException:\n    pass" + IDENTITY,
        "forbidden: import socket",
    ),
    "import inside numpy": ("import numpy.f2py" + IDENTITY, "forbidden: import"),
    "sys.exit": ("import sys\nsys.exit(0)" + IDENTITY, "forbidden: import sys"),
    "SystemExit": ("raise SystemExit(0)" + IDENTITY, "SystemExit"),
    "_exit": (POSIX + "posix._exit(0)" + IDENTITY, "ended with status 0"),
    "loop": ("while True:\n    pass" + IDENTITY, "ran longer than 0.3 s"),
    "loop, caught": (
        "while True:\n    try:\n        1 / 0\n    except BaseException:\n        pass" + IDENTITY,
        "ran longer",
    ),
    "recursion": ("def solve(grid):\n    return solve(grid)", "RecursionError"),
    "memory": ("hoard = [' ' * 10**12]" + IDENTITY, "MemoryError|ran longer"),
    "memory by and by": (
        "hoard = []\nwhile True:\n    hoard.append([0] * 10**6)" + IDENTITY,
        "MemoryError|ran longer",
    ),
    "print": ("while True:\n    print('x' * 10**5)" + IDENTITY, "forbidden: prints too much"),
    "endless grid": (
        "import itertools\ndef solve(grid):\n    return itertools.repeat([1])",
        "returned no grid: 31 rows",
    ),
    "fork": (POSIX + "posix.fork()" + IDENTITY, "forbidden: os.fork"),
    "fork, caught": (
        POSIX + "try:\n    posix.fork()\nexcept BaseException:\n    pass" + IDENTITY,
        "forbidden: os.fork",
    ),
    "exec": (POSIX + "posix.execv('/bin/sh', ['sh'])" + IDENTITY, "forbidden: os.exec"),
    "shell": (POSIX + "posix.system('touch OWNED')" + IDENTITY, "forbidden: os.system"),
    "kill the caller": (POSIX + f"posix.kill({os.getpid()}, 9)" + IDENTITY, "forbidden: os.kill"),
    "find and kill the caller": (POSIX + "posix.kill(posix.getppid(), 9)" + IDENTITY, "forbidden"),
    "thread": ("import threading" + IDENTITY, "forbidden: import threading"),
    "forged results": (POSIX + f"posix.write(1, {FORGED})" + IDENTITY, "forbidden: wrote"),
    "forged results, then exit": (
        POSIX + f"posix.write(1, {FORGED})\nposix._exit(0)" + IDENTITY,
        "forbidden: wrote",
    ),
    "rubbish for results": (POSIX + "posix.write(1, b'\\xff\\n' * 9)" + IDENTITY, "forbidden: wr"),
    "results closed": (
        POSIX + "posix.close(1)" + IDENTITY,
        "forbidden: system call|ended with status|ran longer",
    ),
    "no function": ("solve = 3", "TypeError"),
    "nothing": ("", "defines no solve"),
    "no Python": ("def solve(grid:", "SyntaxError"),
    "no text": ("solve = '\x00\ud800'", "Unicode"),
    "colour 10": ("def solve(grid):\n    return [[10]]", "returned no grid: row 1 has cell 10"),
    "ragged": ("def solve(grid):\n    return [[1, 2], [3]]", "returned no grid: row 2 has 1 cells"),
    "floats": ("def solve(grid):\n    return [[float(c) for c in r] for r in grid]", "TypeError"),
    "None": ("def solve(grid):\n    pass", "TypeError"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_a_program_may_not_do_ends_it(name, tmp_path, monkeypatch):
    code, why = ATTACKS[name]
    monkeypatch.chdir(tmp_path)
    kept = tmp_path / "kept"
    kept.write_text("kept")
    code = code.replace("OWNED", str(tmp_path / "owned")).replace("KEPT", str(kept))
    started = []

    class Popen(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.append(self.pid)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    begun = time.monotonic()
    results = run_program(code, [A, B], seconds=0.3, megabytes=128)
    assert time.monotonic() - begun < 4 * 0.3 + 5 + sandbox.START
    assert len(results) == 2
    for result in results:
        assert isinstance(result, Failure)
    assert any(re.match(why, result.why) for result in results), results
    assert list(tmp_path.iterdir()) == [kept]
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.killpg(pid, 0)


@pytest.mark.parametrize(
    "code",
    [
        "class Any(int):\n    def __eq__(self, other):\n        return True\n"
        "def solve(grid):\n    return [[Any(7)]]",
        "import collections\njson = collections._sys.modules['json']\n"
        "json.dumps = lambda what: '[[7]]'" + IDENTITY,
        "import collections\nfor name in ('list', 'len', 'type', 'isinstance', 'tuple'):\n"
        "    setattr(collections._sys.modules['builtins'], name, lambda *a: True)\n"
        "def solve(grid):\n    return [[7]]",
    ],
)
def test_what_a_program_changes_about_itself_is_worth_a_return_value(code):
    for result in run_program(code, [A, B]):
        assert result == ((7,),) or isinstance(result, Failure)
    assert json.dumps([1]) == "[1]"


@pytest.mark.skipif(SYSTEM not in SYSCALLS, reason=f"no filter of system calls for {SYSTEM}")
@pytest.mark.parametrize(
    "call",
    [
        "open('owned', 'w')",
        "os.fork()",
        "os.kill(os.getppid(), 0)",
        "socket.socket()",
        "os.dup(1)",
        "_thread.start_new_thread(print, ())",
    ],
)
def test_the_kernel_holds_where_python_does_not(call):
    folder = str(Path(sandbox_child.__file__).parent)
    code = (
        f"import sys, os, socket, _thread; sys.path.insert(0, {folder!r})\n"
        f"import sandbox_child as sandbox\nassert sandbox._filter_syscalls()\n{call}"
    )
    assert subprocess.run([sys.executable, "-I", "-S", "-c", code]).returncode == -31  # SIGSYS


def test_without_the_filter_no_file_can_be_opened_and_the_caller_is_told(tmp_path, monkeypatch):
    source = Path(sandbox_child.__file__).read_text()
    assert '"linux", "' in source
    (tmp_path / "sandbox_child.py").write_text(source.replace('"linux", "', '"", "'))
    code = (
        f"import sys, os; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import sandbox_child as sandbox\n"
        "assert 'a filter of system calls' in sandbox._limit(1.0, 64)\n"
        "try: os.open('.', 0)\nexcept OSError as error: os._exit(error.errno)"
    )
    assert subprocess.run([sys.executable, "-I", "-S", "-c", code]).returncode == 24  # EMFILE
    monkeypatch.setattr(sandbox_child, "__file__", str(tmp_path / "sandbox_child.py"))
    with pytest.warns(UserWarning, match="a filter of system calls cannot be had on this machine"):
        assert run_program(FLIP, [B]) == [B]
    with pytest.warns(UserWarning):
        assert run_program(POSIX + "posix.fork()", [B]) == [Failure("forbidden: os.fork")]


def test_a_sandbox_that_does_not_start_is_no_fault_of_the_program(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("raise SystemExit('cannot start')")
    monkeypatch.setattr(sandbox_child, "__file__", str(tmp_path / "broken.py"))
    with pytest.raises(SandboxError, match="ended with 1 before it was ready: cannot start"):
        run_program(FLIP, [A])
    rating = rated(answer(FLIP), problem((A, B)))
    assert rating.failure is not None and "cannot start" in rating.failure


def test_a_sandbox_may_be_slow_to_start(tmp_path, monkeypatch):
    own = Path(sandbox_child.__file__).read_text()
    (tmp_path / "slow.py").write_text(
        own.replace("import os\n", "import os, time\ntime.sleep(5)\n", 1)
    )
    monkeypatch.setattr(sandbox_child, "__file__", str(tmp_path / "slow.py"))
    assert run_program(FLIP, [A, B], seconds=0.2) == [A[::-1], B[::-1]]


def test_what_programs_do_in_earnest_works():
    code = """
from typing import List, NamedTuple
import collections, copy, functools, itertools, math
import numpy as np

Point = collections.namedtuple("Point", "x y")

class Cell(NamedTuple):
    colour: int

@functools.lru_cache(None)
def same(x):
    return x

def solve(grid: List[List[int]]):
    print("looking at", np.array(grid) / 0)
    cells = copy.deepcopy(grid)
    assert Point(1, 2)._replace(x=2).x == 2 and math.gcd(4, 6) == 2
    assert list(itertools.chain(*grid)) == np.array(grid).flatten().tolist()
    assert np.linalg.det(np.eye(3)) == 1 and (np.ones((9, 9)) @ np.ones((9, 9)))[0, 0] == 9
    return np.rot90([[same(Cell(c).colour) for c in row] for row in cells])

if __name__ == "__main__":
    solve(None)
"""
    assert run_program(code, [A, B]) == [((2, 4), (1, 3)), B]


def test_inputs_fail_one_by_one():
    crash = "def solve(grid):\n    return [[grid[1][0]]]"
    assert run_program(crash, [B, A]) == [Failure("IndexError"), ((3,),)]
    late = "def solve(grid):\n    while len(grid) == 1: pass\n    return grid"
    assert run_program(late, [A, B, A], seconds=0.3) == [A] + [Failure("ran longer than 0.3 s")] * 2


def test_compare_by_hand():
    def values(got, want=A):
        return tuple(compare(got, want).values())  # exact, shape, colour, cells

    assert values(A) == (1, 1, 1, 1)
    assert values(((1, 2), (4, 3))) == (0, 1, 1, 1 / 2)
    assert values(((1, 2),)) == (0, 0, 2 / 4, 2 / 4)
    assert values(((1, 9, 2),)) == (0, 0, 2 / 4, 1 / 6)  # a frame of 2 rows and 3 columns
    assert values(((1,) * 3,) * 3) == (0, 0, 1 / 9, 1 / 9)
    assert values(((7, 7), (7, 7))) == (0, 1, 0, 0)
    assert values(Failure("IndexError")) == (0, 0, 0, 0)


def test_values_by_hand():
    shown = problem((A, A), (B, B))
    right = rated(answer("def solve(grid):\n    return grid"), shown)
    assert right.value == 0.0 and right.failure is None
    assert right.parts == dict.fromkeys(("exact", "shape", "colour", "cells", "program"), 1.0)
    # The first pair has its rows swapped: shape 1, colour 1, cells 0. The second is right.
    half = rated(answer(FLIP), shown)
    assert half.value == pytest.approx((1 + (2 / 3) / 2) / 2 - 1)
    assert half.parts == {"exact": 0.5, "shape": 1, "colour": 1, "cells": 0.5, "program": 1}
    # One crashes, the other has one of two cells: shape 0, colour 1/2, cells 1/2.
    poor = rated(answer("def solve(grid):\n    return [[grid[0][0], 1 // (2 - len(grid))]]"), shown)
    assert poor.value == pytest.approx((0 + (0 + 1 / 3) / 2) / 2 - 1)
    assert poor.parts == {"exact": 0, "shape": 0, "colour": 0.25, "cells": 0.25, "program": 1}


@pytest.mark.parametrize("count", [1, 2, 5])
def test_one_more_right_pair_is_worth_more_than_all_that_are_nearly_right(count, monkeypatch):
    want = ((1,) * 30,) * 30
    near = ((1,) * 30,) * 29 + ((1,) * 29 + (2,),)
    shown = problem(*[(want, want)] * count)

    def value(results):
        monkeypatch.setattr(program, "run_program", lambda *args: results)
        return rated(answer("whatever"), shown).value

    for right in range(count):
        rest = count - right - 1
        assert value([want] * right + [near] * (rest + 1)) < value(
            [want] * (right + 1) + [Failure("")] * rest
        )


def test_an_answer_without_a_program_has_the_lowest_value():
    for text in ("", "return grid", "```python\ndef solve(grid): return grid", "```\nx\n```"):
        rating = rated(text, problem((A, A)))
        assert rating.value == Program().low and rating.parts["program"] == 0


def test_a_problem_without_pairs_has_no_value():
    for shown in (None, (), "text"):
        rating = rated(answer(FLIP), Problem("p", "q", "q", shown=shown))
        assert rating.failure == "problem 'p' shows no pairs to run a program on"


def test_the_last_program_counts():
    assert find_program("```python\na\n```\n```python \nb\n```\n```\nc\n```") == "b\n"
    assert find_program("```python\na\n```\n```python\nb") is None
    assert find_program("a") is None


def test_arc_is_graded_on_the_test_pairs(tmp_path):
    task = load(tmp_path / "arc.json")
    only = task.problems[0]
    assert only.gold is None and only.shown[0] == Pair(A, ((3, 4), (1, 2)))
    assert "Output 2:\n7\n6\n5\n\nTest input:\n8 1\n9 0\n2 6\n\nAnswer in two" in only.prompt
    assert task.grade(only, answer(FLIP)) and rated(answer(FLIP), only).value == 0.0
    by_heart = "{2: [[3, 4], [1, 2]], 1: [[7], [6], [5]]}"
    learnt = f"def solve(grid):\n    return {by_heart}[len(grid[0])]"
    assert rated(answer(learnt), only).value == 0.0 and not task.grade(only, answer(learnt))
    assert not task.grade(only, FLIP) and not task.grade(only, answer("solve = 3"))


def test_the_test_outputs_are_not_in_the_problem(tmp_path):
    task = load(tmp_path / "arc.json")
    for shown in (repr(task), str(task.problems[0].prompt)):
        digits = "".join(c for c in shown if c.isdigit())
        assert "819026" in digits  # the test input, in any notation
        assert "269081" not in digits


def test_arc_from_a_folder(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.json").write_text(json.dumps(TASK))
    assert [p.id for p in load_arc(tmp_path, limit=2).problems] == ["a", "b"]


def changed(part, number, side, grid):
    task = json.loads(json.dumps(TASK))
    task[part][number][side] = grid
    return task


@pytest.mark.parametrize(
    ("task", "error"),
    [
        (3, "task 'flip': no 'train' pairs; expected a task with 'train' and 'test'"),
        ({"train": []}, "no 'train' pairs"),
        ({"train": TASK["train"]}, "no 'test' pairs"),
        ({**TASK, "test": [{"input": [[1]]}]}, "test pair 1 has no 'output'; expected a grid"),
        (changed("train", 1, "input", [[1], [2, 3]]), "train pair 2, input: row 2 has 2 cells"),
        (changed("test", 0, "output", [[1.5]]), "test pair 1, output: row 1 has cell 1.5"),
        (changed("train", 0, "output", [[True]]), "train pair 1, output: row 1 has cell True"),
        (changed("train", 0, "output", [[10]]), "row 1 has cell 10, expected 0 to 9"),
        (changed("train", 0, "output", []), "train pair 1, output: no list of rows"),
        (changed("train", 0, "output", [[1] * 31]), "1 rows and 31 columns, expected 1 to 30"),
    ],
)
def test_a_bad_task_is_named(task, error, tmp_path):
    with pytest.raises(DataError) as caught:
        load(tmp_path / "arc.json", task)
    assert str(caught.value).startswith(f"{tmp_path / 'arc.json'}, task 'flip': ")
    assert error in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, "no such file"),
        ("{", "arc.json: not JSON"),
        ("[1]", "a JSON list; expected an object"),
        ("{}", "has no tasks"),
    ],
)
def test_a_bad_file_is_named(text, error, tmp_path):
    if text is not None:
        (tmp_path / "arc.json").write_text(text)
    with pytest.raises(DataError, match=error):
        load_arc(tmp_path / "arc.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no tasks"):
        load_arc(tmp_path / "empty")


def test_an_integer_of_thousands_of_digits_fails_its_own_pair_alone():
    code = "def solve(grid):\n    return [[10 ** 5000]] if len(grid) == 1 else grid"
    first, second = run_program(code, [A, B])
    assert first == A and second == Failure(
        "returned no grid: row 1 has cell 1000, expected 0 to 9"
    )


@pytest.mark.parametrize(
    "error",
    [
        "type('x' * 10 ** 7, (ValueError,), {})",
        "type('M', (type,), {'__name__': property(lambda _: 10 ** 5000)})('E', (ValueError,), {})",
    ],
)
def test_the_name_of_an_error_fails_its_own_pair_alone(error):
    code = f"def solve(grid):\n    if len(grid) == 1:\n        raise {error}()\n    return grid"
    results = run_program(code, [B, A])
    assert isinstance(results[0], Failure) and len(results[0].why) <= 200 and results[1] == A


DEADLOCK = """
import collections
lock = collections._sys.modules["_thread"].allocate_lock()
lock.acquire()
def solve(grid):
    lock.acquire()
"""


def descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [p for child in children for p in (int(child), *descendants(int(child)))]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_program_that_waits_for_ever_ends_with_a_killed_caller():
    calls = (
        f"from latentwire.tasks.sandbox import run_program; run_program({DEADLOCK!r}, [((1,),)])"
    )
    caller = subprocess.Popen([sys.executable, "-c", calls])
    until = time.monotonic() + 60
    while time.monotonic() < until and not (found := descendants(caller.pid)):
        time.sleep(0.05)
    (child,) = found
    # It is under its limits once it holds no file open.
    while time.monotonic() < until and "Max open files            0" not in (
        Path(f"/proc/{child}/limits").read_text()
    ):
        time.sleep(0.05)
    time.sleep(0.3)
    assert alive(child)
    caller.kill()
    caller.wait()
    until = time.monotonic() + 3
    while time.monotonic() < until and alive(child):
        time.sleep(0.05)
    assert not alive(child)


def test_a_flood_of_line_breaks_costs_the_caller_little(monkeypatch):
    read = []
    real = sandbox._result
    monkeypatch.setattr(sandbox, "_result", lambda *args: read.append(1) or real(*args))
    flood = POSIX + "posix.write(1, b'\\n' * 2 ** 20)" + IDENTITY
    start = time.process_time()
    results = run_program(flood, [A, B])
    assert [r.why for r in results] == ["forbidden: wrote into the results"] * 2
    assert len(read) <= 3 and time.process_time() - start < 1
