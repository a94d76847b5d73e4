"""What is printed is text, whatever it looks like."""

import ast
import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

import latentwire
from latentwire.__main__ import main
from latentwire.cli.command_line import out
from latentwire.report.tables import terminal_table
from latentwire.terminal import printable, terminal

OUTSIDE = "[/red] [bold]x[/bold] [link=https://a.b]y[/link] :smile: 12"
OBEYED, SPELLED = "\x1b[31m \u202e", r"\x1b[31m \u202e"


def test_a_console_prints_texts_as_they_are():
    file = io.StringIO()
    console = terminal(file=file, width=200, force_terminal=True)
    console.print(OUTSIDE + OBEYED)
    assert file.getvalue() == OUTSIDE + SPELLED + "\n"
    assert not out._markup and not out._emoji


def test_cells_are_texts_whatever_console_prints_them():
    table = terminal_table(("a", "b"), "caption")
    table.add_row(OUTSIDE + OBEYED, "[/red]", style="dim")
    file = io.StringIO()
    Console(file=file, width=200).print(table)
    assert OUTSIDE + SPELLED in file.getvalue()


def test_every_console_is_made_in_one_place():
    for path in Path(latentwire.__file__).parent.rglob("*.py"):
        if path.name != "terminal.py":
            called = [
                n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)
            ]
            assert "Console" not in [getattr(f, "id", getattr(f, "attr", "")) for f in called], path


def test_what_a_terminal_would_obey_is_spelled_out():
    text = "a\tb\nc \x1b[31mred\x1b[0m \x07 \u202e é 😀"
    assert printable(text) == "a\tb\nc \\x1b[31mred\\x1b[0m \\x07 \\u202e é 😀"


@pytest.mark.parametrize("path", ["[/red]", "\x1b[2Jmodel", "[bold]"])
def test_a_mistake_is_one_line_of_text(monkeypatch, capsys, path):
    monkeypatch.setattr(sys, "argv", ["latentwire", "doctor", path])
    with pytest.raises(SystemExit) as stop:
        main()
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1 and "\x1b" not in err
    assert path.replace("\x1b", "\\x1b") in err
