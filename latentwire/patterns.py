"""Regular expressions that a user writes: some never end on some texts, and are given up in time.

[match.span() for match in find_all(compiled(r"v\\d+"), text)]
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import regex

from latentwire.reading import InputError

SECONDS = 2.0
"""Longest search of one text."""


class PatternError(InputError):
    """A regular expression does not compile, or takes too long."""


def compiled(source: str, flags: int = 0) -> Any:
    """A pattern of the `regex` library, whose syntax holds that of re. Raises PatternError for one
    that does not compile."""
    try:
        return regex.compile(source, flags)
    except (regex.error, RecursionError, OverflowError, ValueError) as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise PatternError(f"{source[:80]!r} does not compile ({why})") from None


def find_all(pattern: Any, text: str) -> Iterator[Any]:
    """Its matches in a text, in order. Raises PatternError where that takes more than SECONDS, or
    all memory."""
    try:
        yield from pattern.finditer(text, timeout=SECONDS)
    except TimeoutError:
        raise PatternError(
            f"{pattern.pattern[:80]!r} took longer than {SECONDS:g} s on a text of {len(text)} "
            "characters; write one without repetitions inside of repetitions"
        ) from None
    except MemoryError:  # it calls itself without an end
        raise PatternError(
            f"{pattern.pattern[:80]!r} took all memory on a text of {len(text)} characters; write "
            "one that does not call itself where it began"
        ) from None
