r"""Maths problems with one short answer: GSM8K, MATH-500, AIME and every file of the same form.

    task = load_maths("gsm8k", limit=100)              # or FILE.jsonl: {"question", "answer"}
    task.grade(task.problems[0], r"... so it is \boxed{72}.")

An answer is graded in two steps: `final_answer` takes it out of the text, `same_answer` compares it
with the gold one.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from latentwire.tasks.base import DataError, Problem, Task, read_jsonl, read_text

Form = Literal["boxed", "json"]
"""The two prompts of LatentSeek (arXiv:2505.13308)."""

INSTRUCTIONS: dict[Form, str] = {
    "boxed": "Please reason step by step, and put your final answer within \\boxed{}.",
    "json": (
        "Solve this problem. Reply with one JSON object and nothing else. It has two keys: "
        '"thought process", a string with your reasoning step by step, and "final answer", '
        "a string with the answer alone."
    ),
}
"""What a prompt says after the question, by form."""

HUB = {
    "gsm8k": ("openai/gsm8k", "main", "test"),
    "math500": ("HuggingFaceH4/MATH-500", None, "test"),
    "aime": ("HuggingFaceH4/aime_2024", None, "train"),
}
"""Data sets on the Hugging Face hub, by the name they have here: path, configuration, split."""

LONGEST = 300
"""Longest answer that is compared, in characters; a longer one is wrong."""


def load_maths(source: str, limit: int | None = None, form: Form = "boxed") -> Task:
    """Problems of a JSONL file, or of gsm8k, math500 or aime (2024) on the Hugging Face hub, which
    needs `pip install datasets`; the first `limit` if given.

    A row is {"id", "question", "answer"}. The question may be called "problem". The answer is the
    final one, as text or as a number, or a solution that ends in "#### 72"; the problem of a row
    without one has no gold answer, and `grade` finds every answer to it wrong. Without an id it is
    the file's stem and the line. Raises DataError naming the line at fault."""
    if form not in INSTRUCTIONS:
        raise ValueError(f"form {form!r}; expected one of {sorted(INSTRUCTIONS)}")
    if source in HUB:
        name, rows = source, _hub_rows(source)
    elif Path(source).exists():
        name, rows = Path(source).stem, _file_rows(Path(source))
    else:
        raise DataError(f"{source}: no such file; expected FILE.jsonl or one of {sorted(HUB)}")
    problems = tuple(_problem(name, n, where, row, form) for n, where, row in islice(rows, limit))

    def grade(problem: Problem, text: str, finished: bool = True) -> bool:
        answer = final_answer(text, form, finished)
        return answer is not None and problem.gold is not None and same_answer(answer, problem.gold)

    return Task(name, problems, grade)


Row = tuple[int, str, dict[str, Any]]
"""Its number, where it stands for an error message, and its fields."""


def _file_rows(path: Path) -> Iterator[Row]:
    lines = [n for n, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]
    for number, row in zip(lines, read_jsonl(path, {}), strict=True):
        yield number, f"{path}, line {number}", row


def _hub_rows(name: str) -> Iterator[Row]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise DataError(
            f"{name} needs datasets: pip install datasets, or give a FILE.jsonl instead"
        ) from None
    path, config, split = HUB[name]
    try:
        rows: Any = load_dataset(path, config, split=split)
    except Exception as error:  # datasets raises many kinds; a user needs the reason
        raise DataError(f"{name} ({path}): {error}; give a FILE.jsonl instead") from None
    for number, row in enumerate(rows, 1):
        yield number, f"{path}, row {number}", row


def _problem(name: str, number: int, where: str, row: dict[str, Any], form: Form) -> Problem:
    question = row.get("question", row.get("problem"))
    if not isinstance(question, str) or not question.strip():
        raise DataError(f"{where}: no text in field 'question' (or 'problem'); expected some")
    answer = row.get("answer")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float | None):
        got = type(answer).__name__
        raise DataError(f"{where}: field 'answer' is {got}; expected a string or a number")
    if isinstance(answer, float):
        answer = format(Decimal(str(answer)), "f")  # not 1e-07, where e is a number
    gold = "" if answer is None else str(answer).rpartition("####")[2].strip()
    if len(gold) > LONGEST:
        raise DataError(
            f"{where}: field 'answer' has {len(gold)} characters; expected at most {LONGEST}, or a "
            "solution that ends in '#### ' and the final answer"
        )
    given_id = row.get("id", row.get("unique_id"))
    id = f"{name}-{number}" if given_id in (None, "") else str(given_id)
    return Problem(id, question, f"{question}\n\n{INSTRUCTIONS[form]}", gold or None)


# Taking the answer out of a text.

