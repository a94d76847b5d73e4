"""Rules for what of a text a wire keeps as text: numbers, names, or whatever a user's own regular
expression finds.

    wire = Wire.from_pretrained("default").keeping("numbers")
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator

from latentwire.wire.folder import WireError

Found = Iterator[tuple[int, int]]
"""Spans of a text, in characters: where each begins, and where it ends."""

_NUMBER = re.compile(r"(?:(?<!\w)[-+\u2212])?\d+(?:[-\u2013.,:/'\u2019\u00a0\u202f]\d+)*")
_WORD = re.compile(
    # A full stop after a capital letter or a title ends no sentence: J. K. Rowling, St. Louis.
    r"(?P<begin>(?:\A|(?<!\b[A-Z])(?<!\b(?:Dr|Mr|Ms|St))(?<!\bMrs)[.!?\u2026][\"'\u201d\u2019)\]]*\s|\n[^\S\n]*\n)"
    r"\s*[\"'\u201c\u2018(\[]*)?"
    r"(?P<word>\w+(?:[-.:/@'\u2019]\w+)*)"
)
_IDENTIFIER = re.compile(r"[_@]|\d.*[^\W\d_]|[^\W\d_].*\d|[a-z][A-Z]")


def numbers(text: str) -> Found:
    """Digits with their sign and separators: -3.5, 1,759, 12:30, 1914-1918, 2024/05/01."""
    return (match.span() for match in _NUMBER.finditer(text))


def names(text: str) -> Found:
    """Capitalised words that do not begin a sentence, as its punctuation has it, and anywhere
    identifiers: words with "_" or "@", with letters and digits, or in camel case (some_name,
    UUIDs, v2, parseFile)."""
    for match in _WORD.finditer(text):
        word = match["word"]
        if (match["begin"] is None and word[0].isupper()) or _IDENTIFIER.search(word):
            yield match.span("word")


RULES: dict[str, Callable[[str], Found]] = {"numbers": numbers, "names": names}


def finder(rule: str) -> Callable[[str], Found]:
    """What finds the spans that a rule keeps: one of RULES by its name, or a regular expression of
    Python's re. Raises WireError for one that does not compile, or a word that is nearly the name
    of a rule."""
    if rule in RULES:
        return RULES[rule]
    near = difflib.get_close_matches(rule.lower(), RULES, n=1, cutoff=0.8)
    if near and rule.isalpha():
        raise WireError(
            f"no rule {rule!r} (did you mean {near[0]!r}?); write ({rule}) for the word"
        )
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise WireError(
            f"{rule!r} does not compile ({error}); expected {', '.join(RULES)} or a regular "
            "expression"
        ) from None
    return lambda text: (match.span() for match in pattern.finditer(text) if match[0])
