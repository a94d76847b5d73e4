"""The child of sandbox.py: runs a program under all limits that the system offers.

It is started as a script, without the package and its dependencies, so it imports the standard
library alone.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
import warnings
from importlib import import_module
from itertools import islice
from operator import index
from pathlib import Path
from typing import Any

SIDE = 30
"""Most rows and most columns of a grid, as in ARC-AGI."""

MODULES = ("math", "itertools", "collections", "functools", "copy", "typing", "numpy")
"""Modules that a program may import; of numpy, what `import numpy` loads: not numpy.random."""

OUTPUT = 1 << 20
"""Most bytes that the child may give back, and characters that a program may print (to nowhere)."""

FORBIDDEN = "forbidden: "
"""Begins the `why` of a Failure of a program that was stopped at what it must not do."""

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
    """A file that counts a program's prints and drops them."""

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
    signal.setitimer(signal.ITIMER_REAL, wall(seconds) + 1)
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


def wall(seconds: float) -> float:
    """Seconds by the wall clock for a program that has so many of CPU time."""
    return 4 * seconds + 4


if __name__ == "__main__":
    _child()
