"""What the rules find that are to be kept as text."""

import pytest

from latentwire.wire.folder import WireError
from latentwire.wire.keep import finder

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
    with pytest.raises(WireError, match=r"'\(a' does not compile \(missing \), .*numbers,"):
        finder("(a")
    with pytest.raises(WireError, match="no rule 'Number' \\(did you mean 'numbers'\\?\\)"):
        finder("Number")
