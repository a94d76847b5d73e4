"""Runs a program that a model wrote on grids, in a process of its own.

    run_program("def solve(grid): return grid[::-1]", [((1, 2), (3, 4))])   # [((3, 4), (1, 2))]

The child is sandbox_child.py, run as a script. It gets the code and the inputs, never what should
come out: comparing is the caller's. So whatever a program does to its own interpreter (patched
builtins, forged results) is worth no more to it than another return value. What it may do is
bounded from outside of Python where that can be had:

- CPU time, memory and bytes of output are limited, no file descriptor can be opened, and the whole
  session is killed at the end (setrlimit, setsid, a wall clock in the parent); a child that a
  killed parent leaves behind ends with it on Linux, and by its own clock elsewhere;
- on Linux on x86-64 and arm64 the kernel kills it at any system call beyond memory, read and write
  (seccomp): no files, sockets, signals, threads or processes, whichever way it got there;
- everywhere an audit hook ends it at the first event that is not in FREE, before it happens; a
  program cannot catch that. Imports other than MODULES end it in the same way.

It is not a virtual machine. A bug in the kernel gets through, and so does timing or load. Without
seccomp (macOS, other processors) a program that corrupts the interpreter's memory, as numpy allows,
can switch the audit hook off; macOS does not hold the memory limit either. run_program warns where
a barrier is missing. Run models that you don't trust in a container.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from latentwire.tasks import sandbox_child
from latentwire.tasks.sandbox_child import FORBIDDEN, OUTPUT, SIDE, wall

Grid = tuple[tuple[int, ...], ...]
"""Rows of cells, all equally long; a cell is a colour, 0 to 9."""

START = 60.0
"""Seconds that the child may take to come up, which a busy machine stretches."""


@dataclass(frozen=True)
class Failure:
    """The reason why a program gave no grid for an input."""

    why: str


class SandboxError(OSError):
    """The sandbox itself did not work, so that nothing can be said about a program."""


def as_grid(value: Any) -> Grid:
    """Lists of lists of integers as a Grid; raises ValueError saying what else it is."""
    if not isinstance(value, list) or not value or not all(isinstance(r, list) for r in value):
        raise ValueError("no list of rows")
    if not 1 <= len(value[0]) <= SIDE or len(value) > SIDE:
        raise ValueError(f"{len(value)} rows and {len(value[0])} columns, expected 1 to {SIDE}")
    for number, row in enumerate(value, 1):
        if len(row) != len(value[0]):
            raise ValueError(f"row {number} has {len(row)} cells, expected {len(value[0])}")
        for cell in row:
            if type(cell) is not int or not 0 <= cell <= 9:
                raise ValueError(f"row {number} has cell {repr(cell)[:20]}, expected 0 to 9")
    return tuple(tuple(row) for row in value)


def run_program(
    code: str, inputs: Sequence[Grid], seconds: float = 2.0, megabytes: int = 512
) -> list[Grid | Failure]:
    """The results of the program's `solve` for each input, in order.

    seconds: CPU time for all inputs together (by the wall clock, four times that and 4 s more, from
    when the child is ready).
    megabytes: memory beyond what the interpreter takes. An exception fails its own input, running
    out of time those after it too, and a forbidden action all. Raises SandboxError where the child
    does not come up, which is no fault of the program.
    """
    mark = os.urandom(16).hex()  # begins each line that is the child's own
    job = {"mark": mark, "code": code, "inputs": inputs, "seconds": seconds, "megabytes": megabytes}
    status, said = _spawn(json.dumps(job), wall(seconds))
    # What follows the last line's end was cut off, and lines beyond one too many are not read.
    lines = said.split("\n", len(inputs) + 2)[:-1]
    if not lines or not lines[0].startswith(mark):
        last = (said.strip().rpartition("\n")[2] or "nothing")[:200]
        raise SandboxError(f"sandbox: its process ended with {status} before it was ready: {last}")
    if missing := json.loads(lines[0][len(mark) :]):
        warnings.warn(
            f"sandbox: {' and '.join(missing)} cannot be had on this machine; run untrusted models "
            "in a container",
            stacklevel=2,
        )
    results = [_result(mark, line) for line in lines[1:]]
    results += [Failure(_ending(status, seconds))] * (len(inputs) - len(results))
    if len(results) > len(inputs):
        results.append(Failure(f"{FORBIDDEN}wrote into the results"))
    for result in results:
        if isinstance(result, Failure) and result.why.startswith(FORBIDDEN):
            return [result] * len(inputs)
    return results


def _result(mark: str, line: str) -> Grid | Failure:
    try:
        result = json.loads(line.removeprefix(mark)) if line.startswith(mark) else None
        return Failure(result[:200]) if isinstance(result, str) else as_grid(result)
    except (ValueError, RecursionError) as error:
        if line.startswith(mark):
            return Failure(f"returned no grid: {error}")
        return Failure(f"{FORBIDDEN}wrote into the results")


def _ending(status: int, seconds: float) -> str:
    if status == -signal.SIGSYS:
        return f"{FORBIDDEN}system call"
    if status in (-signal.SIGPROF, -signal.SIGXCPU, -signal.SIGKILL, -signal.SIGALRM):
        return f"ran longer than {seconds:g} s"
    return f"ended with status {status}"


def _spawn(job: str, wall: float) -> tuple[int, str]:
    """Exit status and output of the child, which is killed `wall` seconds after its first output,
    which says that it is ready, or at OUTPUT bytes."""
    until, said = time.monotonic() + START, bytearray()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as told:
        told.write(job.encode())
        told.seek(0)
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", sandbox_child.__file__, _numpy_home()],
            stdin=told,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={"OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )
        assert child.stdout is not None
        try:
            poll = select.poll()
            poll.register(child.stdout, select.POLLIN)
            while len(said) < OUTPUT and poll.poll(1000 * max(0.0, until - time.monotonic())):
                part = os.read(child.stdout.fileno(), OUTPUT)
                if not part:
                    break
                until = until if said else time.monotonic() + wall
                said += part
        finally:
            _kill_session(child.pid)
            status = child.wait()
            child.stdout.close()
    return status, said.decode("ascii", "replace")


def _kill_session(pid: int) -> None:
    # One that has ended is not found, on macOS not permitted.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _numpy_home() -> str:
    spec = find_spec("numpy")
    assert spec is not None and spec.origin is not None
    return str(Path(spec.origin).parents[1])
