r"""Short answers to maths problems: `final_answer` takes one out of a text, `same_answer` compares
it with the gold one.

    same_answer(final_answer(r"... so it is \boxed{\frac{1}{2}}."), "0.5")          # True
"""

from __future__ import annotations

import json
import re
from typing import Literal

from latentwire.tasks.numerals import Number, find_number, parse_number, plain
from latentwire.tasks.symbolic import Comparison, TooHard

Form = Literal["boxed", "json"]
"""The two prompts of LatentSeek (arXiv:2505.13308)."""

LONGEST = 300
"""Longest answer that is compared, in characters; a longer one is wrong."""

# Taking the answer out of a text.

BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
JSON_VALUE = re.compile(
    r"""["']?final[ _]answer["']?\s*:\s*"""
    r"""(?:"(?P<double>(?:[^"\\]|\\.)*)|'(?P<single>(?:[^'\n]|'(?!\s*(?:[,}\n]|$)))*)"""
    r"""|\[(?P<list>[^\]]*)|(?P<bare>(?:[^\n"'\[{}]|\{[^\n"{}]*\})*))""",
    re.IGNORECASE | re.DOTALL,
)
# A model that forgets to double a backslash means \times and not a tab.
JSON_ESCAPE = re.compile(
    r"\\(?!(?:[bf][a-z]+|n(?:eq?|eg|abla|u|ot|otin|mid|leq|geq)|r(?:ho|ight|angle|ceil|floor|m)"
    r"|t(?:imes|heta|anh?|ext[a-z]*|frac|au|o|riangle))(?![a-z]))"
    r"""(?:["\\/'bfnrt]|(?:u[0-9a-fA-F]{4}(?:\\(?=u[0-9a-fA-F]{4}))?)+)"""
)


def final_answer(text: str, form: Form = "boxed", finished: bool = True) -> str | None:
    r"""The answer that a text gives, or None.

    It is the formatted one where there is one: in the form "boxed" what stands in the last
    \boxed{...} that closes and is not empty, in the form "json" the last value of "final answer"
    that is not empty, of an object that may be cut, quoted with ' or have text around it. Otherwise
    it is the last number in the text, as in the "flexible-extract" of GSM8K in lm-evaluation-
    harness: a small model is graded on its maths, not on its format. Not so in a text that is not
    finished: where it was cut off, its last number is an accident."""
    answer = _boxed(text) if form == "boxed" else _json_answer(text)
    return find_number(text) if answer is None and finished else answer


def _boxed(text: str) -> str | None:
    opened: list[int | None] = []  # where the content of an open brace starts, if it is a box's
    start, content = -1, None
    for token in BRACES.finditer(text):
        if token[0].endswith("{") and token[0] != r"\{":
            opened.append(token.end() if len(token[0]) > 1 else None)
        elif token[0] == "}" and opened:
            begin = opened.pop()
            inside = "" if begin is None else text[begin : token.start()].strip()
            if begin is not None and begin > start and inside:
                start, content = begin, inside
    return content


def _json_answer(text: str) -> str | None:
    answer = None
    for match in JSON_VALUE.finditer(text):
        kind = match.lastgroup or ""
        value = match[kind]
        if kind in ("double", "single"):
            value = JSON_ESCAPE.sub(_unescaped, value)
        value = value.strip(" \t\r\n,`")
        if value and value.lower() not in ("null", "none"):
            answer = _boxed(value) or value
    return answer


def _unescaped(match: re.Match[str]) -> str:
    return "'" if match[0] == r"\'" else json.loads(f'"{match[0]}"')


# Comparing two answers.

PROSE = re.compile(
    r"(?<![\\a-zA-Z])(?!(?:abc|xyz|and)(?![a-zA-Z]))[a-zA-Z]{3,}"
    r"|\b(?:am|pm|AM|PM|is|to|it|at|by|an|on|we|he|if|no|so|up)\b"
)
"""Words: as a product of letters, listen would be silent."""
# 12:30, 2020-01-05, 1.2.3
STAMP = re.compile(r"\d+:\d\d(?::\d\d)?|\d+([-./:])\d+(?:\1\d+)+")
ASSIGNED = re.compile(r"^(?:(?:[^=<>+*^\d\-,;!]|_\{?\d+)+|\([a-zA-Z, ]+\) ?)=(?!.*=)")
"""The left side of an equation that gives something a value."""