DIGITS = r"(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d\d?(?!\d))?"
LAST_NUMBER = re.compile(
    r"-?\\[dtc]?frac\{-?\d+\}\{\d+\}"
    # The minus of 5-3 is no sign.
    rf"|(?:(?<![\w)\]}}])[-\u2212])?\$?{DIGITS}(?:/{DIGITS})?\s?%?"
)
BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
JSON_VALUE = re.compile(
    r"""["']?final[ _]answer["']?\s*:\s*"""
    r"""(?:"(?P<double>(?:[^"\\]|\\.)*)|'(?P<single>(?:[^'\n]|'(?!\s*(?:[,}\n]|$)))*)"""
    r"""|\[(?P<list>[^\]]*)|(?P<bare>(?:[^\n"'\[{}]|\{[^\n"{}]*\})*))""",
    re.IGNORECASE | re.DOTALL,
)


def final_answer(text: str, form: Form = "boxed", finished: bool = True) -> str | None:
    r"""The answer that a text gives, or None.

    It is the formatted one where there is one: in the form "boxed" what stands in the last
    \boxed{...} that closes and is not empty, in the form "json" the last value of "final answer"
    that is not empty, of an object that may be cut, quoted with ' or have text around it. Otherwise
    it is the last number in the text, as in the "flexible-extract" of GSM8K in lm-evaluation-
    harness: a small model is graded on its maths, not on its format. Not so in a text that is not
    finished: where it was cut off, its last number is an accident."""
    found = _boxed(text) if form == "boxed" else _json_answer(text)
    if found is None and finished:
        numbers = LAST_NUMBER.findall(text)
        found = numbers[-1].strip() if numbers else None
    return found


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
    found = None
    for match in JSON_VALUE.finditer(text):
        value = next(value for value in match.groups() if value is not None)
        value = value.replace(r"\"", '"').replace("\\\\", "\\").strip(" \t\n,`")
        if value and value.lower() not in ("null", "none"):
            found = _boxed(value) or value
    return found


# Comparing two answers.

NUMBER = re.compile(
    rf"(?P<before>[a-z\s.:'\"]*?)(?P<sign>[-+]?)\s*(?:(?P<whole>\d+)\s+)?(?P<top>{DIGITS})"
    rf"(?:\s*/\s*(?P<bottom>{DIGITS}))?(?:\s*(?P<percent>%|percent\b))?"
    r"(?![a-z])(?P<after>[a-z\s.,:'\"/^-]*)"  # 2ab and 3x are maths
)
UNITS = "cm|mm|km|kg|mg|ml|ft|in|lbs?|oz|hrs?|am|pm|min|mph"
"""Those that may touch their number."""
WORD = re.compile(
    r"(?!(?:sqrt|root|sin|cos|tan|cot|sec|csc|log|exp|mod|base|hundred|thousand|million|billion"
    r"|dozen|half|third|quarter|twice|not|and|minus|negative|plus|times|over|squared|cubed"
    r"|infinity|inf|theta|alpha|beta|gamma)$)[a-z]{3,}"
    rf"|{UNITS}|[mglsh]|of|is|to|it|he|at|by|an|on|we"
)
"""A word that may stand beside a number without changing it: a unit, or prose."""
# What math-verify could work on for minutes; equal as text is all that such an answer can be.
HEAVY = re.compile(
    r"\^\W*\d{4}|[-+][^()]*\)\s*\^\W*\d\d|\^\{[^{}^]*\^|\^\w*\^|\d{4,}\s*!|![)}\s]*!|binom\W*\d{3}"
    r"|\\(?:sum|prod|lim|i+nt)|^(?=.*=).*(?:\\(?:sin|cos|tan|log|ln|exp)|\^\W*[a-z])"
)
DEEPEST = 10
"""Deepest nesting of brackets that is parsed: the parser's time doubles with each."""


def same_answer(given: str, gold: str) -> bool:
    r"""Whether a final answer is the gold one, as text, as a number or, by math-verify, as maths.

    Thousands commas, currency signs, units, degree signs and words around one number don't count
    (in neither), so that "\$1,234.50" is "1234.5" and "18" is "18 dollars" or "She has 18 cats.".
    Numbers are equal within 1e-6 (or 1e-6 of a gold below 1), so 3/4 is 0.75 and 1/3 is 0.333333
    but not 0.33. A percentage is right as what stands before the sign and as its value: "50%" is 50
    and is 0.5, 50 is not 0.5. Words compare without case. "x = 5" is "5", and not "y = 5". (1, 2)
    is "1, 2", a list in any order is the same, and the base in 25_8 is not read: so does
    math-verify. Never raises; an empty answer, or one over LONGEST, is wrong.

    math-verify's timeouts (5 s) are signals, which only the main thread gets. In other threads
    HEAVY and DEEPEST, which hold everywhere, are the only bounds."""
    if max(len(given), len(gold)) > LONGEST:
        return False
    given, gold = _cleaned(given), _cleaned(gold)
    if not given or not gold:
        return False
    if _spaceless(given) == _spaceless(gold):
        return True
    if ("=" in given) != ("=" in gold):
        given, gold = (re.sub(r"^[a-zA-Z]\w*\s*=(?!.*=)", "", t).strip() for t in (given, gold))
    a, b = _number(given), _number(gold)
    if a and b:
        (x, x_percent), (y, y_percent) = a, b
        as_values = _close(x / 100 if x_percent else x, y / 100 if y_percent else y)
        return as_values or (x_percent != y_percent and _close(x, y))
    if any(_is_prose(text) or _is_heavy(text) for text in (given, gold)):
        return False
    return _verified(a[0] if a else given, b[0] if b else gold)


