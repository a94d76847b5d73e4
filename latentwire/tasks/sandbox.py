"""Runs a program that a model wrote on grids, in a process of its own.

    run_program("def solve(grid): return grid[::-1]", [((1, 2), (3, 4))])   # [((3, 4), (1, 2))]

The child is this very file, run as a script. It gets the code and the inputs, never what should
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
import resource
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from operator import index
from pathlib import Path
from typing import Any

Grid = tuple[tuple[int, ...], ...]
"""Rows of cells, all equally long; a cell is a colour, 0 to 9."""

SIDE = 30
"""Most rows and most columns of a grid, as in ARC-AGI."""

MODULES = ("math", "itertools", "collections", "functools", "copy", "typing", "numpy")
"""What a program may import; of numpy, what `import numpy` loads: not numpy.random."""

START = 60.0
"""Seconds that the child may take to come up, which a busy machine stretches."""
OUTPUT = 1 << 20
"""Most bytes that the child may give back, and characters that a program may print (to nowhere)."""

FORBIDDEN = "forbidden: "
"""Begins the `why` of a Failure of a program that was stopped at what it must not do."""


@dataclass(frozen=True)
class Failure:
    """Why a program gave no grid for an input."""

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
    """What the program's `solve` gives for each input, in order.

    seconds: CPU time for all inputs together (by the wall clock, four times that and 4 s more, from
    when the child is ready).
    megabytes: memory beyond what the interpreter takes. An exception fails its own input, running
    out of time those after it too, and a forbidden action all. Raises SandboxError where the child
    does not come up, which is no fault of the program.
    """
    mark = os.urandom(16).hex()  # begins each line that is the child's own
    job = {"mark": mark, "code": code, "inputs": inputs, "seconds": seconds, "megabytes": megabytes}
    status, said = _spawn(json.dumps(job), _wall(seconds))
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


def _wall(seconds: float) -> float:
    """Seconds by the wall clock for a program that has so many of CPU time."""
    return 4 * seconds + 4


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
            [sys.executable, "-I", "-S", "-B", __file__, _numpy_home()],
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


# From here on: what runs in the child.

FREE = {
    "compile",  # as namedtuple does
    "exec",
    "object.__setattr__",
    "object.__delattr__",
    "builtins.id",
    "sys._getframe",
    "sys._getframemodulename",
    "sys.unraisablehook",
}
"""Audit events that don't end a program."""

SYSCALLS = {
    # read write mmap mprotect munmap brk rt_sigreturn mremap madvise futex clock_gettime exit
    # exit_group getrandom mbind (OpenBLAS)
    ("linux", "x86_64", 8): (
        0xC000003E,
        (0, 1, 9, 10, 11, 12, 15, 25, 28, 202, 228, 60, 231, 318, 237),
    ),
    ("linux", "aarch64", 8): (
        0xC00000B7,
        (63, 64, 222, 226, 215, 214, 139, 216, 233, 98, 113, 93, 94, 278, 235),
    ),
}
"""By SYSTEM, its number in linux/audit.h and those of the system calls that remain."""

SYSTEM = (sys.platform, os.uname().machine, struct.calcsize("P"))


class _Printed:
    """Where a program's prints go: counted, dropped."""

    def __init__(self, stop: Any):
        self._left, self._stop = OUTPUT, stop

    def write(self, text: str) -> int:
        self._left -= len(text)
        if self._left < 0:
            self._stop("prints too much")
        return len(text)

    def flush(self) -> None:
        pass


