"""What the rules find that are to be kept as text."""

import random
import re
import time
from types import SimpleNamespace

import pytest

from latentwire import patterns
from latentwire.wire.folder import WireError
from latentwire.wire.verbatim import finder

TEXT = """Dr. Mary Smith met J. K. Rowling at 12:30. She had -3.5 or 1,759 in 1914-1918; 2024/05/01.
"Then the Elbe rose," said Łódź's mayor; see some_name, parseFile or a@b.org.

Next comes 0c9fa2d1-7c7e-4b1a-9d7e-2f1a3b4c5d6e"""


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("numbers", "12:30 -3.5 1,759 1914-1918 2024/05/01"),
        (
            "names",
            "Mary Smith J K Rowling Elbe Łódź's some_name parseFile a@b.org "
            "0c9fa2d1-7c7e-4b1a-9d7e-2f1a3b4c5d6e",
        ),
        (r"\bb\w*|x*", "b x"),
    ],
)
def test_rules(rule, expected):
    text = TEXT if rule == "names" else TEXT[: TEXT.index("0c9")]  # it has digits in it
    assert [text[begin:end] for begin, end in finder(rule)(text)] == expected.split()


def test_what_is_no_rule():
    with pytest.raises(WireError, match=r"'\(a' does not compile \(missing \) at .*numbers,"):
        finder("(a")
    with pytest.raises(WireError, match="no rule 'Number' \\(did you mean 'numbers'\\?\\)"):
        finder("Number")


# The rule as one regular expression, which is right and takes a time that grows with the square.
ONE_EXPRESSION = re.compile(
    r"(?P<begin>(?:\A|(?<!\b[A-Z])(?<!\b(?:Dr|Mr|Ms|St))(?<!\bMrs)[.!?\u2026][\"'\u201d\u2019)\]]*\s"
    r"|\n[^\S\n]*\n)\s*[\"'\u201c\u2018(\[]*)?(?P<word>\w+(?:[-.:/@'\u2019]\w+)*)"
)
IDENTIFIER = re.compile(r"[_@]|\d.*[^\W\d_]|[^\W\d_].*\d|[a-z][A-Z]")
PIECES = [*'Ab1.!?\u2026\n \t"\u201c\u201d\u2019([)]-@_é\r\u2028', "\n\n"]
PIECES += ["Dr", "Mrs", "St", "Smith", "x1", "XMr", "J"]


def test_names_are_those_of_one_regular_expression():
    draw = random.Random(0)
    for _ in range(20_000):
        text = "".join(draw.choices(PIECES, k=draw.randrange(1, 14)))
        expected = [
            match.span("word")
            for match in ONE_EXPRESSION.finditer(text)
            if (match["begin"] is None and match["word"][0].isupper())
            or IDENTIFIER.search(match["word"])
        ]
        assert list(finder("names")(text)) == expected, text


@pytest.mark.parametrize("piece", ["\n", "1", '"', "A ", "a1", ".\n", "1-", "\n-"])
@pytest.mark.parametrize("rule", ["names", "numbers"])
def test_rules_take_time_that_grows_with_the_text(rule, piece):
    start = time.process_time()
    list(finder(rule)(piece * 100_000 + "-"))
    assert time.process_time() - start < 2


def test_a_regular_expression_that_never_ends_is_given_up(monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.2)
    start = time.process_time()
    with pytest.raises(WireError, match=r"took longer than 0\.2 s on a text of 61 characters"):
        list(finder(r"(a|aa)+$")("a" * 60 + "b"))
    assert time.process_time() - start < 2


def test_a_regular_expression_that_takes_all_memory_is_given_up():
    def finditer(text, timeout):  # as "(?R)" does, once it has taken a gigabyte
        raise MemoryError

    with pytest.raises(patterns.PatternError, match=r"'\(\?R\)' took all memory on a text of 2 c"):
        list(patterns.find_all(SimpleNamespace(pattern="(?R)", finditer=finditer), "ab"))


@pytest.mark.parametrize("bad", ["(" * 50_000 + ")" * 50_000, "a{99999999999}", "(?P<a>", "["])
def test_patterns_that_do_not_compile_are_one_line(bad):
    with pytest.raises(WireError, match="does not compile") as caught:
        finder(bad)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
