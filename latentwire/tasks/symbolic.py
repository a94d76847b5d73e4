"""Compares two expressions by math-verify, in a process of its own.

    Comparison().equal(r"1/\\sqrt{3}", r"\\frac{\\sqrt{3}}{3}")      # True

sympy can work for ever on a short text ("10^{10^{10}}"), inside of C code that no signal interrupts
and no thread can leave. So the child, which is this very file run as a script, gets a limit of CPU
time from the kernel, and is killed and replaced when it passes it. One child serves all threads of
a process, one request at a time; it ends when its standard input does.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import cache
from typing import Any

SECONDS = 1
"""CPU time of one Comparison: it is stopped between one and two times this."""
WALL = 60.0
"""Seconds for one request where a machine is busy, or has no limits of CPU time (Windows)."""
REQUESTS = 50
"""Most pairs that one Comparison looks at."""
MEMORY = 4 << 30
"""Bytes of address space of the child."""


class TooHard(Exception):
    """A comparison that passed its limits."""


class Comparison:
    """A budget of time and requests, for all parts of one answer."""

    def __init__(self) -> None:
        self._requests = 0

    def equal(self, given: str, gold: str, rounded: bool = False) -> bool:
        """True where two expressions are equal: LaTeX, or fractions of integers such as "-3/4".

        rounded: one of them may be a rounded number, so that constants are compared within one
        millionth. Raises TooHard when the budget is spent."""
        self._requests += 1
        if self._requests > REQUESTS:
            raise TooHard
        return _child(os.getpid()).ask([self._requests == 1, rounded, given, gold])


@cache
def _child(pid: int) -> _Child:
    """The child of this process: one that was forked starts its own."""
    return _Child()


class _Child:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = _start()

    def ask(self, request: list[Any]) -> bool:
        with self._lock:
            if self._process.poll() is not None:  # killed from outside
                self._process = _start()
            process = self._process
            assert process.stdin and process.stdout
            watchdog = threading.Timer(WALL, process.kill)
            watchdog.start()
            try:
                process.stdin.write(json.dumps(request).encode() + b"\n")
                reply = process.stdout.readline()
            except OSError:
                reply = b""
            finally:
                watchdog.cancel()
            if reply:
                return reply == b"1\n"
            process.kill()
            process.communicate()
            self._process = _start()  # loads sympy while the caller goes on
            if process.returncode > 0 and sys.platform != "win32":
                raise RuntimeError(f"no math-verify; run python -P {__file__} to see why")
            raise TooHard


def _start() -> subprocess.Popen[bytes]:
    # -P: modules that lie beside this file are not to be taken for others. A new session: Ctrl-C in
    # a notebook is not for the child.
    return subprocess.Popen(
        [sys.executable, "-P", __file__],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


# The child.


def _serve() -> None:
    _equal("x", "x", False)  # loads sympy before the clock runs
    _limit("RLIMIT_AS", MEMORY)
    _limit("RLIMIT_CORE", 0)
    for line in sys.stdin.buffer:
        is_first, rounded, given, gold = json.loads(line)
        if is_first:
            _limit("RLIMIT_CPU", math.ceil(time.process_time()) + SECONDS)
        try:
            answer = _equal(given, gold, rounded)
        except Exception:  # of sympy's many; what can't be compared is not the gold answer
            answer = False
        sys.stdout.write("1\n" if answer else "0\n")
        sys.stdout.flush()


def _limit(name: str, value: int) -> None:
    # No such module on Windows; no such limit on macOS; a lower one is set already.
    with suppress(ImportError, AttributeError, ValueError, OSError):
        import resource

        kind = getattr(resource, name)
        resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def _equal(given: str, gold: str, rounded: bool) -> bool:
    from math_verify import verify
    from sympy import Expr, Float

    a, b = _parse(given), _parse(gold)
    rounded = rounded or any(x.has(Float) for x in (a, b) if isinstance(x, Expr))
    if all(isinstance(x, Expr) and not x.free_symbols for x in (a, b)):
        return _equal_constants(a, b, rounded)
    # Fewer digits would take all that is below 1e-15 for 0; a float doesn't have more.
    digits = 15 if rounded else 50
    return bool(verify(b, a, numeric_precision=digits, timeout_seconds=0))


def _parse(text: str) -> Any:
    from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
    from math_verify.grader import should_treat_as_complex
    from sympy import Rational

    if text.lstrip("-").replace("/", "").isdecimal() and text.count("/") == 1:
        return Rational(text)  # latex2sympy would take long ones for floats
    # Its units would make 3t of 3.
    config = NormalizationConfig(malformed_operators=True, nits=True, units=False, boxed="none")
    # Not math_verify.parse: where the whole can't be parsed, that goes on to a part of it.
    latex = normalize_latex(text, config)
    return latex2sympy(
        latex,
        is_real=not should_treat_as_complex(latex),
        convert_degrees=False,
        normalization_config=None,
    )


def _equal_constants(a: Any, b: Any, rounded: bool) -> bool:
    from sympy import Abs, N

    a, b = a.doit(), b.doit()
    if a == b:
        return True
    size = max(N(Abs(a), 20), N(Abs(b), 20))
    tolerance = size * (1e-6 if rounded else 1e-40)
    return bool(size.is_finite and N(Abs(a - b), 20) <= tolerance)


if __name__ == "__main__":
    _serve()
