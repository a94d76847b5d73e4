r"""One grammar of numbers, by which they are found in a text and compared.

    find_number("It takes 2 1/2 hours.")            # "2 1/2"
    parse_number(plain(r"2\frac{1}{2} hours"))      # Number(value=Fraction(5, 2), ...)

A text goes through `signs` (Unicode to ASCII and LaTeX) and `plain` (one spelling for each LaTeX
and programmer's notation) first. A number is never cut out of a longer one: 12:30, 2^10 and 3x are
found whole, and are no numbers. The words beside a number are listed below; with any other it is
no number, since "at most 5" and "5 pm" are not 5.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

from latentwire.tasks import words

# Unicode.

# ruff: noqa: RUF001  signs that look like others are what this is about
SIGNS = {
    "\u2010": "-", "\u2011": "-", "\u2212": "-", "\ufe63": "-", "\uff0d": "-",
    "×": r"\times ", "⋅": r"\cdot ", "·": r"\cdot ", "∙": r"\cdot ", "∗": "*", "÷": "/",
    "\u2044": "/", "\u2215": "/", "√": r"\sqrt ", "∛": r"\sqrt[3] ", "∜": r"\sqrt[4] ",
    "∞": r"\infty ", "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ",
    "≈": r"\approx ", "±": r"\pm ", "∓": r"\mp ", "∪": r"\cup ", "∩": r"\cap ",
    "∅": r"\emptyset ", "∈": r"\in ", "→": r"\to ", "∠": r"\angle ", "º": "°", "˚": "°",
    "\u2032": "'", "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"',
}  # fmt: skip
"""Mathematical signs, where NFKC does not lead to ASCII or loses what they mean."""


def signs(text: str) -> str:
    """The text in ASCII and LaTeX as far as it is maths: NFKC, with ½ as 1/2 and x² as x^{2}."""
    text = unicodedata.normalize("NFC", text)
    if text.isascii():
        return text
    text = re.sub(r"(?:\d\u0305)+", lambda m: rf"\overline{{{m[0][::2]}}}", text)
    text = re.sub(r"([√∛∜])([^\x00-\x7f])", r"\1(\2)", text)
    text = re.sub(r"[^\x00-\x7f]", lambda m: _sign(m[0]), text)
    text = re.sub(r"(?:\0\^.)+|(?:\0_.)+", lambda m: f"{m[0][1]}{{{m[0][2::3]}}}", text)
    # Between digits a dash makes a range, elsewhere a minus.
    return re.sub(r"(?<!\d)[\u2012-\u2015]|[\u2012-\u2015](?!\d)", "-", text)


@cache
def _sign(char: str) -> str:
    kind = unicodedata.decomposition(char).partition(" ")[0]
    name = unicodedata.name(char, "").split()
    if char in SIGNS:
        return SIGNS[char]
    if char.isdecimal():
        return str(unicodedata.decimal(char))
    if kind == "<fraction>":
        return " " + unicodedata.normalize("NFKC", char).replace("\u2044", "/")
    if kind in ("<super>", "<sub>"):
        # Marked, for `signs` to put those in a row together.
        mark = "\0^" if kind == "<super>" else "\0_"
        return "".join(mark + c for c in signs(unicodedata.normalize("NFKC", char)))
    if name[:2] == ["DOUBLE-STRUCK", "CAPITAL"]:
        return rf"\mathbb{{{name[2]}}}"
    if name[:1] == ["GREEK"] and len(name) == 4 and name[2] == "LETTER":
        return "\\" + (name[3].lower() if name[1] == "SMALL" else name[3].title()) + " "
    return unicodedata.normalize("NFKC", char)


# LaTeX and programmers' notation.

FUNCTIONS = (
    r"arcsin|arccos|arctan|sin|cos|tan|ln|log|exp|(?:sec|csc|cot)(?=\s*\()"
    r"|pi|infty|theta|alpha|beta"
)
TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)")
INTEGER = r"\d{1,3}(?:,\d{3})+(?!\d)|\d+"
NUMERAL = rf"(?:(?:{INTEGER})(?:\.\d+)?|\.\d+)"
REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<![\w)\]}])\*\*(?=\S)([^*]+)\*\*", r"\1"),  # bold; x**2 is below
        # Thousands: 12{,}000, 12\,000, 12 000.
        (r"(?<=\d)(?: ?\{ ?, ?\}|,?\\[!,:;] ?|,?\\ |(?<!\d{4}) |~)(?=\d{3}(?!\d| ?/))", ","),
        (r"\\(?:text\w*|mbox|mathrm|mathbf|mathit|operatorname)\s*\{([^{}]*)\}", r" \1 "),
        (r"\\(?:left|right|displaystyle|big|Big|bigg|Bigg)(?![a-zA-Z])\.?", ""),
        # A backslash after another one ends a matrix's row.
        (r"(?<!\\)\\[()\[\]!]", ""),
        (r"(?<!\\)\\[,;: ]|\\q?quad(?![a-zA-Z])|~|\s+", " "),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
        (r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}"),
        (r"\\%|\bper ?cent\b|\bpercent(?:age)?\b|\bpct\b", "%"),
        (r"(?:\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-zA-Z])|°)\s*(?:[CF]\b)?", "°"),
        (r"\\?\$|[€£¥₹]|\bUS(?=\\?\$)", ""),
        (r"(?<=[\w)\]}])\s*\*\*\s*(?=[\w(\[{\\+-])", "^"),
        (r"(?<=\d|\))\s*\*\s*(?=[\d(])|(?<=\d) ?x ?(?=10 ?\^)", r"\\times "),
        (r"\^\s*(-?\d+(?:\.\d+)?)", r"^{\1}"),
        (r"\^\s*\((-?[^()]*)\)", r"^{\1}"),
        (r"(?<![\w.])(\d+(?:\.\d+)?|\.\d+)[eE]([-+]?\d{1,3})(?![\w.])", r"\1\\times 10^{\2}"),
        (r"<=|\\leq(?![a-zA-Z])|\\leqslant", r"\\le "),
        (r">=|\\geq(?![a-zA-Z])|\\geqslant", r"\\ge "),
        (r"!=|\\neq(?![a-zA-Z])", r"\\ne "),
        (r"\\varnothing", r"\\emptyset"),
        (r"\binfinity\b|\\infinity\b", r"\\infty "),
        (r"(?<![a-zA-Z\\])cbrt(?![a-zA-Z])", r"\\sqrt[3] "),
        (r"(?<![a-zA-Z\\])sqrt(?![a-zA-Z])", r"\\sqrt "),
        (rf"(?<![a-zA-Z\\])({FUNCTIONS})(?![a-zA-Z])", r"\\\1 "),
        # The argument of a root without braces is one number, one letter or one bracket.
        (r"(\\sqrt(?:\[\w+\])?)\s*(\d+(?:\.\d+)?|[a-zA-Z]|\\[a-zA-Z]+)", r"\1{\2}"),
        (r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s*(?:\{(\d+)\}|(\d))", r"\1.\2(\3\4)"),
        (r" +", " "),
    )
]


def plain(text: str) -> str:
    """The text in one spelling, without spacing, fonts, currency signs and what wraps it."""
    text = signs(text)
    if r"\begin" not in text:
        text = re.sub(r"\\\\(?=[a-zA-Z])", r"\\", text)  # escaped twice
    for pattern, replacement in REWRITES:
        text = pattern.sub(replacement, text)
    text = re.sub(r"(?<![\w.])(\d*)\.(\d*)\((\d+)\)", _recurring, _root_arguments(text))
    if TRIGONOMETRY.search(text):
        text = re.sub(r"(\d+(?:\.\d+)?)\s*°", r"(\1\\pi/180)", text)
    return re.sub(r"^[\s\"'`*#]+|[\s\"'`*.]+$", "", text)


def _root_arguments(text: str) -> str:
    r"""`\sqrt (x+(1))` with braces."""
    for match in reversed(list(re.finditer(r"\\sqrt(?:\[\w+\])? *\(", text))):
        depth = 0
        for end in range(match.end() - 1, len(text)):
            depth += (text[end] == "(") - (text[end] == ")")
            if not depth:
                argument = f"{match[0][:-1].strip()}{{{text[match.end() : end]}}}"
                text = text[: match.start()] + argument + text[end + 1 :]
                break
    return text


def _recurring(match: re.Match[str]) -> str:
    whole, start, period = match.groups()
    scale = 10 ** len(start) * (10 ** len(period) - 1)
    return rf"\frac{{{int(whole + start + period) - int(whole + start or 0)}}}{{{scale}}}"


# The grammar.


@dataclass(frozen=True)
class Number:
    """One number as a text states it."""

    value: Fraction
    is_percentage: bool
    units: frozenset[str]
    """Canonical names of its known units; of a subscript, the base."""
    is_decimal: bool
    """It was written with a decimal point, so that it may be a rounded one."""

    def is_close(self, other: Number) -> bool:
        """True where they are equal within one millionth, as values or, if one is a percentage, as
        what stands before its sign. The millionth is of the larger one where a decimal stands
        beside a fraction that it can only approach, else of 1 at most: 12345678 is not 12345679,
        and 1000000.5 is not 1000000."""
        if self.units and other.units and self.units != other.units:
            return False
        is_rounded = (self.is_decimal or other.is_decimal) and not (
            _terminates(self.value) and _terminates(other.value)
        )
        pairs = [[n.value / (100 if n.is_percentage else 1) for n in (self, other)]]
        if self.is_percentage != other.is_percentage:
            pairs.append([self.value, other.value])
        return any(_are_close(a, b, is_rounded) for a, b in pairs)


def _terminates(value: Fraction) -> bool:
    return pow(10, 4000, value.denominator) == 0


def _are_close(a: Fraction, b: Fraction, is_rounded: bool) -> bool:
    size = max(abs(a), abs(b))
    return abs(a - b) * 10**6 <= (size if is_rounded else min(Fraction(1), size))


NUMBER = re.compile(
    rf"(?P<before>[^\d*=<>\\^]*?)(?P<sign>[-+]?) ?"
    rf"(?:(?P<whole>{INTEGER}) )?(?P<top>{NUMERAL})(?: ?/ ?(?P<bottom>{NUMERAL}))?"
    r"(?: ?\\(?:times|cdot) ?10 ?\^\{(?P<power>-?\d{1,3})\})?"
    r"(?P<percent> ?%)?(?:_\{?(?P<base>\d{1,2})\}?)?(?P<after>[^\d*=<>\\^+]*)"
)
FRACTION = re.compile(rf"\\frac ?\{{ ?({NUMERAL}) ?\}} ?\{{ ?({NUMERAL}) ?\}}")


def parse_number(text: str) -> Number | None:
    """The one number that a plain text states; None for anything else."""
    text = FRACTION.sub(r" \1/\2", text).replace("  ", " ").strip()
    text = re.sub(r"^(?:\\approx|=) *", "", text)
    text = re.sub(r"(?<=[a-zA-Z]) ?\^ ?\{?[23]\}?", "", text)  # of a unit
    match = NUMBER.fullmatch(text)
    if not match or (match["whole"] and not match["bottom"]):
        return None
    sign = words.sign_before(match["before"])
    scale_and_units = words.scale_after(match["after"])
    if not sign or not scale_and_units:
        return None
    scale, units = scale_and_units
    top, bottom, whole = (
        Fraction((match[name] or default).replace(",", ""))
        for name, default in (("top", "1"), ("bottom", "1"), ("whole", "0"))
    )
    if not bottom:
        return None
    value = (whole + top / bottom) * Fraction(10) ** int(match["power"] or 0) * scale
    if (match["sign"] == "-") != (sign < 0):
        value = -value
    units |= {f"base {match['base']}"} if match["base"] else set()
    return Number(value, bool(match["percent"]), frozenset(units), "." in match[0])


# Finding.

_GROUP = r"\{(?:[^{}\n]|\{[^{}\n]{0,40}\}){0,80}\}"
_BRACKET = r"\([^()\n]{0,40}\)"
_TUPLE = r"\((?:(?:[^()\n,a-zA-Z]|\\[a-z]+){1,30},){1,6}(?:[^()\n,a-zA-Z]|\\[a-z]+){1,30}\)"
_DIGITS = r"(?:\d{1,3}(?:(?:,|\{,\}|,?\\[!,:; ] ?| )\d{3})+(?![\d/]| ?/)|\d+)(?:\.\d+)?|\.\d+"
_RECURRING = r"(?:\d*\.\d*\\(?:overline|bar|dot) ?(?:\d|\{\d+\}))"
_ATOM = (
    rf"(?:\\[dtc]?frac ?(?:\d|{_GROUP}) ?(?:\d|{_GROUP})"
    rf"|\\sqrt ?(?:\[\d\] ?)?(?:\d+|{_GROUP}|{_BRACKET})"
    rf"|\\(?:pi|infty)(?![a-zA-Z])|{_TUPLE}|{_RECURRING}|{_DIGITS}"
    r"|(?<![a-zA-Z])[a-zA-Z](?![a-zA-Z])|(?<=[\d)}])[a-zA-Z]+)"
    # Powers, arguments, factorials and percentages.
    rf"(?:{_BRACKET}|(?: ?\^ ?|\*\*|_)(?:[-+]?[\da-zA-Z]+|{_GROUP}|{_BRACKET})"
    r"|!|°| ?\\?%(?![\w{(]))*"
)
_JOIN = (
    r"(?: ?(?:[*/]|\\times(?![a-z])|\\cdot(?![a-z])) ?[-+]?| [-+] (?=[\w\\(])|[-+](?=[\w\\(])"
    r"|[:.,'](?=\d)| (?=\d+ ?/ ?\d)| ?(?=\\[dtc]?frac))?"
)
_BEFORE = r"(?:minus|negative|at (?:most|least)|(?:more|less|fewer) than|half|twice|double|triple)"
_AFTER = rf"(?:{'|'.join(words.SCALES)}|per ?cent|factorial|squared|cubed|[ap]\.?m)"
RUN = re.compile(
    rf"(?:\b{_BEFORE} (?:of )?)?(?:(?<![\w)\]}}])[-+]|(?<=[=:])(?: ?)- )?(?:\\?\$)?"
    rf"{_ATOM}(?:{_JOIN}{_ATOM})*(?: {_AFTER}\b)*",
    re.IGNORECASE,
)
IDENTIFIER = re.compile(r"[a-zA-Z]+\d|[a-zA-Z]$|.*[a-zA-Z]-|.*-[a-zA-Z]{2}")


def find_number(text: str) -> str | None:
    """The last number of a text, or what has a number in it and is none, whole; None if there is
    neither."""
    runs = [match[0].strip() for match in RUN.finditer(signs(text))]
    runs = [run for run in runs if re.search(r"\d", run) and not IDENTIFIER.match(run)]
    return runs[-1] if runs else None