def _child() -> None:
    job = json.load(sys.stdin)
    mark, write, leave = job["mark"], os.write, os._exit

    def say(what: Any) -> None:
        write(1, f"{mark}{json.dumps(what)}\n".encode())

    def stop(what: str) -> None:
        try:
            say(f"{FORBIDDEN}{what}"[:200])
        finally:
            leave(1)

    def allowed_import(name: str, *args: Any) -> Any:
        if name.partition(".")[0] not in modules:
            stop(f"import {name}")
        return real_import(name, *args)  # what is not loaded yet ends at the audit hook

    compiling = True

    def audit(event: str, args: Any) -> None:
        if event not in FREE and compiling:
            raise PermissionError(event)  # a syntax error looks for the source file
        if event not in FREE:
            stop(event)

    sys.path.append(sys.argv[1])
    names = [m for m in MODULES if m != "numpy" or m in job["code"]]  # numpy takes 0.1 s
    modules = {name: import_module(name) for name in names}
    builtins = vars(import_module("builtins")).copy()
    real_import = builtins["__import__"]
    builtins["__import__"] = allowed_import
    space: dict[str, Any] = {"__name__": "program", "__builtins__": builtins}
    sys.stdout = sys.stderr = _Printed(stop)  # type: ignore[assignment]
    warnings.simplefilter("ignore")  # showing one looks for the source file
    say(_limit(job["seconds"], job["megabytes"]))
    sys.addaudithook(audit)
    try:
        program = compile(job["code"], "program", "exec")
        compiling = False
        exec(program, space)
        broken = None if "solve" in space else "defines no solve"
    except BaseException as error:
        broken = _name(error)
    try:
        for grid in job["inputs"]:
            say(broken or _solve(space["solve"], grid))
        leave(0)
    finally:  # the interpreter's own end would raise audit events, as if the program had
        leave(1)


def _solve(solve: Any, grid: Any) -> Any:
    try:
        rows = islice(solve(grid), SIDE + 1)
        return [[_cell(cell) for cell in islice(row, SIDE + 1)] for row in rows]
    except BaseException as error:
        return _name(error)


def _cell(cell: Any) -> int:
    """An integer that can be written in a few digits: no colour is among those that cannot."""
    return max(-1000, min(int(index(cell)), 1000))


def _name(error: BaseException) -> str:
    return type.__dict__["__name__"].__get__(type(error))[:100]


def _limit(seconds: float, megabytes: int) -> list[str]:
    """Puts up what the system offers against a program; says what it does not offer."""
    missing = []
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu = int(usage.ru_utime + usage.ru_stime + seconds) + 2  # whole seconds, behind the timer
    limits = {"CPU": cpu, "CORE": 0, "FSIZE": 0, "NPROC": 0, "NOFILE": 0}
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limits["AS"] = pages * resource.getpagesize() + (megabytes << 20)
    else:
        missing.append("a memory limit")
    if SYSTEM in SYSCALLS:
        import_module("ctypes")  # while files can still be opened
    for fd in (0, 2):
        os.close(fd)
    for name, most in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    # Ends one that waits and whose caller is gone.
    signal.setitimer(signal.ITIMER_REAL, _wall(seconds) + 1)
    if not _filter_syscalls():
        missing.append("a filter of system calls")
    return missing


def _filter_syscalls() -> bool:
    """From now on the kernel kills this process at any other system call; False where it can't be
    told to. The program is in classic BPF: see seccomp(2) and linux/bpf_common.h."""
    if SYSTEM not in SYSCALLS:
        return False
    import ctypes

    load, equal, give = 0x20, 0x15, 0x06
    kill, allow = 0x80000000, 0x7FFF0000
    architecture, numbers = SYSCALLS[SYSTEM]
    steps = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, kill), (load, 0, 0, 0)]
    for number in numbers:
        steps += [(equal, 0, 1, number), (give, 0, 0, allow)]
    steps.append((give, 0, 0, kill))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HP", len(steps), ctypes.addressof(code)))
    prctl = ctypes.CDLL(None).prctl
    prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    parent_death, no_new_privileges, set_seccomp, filter_mode = 1, 38, 22, 2
    prctl(parent_death, signal.SIGKILL, 0, 0, 0)
    if prctl(no_new_privileges, 1, 0, 0, 0):
        return False
    return prctl(set_seccomp, filter_mode, ctypes.addressof(program), 0, 0) == 0


if __name__ == "__main__":
    _child()