def same_answer(given: str, gold: str) -> bool:
    r"""True where a final answer is the gold one, as text, as a number or, by math-verify, as
    maths.

    One number is read by the grammar of `numerals`: thousands separators, currency signs, units
    and the words listed in `words` don't count (in neither), so that "\$1,234.50" is "1234.5" and
    "18" is "18 dollars" or "She has 18 cats."; two different units do. Beside any other word
    ("at most 5", "5 pm") a number is text. Numbers are equal within one millionth, so 3/4 is 0.75
    and 1/3 is 0.333333 but not 0.33. A percentage is right as what stands before the sign and as
    its value: "50%" is 50 and is 0.5, 50 is not 0.5. Words compare without case. "x = 5" is "5",
    and not "y = 5". Lists compare part by part: (1, 2) is "1, 2", and what has no brackets or those
    of a set is the same in any order.

    Never raises; an empty answer, one over LONGEST, or one that takes over two seconds of CPU time
    is wrong."""
    if max(len(given), len(gold)) > LONGEST:
        return False
    try:
        return _same(plain(given), plain(gold), Comparison())
    except TooHard:
        return False


def _same(given: str, gold: str, comparison: Comparison) -> bool:
    if not given or not gold:
        return False
    if _spaceless(given) == _spaceless(gold):
        return True
    if ("=" in given) != ("=" in gold):
        bare_given, bare_gold = (ASSIGNED.sub("", text).strip() for text in (given, gold))
        if (bare_given, bare_gold) != (given, gold):
            return _same(bare_given, bare_gold, comparison)
    a, b = parse_number(given), parse_number(gold)
    if a and b:
        return a.is_close(b)
    if (parts := _paired(given, gold)) is not None:
        return _same_parts(*parts, comparison)
    if any(PROSE.search(_bare(text)) or STAMP.fullmatch(text) for text in (given, gold)):
        return False
    rounded = any(number and number.is_decimal for number in (a, b))
    return comparison.equal(_expression(given, a), _expression(gold, b), rounded)


def _spaceless(text: str) -> str:
    text = re.sub(r"(?<!\w)\s|\s(?!\w)", "", text).casefold()
    return re.sub(r"^\((\w)\)$", r"\1", text)  # (B)


def _bare(text: str) -> str:
    return re.sub(r"\\(?:begin|end)\{\w+\}|\\[a-zA-Z]+|_\{[^{}]*\}", " ", text)


def _expression(text: str, number: Number | None) -> str:
    if number is None:
        return text.replace("°", "")
    return f"{number.value.numerator}/{number.value.denominator}"


# Lists.

PIECES = re.compile(r"\\[{}]|\\[a-zA-Z]+|[(\[{]|[)\]}]|[,;]|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])")


def _parts(text: str) -> tuple[str, list[str]]:
    """The brackets around a list ("" if there are none, "{}" for those of a set), and its parts."""
    text = re.sub(r"^\\\{(.*)\\\}$", r"{\1}", text)
    whole = re.fullmatch(r"([(\[{])(.*)([)\]}])", text, re.DOTALL)
    if whole and len(parts := _split(whole[2])) > 1:
        return whole[1] + whole[3], parts
    return "", _split(text)


def _split(text: str) -> list[str]:
    """The text at the commas that are in no bracket; empty where its brackets don't match."""
    depth, start, parts = 0, 0, []
    for piece in PIECES.finditer(text):
        token = piece[0].removeprefix("\\")
        depth += (token in "([{") - (token in ")]}")
        if depth < 0:
            return []
        if not depth and token in (",", ";", "and", "or"):
            parts.append(text[start : piece.start()].strip())
            start = piece.end()
    parts = [part for part in [*parts, text[start:].strip()] if part]
    return parts if not depth and r"\begin" not in text else []


def _paired(given: str, gold: str) -> tuple[list[str], list[str], bool] | None:
    """Parts to be compared and whether their order counts; None for what is not two lists of the
    same kind."""
    (a, given_parts), (b, gold_parts) = _parts(given), _parts(gold)
    if len(given_parts) < 2 or len(gold_parts) != len(given_parts):
        return None
    if a != b and not ({a, b} <= {"", "()"} or {a, b} <= {"", "{}"}):
        return None
    return given_parts, gold_parts, not {a, b} <= {"", "{}"}


def _same_parts(
    given: list[str], gold: list[str], is_ordered: bool, comparison: Comparison
) -> bool:
    if is_ordered:
        return all(_same(a, b, comparison) for a, b in zip(given, gold, strict=True))
    rest = list(gold)
    for a in given:
        match = next((n for n, b in enumerate(rest) if _same(a, b, comparison)), None)
        if match is None:
            return False
        del rest[match]
    return True