def _cleaned(text: str) -> str:
    """Without LaTeX's wrappers, spaces and text commands, currency signs and degrees."""
    text = text.replace("\u2212", "-").replace("\u00d7", "\\times ").replace("π", "\\pi ")
    text = re.sub(r"\{,\}|(?<=\d),?\\[!,]\s?(?=\d{3})", ",", text)
    text = re.sub(r"\\(?:text\w*|mbox|mathrm|mathbf)\s*\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"(?:\^\s*(?:\{\s*\\circ\s*\}|\\circ)|°)(?:\s*[CF]\b)?|\\?\$|[€£¥₹]", "", text)
    # A backslash after another one ends a matrix's row.
    text = re.sub(r"(?<!\\)\\[()\[\]!]", "", text)
    text = re.sub(r"(?<!\\)\\[,;: ]|~|\s+", " ", text).replace("\\%", "%")
    text = re.sub(r"(?<![a-zA-Z\\])(pi|infty)\b", r"\\\1", text.replace("infinity", "infty"))
    text = re.sub(r"^[\s\"'`*]+|[\s\"'`*.]+$", "", text)
    return re.sub(r"^\(([A-Za-z])\)$", r"\1", text)


def _spaceless(text: str) -> str:
    return re.sub(r"(?<!\w)\s|\s(?!\w)", "", text).casefold()


def _number(text: str) -> tuple[Fraction, bool] | None:
    """The one number that a cleaned text states, units and prose aside, and whether it is a
    percentage; None for anything else."""
    text = re.sub(r"\\[dtc]?frac\s*(?:\{(-?\d+)\}|(\d))\s*(?:\{(\d+)\}|(\d))", r" \1\2/\3\4", text)
    text = re.sub(r"(?<=\d)\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*\{?(-?\d\d?)\}?", r"e\1", text)
    text = re.sub(r"(?<=[a-zA-Z])\s*(?:\^\s*\{?[23]\}?|[²³])", " ", text).strip().lower()
    match = NUMBER.fullmatch(re.sub(rf"(?<=\d)(?=(?:{UNITS})(?![a-z]))", " ", text))
    if not match or (match["whole"] and not match["bottom"]):
        return None
    words = re.findall(r"[a-z]+", f"{match['before']} {match['after']}")
    top, bottom = (Fraction((match[n] or "1").replace(",", "")) for n in ("top", "bottom"))
    if not all(WORD.fullmatch(word) for word in words) or not bottom:
        return None
    value = int(match["whole"] or 0) + top / bottom
    return (-value if match["sign"] == "-" else value), bool(match["percent"])


def _decimal(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else f"{float(value):.12f}"


def _close(given: Fraction, gold: Fraction) -> bool:
    return abs(given - gold) <= min(Fraction(1), abs(gold)) / 10**6


def _is_prose(text: str) -> bool:
    """Words without a digit: as a product of letters, listen would be silent."""
    bare = re.sub(r"\\(?:begin|end)\{\w+\}|\\[a-zA-Z]+", " ", text)
    return bool(re.search(r"[a-zA-Z]{3}", bare)) and not re.search(r"\d", bare)


def _is_heavy(text: str) -> bool:
    depth = deepest = 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        deepest = max(deepest, depth)
    return deepest > DEEPEST or bool(HEAVY.search(text))


def _verified(given: str | Fraction, gold: str | Fraction) -> bool:
    # Imported here because sympy takes a second.
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of each timeout
    main = threading.current_thread() is threading.main_thread() and os.name == "posix"
    seconds = 5 if main else 0  # 0: none
    # Its units would make 3t of 3.
    latex = NormalizationConfig(malformed_operators=True, nits=True, units=False, boxed="none")
    config = [LatexExtractionConfig(normalization_config=latex)]
    try:
        # A number comes without its unit: math-verify takes cm for c times m.
        texts = (t if isinstance(t, str) else _decimal(t) for t in (given, gold))
        a, b = (parse(f"${text}$", config, parsing_timeout=seconds) for text in texts)
        return bool(verify(b, a, timeout_seconds=seconds))
    except Exception:  # of sympy's many; what can't be compared is not the gold answer
        return False
