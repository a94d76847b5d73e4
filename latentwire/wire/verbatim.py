"""Rules for what of a text a wire keeps as text: numbers, names, or whatever a user's own regular
expression finds.

    wire = Wire.from_pretrained("default").keeping("numbers")
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from typing import Any

from latentwire.patterns import PatternError, compiled, find_all
from latentwire.wire.folder import WireError

Found = Iterator[tuple[int, int]]
"""Spans of a text, in characters: where each begins, and where it ends."""

_NUMBER = re.compile(r"(?:(?<!\w)[-+\u2212])?\d+(?:[-\u2013.,:/'\u2019\u00a0\u202f]\d+)*")
_WORD = re.compile(r"\w+(?:[-.:/@'\u2019]\w+)*")
_OPENING, _CLOSING = "\"'\u201c\u2018([", "\"'\u201d\u2019)]"
_SHORT = re.compile(r"\b(?:[A-Z]|Dr|Mr|Ms|St|Mrs)\Z")
"""A full stop behind one ends no sentence: J. K. Rowling, St. Louis."""
_DIGIT, _LETTER = re.compile(r"\d"), re.compile(r"[^\W\d_]")
_MARKED = re.compile(r"[_@]|[a-z][A-Z]")


def numbers(text: str) -> Found:
    """Digits with their sign and separators: -3.5, 1,759, 12:30, 1914-1918, 2024/05/01."""
    return (match.span() for match in _NUMBER.finditer(text))


def names(text: str) -> Found:
    """Capitalised words that do not begin a sentence, as its punctuation has it, and anywhere
    identifiers: words with "_" or "@", with letters and digits, or in camel case (some_name,
    UUIDs, v2, parseFile)."""
    end = 0
    for match in _WORD.finditer(text):
        word, gap, end = match[0], text[end : match.start()], match.end()
        first = _begins(text, gap, match.start())
        if (not first and word[0].isupper()) or _is_identifier(word):
            yield match.span()


def _begins(text: str, gap: str, start: int) -> bool:
    """True where the word at `start` begins a sentence. gap: what stands between the word before
    and it. Each character is looked at a few times at most, however many line breaks there are."""
    before = gap.rstrip(_OPENING)
    ended = before.rstrip()
    space = before[len(ended) :]
    if not ended and len(gap) == start:  # nothing but space and quotes before it in the text
        return True
    if space.count("\n") > 1:
        return True
    bare = ended.rstrip(_CLOSING)
    if not space or bare[-1:] not in tuple(".!?\u2026"):
        return False
    stop = start - len(gap) + len(bare) - 1
    return _SHORT.search(text[max(0, stop - 4) : stop]) is None


def _is_identifier(word: str) -> bool:
    mixed = _DIGIT.search(word) and _LETTER.search(word)
    return bool(mixed or _MARKED.search(word))


RULES: dict[str, Callable[[str], Found]] = {"numbers": numbers, "names": names}


def finder(rule: str) -> Callable[[str], Found]:
    """The function that finds the spans which a rule keeps: one of RULES by its name, or a regular
    expression of the `regex` library. Raises WireError for one that does not compile, or a word
    that is nearly the name of a rule; what it returns raises WireError for a text that takes too
    long."""
    if rule in RULES:
        return RULES[rule]
    near = difflib.get_close_matches(rule.lower(), RULES, n=1, cutoff=0.8)
    if near and rule.isalpha():
        raise WireError(
            f"no rule {rule!r} (did you mean {near[0]!r}?); write ({rule}) for the word"
        )
    try:
        pattern = compiled(rule)
    except PatternError as error:
        raise WireError(f"{error}; expected {', '.join(RULES)} or a regular expression") from None
    return lambda text: _spans(pattern, text)


def _spans(pattern: Any, text: str) -> Found:
    try:
        yield from (match.span() for match in find_all(pattern, text) if match[0])
    except PatternError as error:
        raise WireError(str(error)) from None
