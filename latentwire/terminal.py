"""The terminal, to which whatever is printed is text: no markup, no highlighting, no emoji codes.

out = terminal()
out.print(line, style="dim")
"""

from __future__ import annotations

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
