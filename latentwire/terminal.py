"""The terminal, to which whatever is printed is text: no markup, no highlighting, no emoji codes;
and how a command tells a mistake there.

out = terminal()
out.print(line, style="dim")
exit_with(command)
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.text import Text

from latentwire.reading import escaped


class _Terminal(Console):
    """A console of rich that escapes what a terminal would obey in the texts it is given."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


def terminal(**options: Any) -> Console:
    """A console that prints texts as they are; styles are given beside them."""
    return _Terminal(markup=False, highlight=False, emoji=False, **options)


def printable(text: str) -> str:
    """A text without characters that a terminal would obey, such as escape sequences; line breaks
    and tabs stay."""
    return escaped(text, kept="\n\t")


def exit_with(command: Callable[[], int | None]) -> None:
    """Exit with the status of a command; a user's mistake is one line on stderr and status 2."""
    warnings.formatwarning = lambda message, *_, **__: f"latentwire: {printable(str(message))}\n"
    try:
        status = command()
    except BrokenPipeError:  # who reads our output has enough, as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except (ValueError, OSError, FloatingPointError) as error:
        # Some messages come from libraries and have many lines; a user's mistake costs one.
        print("latentwire:", printable(" ".join(str(error).split())), file=sys.stderr)
        raise SystemExit(2) from None
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        said = printable(" ".join(str(error).split()))
        print(f"latentwire: {said} Take fewer rows at a time, or bfloat16.", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    if status:
        raise SystemExit(status)
