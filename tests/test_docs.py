"""README, docs and docstrings hold: each command parses, each Python block is of names that exist,
each file that is named is there."""

import ast
import builtins
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

from latentwire.__main__ import COMMANDS, GROUPS, main
from latentwire.cli import command_line
from latentwire.wire.sweep import load_grid

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "reproduce").rglob("*.md"))
SOURCES = sorted((ROOT / "latentwire").rglob("*.py"))
WORDS = {"RECIPE": "smollm2-4x", "REWARD": "self", "TASK": "gsm8k", "NAME:FILE": "arc:FILE"}
WORDS |= {"--reward NAME": "--reward self"}
"""Placeholders of which a command takes some values alone."""


FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def fenced(page: Path, kind: str) -> list[str]:
    """The blocks of a page between fences of one kind."""
    return [block for name, block in FENCE.findall(page.read_text()) if name == kind]


def commands() -> dict[str, str]:
    """Each command line that is written down, and where."""
    lines = {}
    for page in PAGES:
        text = FENCE.sub("", page.read_text())
        typed = "\n".join(fenced(page, "")).replace("\\\n", " ")
        found = re.findall(r"^(?:\$ )?(latentwire .*)$", typed, re.MULTILINE)
        found += re.findall(r"`(latentwire \w[^`]*)`", text.replace("\n", " "))
        lines |= dict.fromkeys(found, page.name)
    for source in SOURCES:
        found = re.findall(r"^ {0,4}(latentwire [a-z].*?)(?: {2,}#.*)?$", source.read_text(), re.M)
        lines |= dict.fromkeys(found, source.name)
    return lines


BARE = re.compile(r"latentwire (\w[\w-]*)(?: (?:train|eval|edit|explain|lens|seek))?")
"""A command that is only named, without its arguments."""


@pytest.mark.parametrize("line", [c for c in commands() if not BARE.fullmatch(c)])
def test_a_command_that_is_written_down_parses(line, monkeypatch):
    parse, parsed = command_line.parse_command, []

    def parse_only(table, arguments, prog):
        call = parse(table, arguments, prog)
        parsed.append(call)
        return call if getattr(call, "func", None) in GROUPS.values() else lambda: 0

    monkeypatch.setattr(command_line, "parse_command", parse_only)
    monkeypatch.setattr(command_line, "trained", lambda *_: parsed.append(_) or 0)
    for word, value in WORDS.items():
        line = line.replace(word, value)
    monkeypatch.setattr(sys, "argv", shlex.split(line.split("  #")[0].replace(" ...", "")))
    main()
    assert parsed


HELPS = ["train smollm2-4x", "train interlingua", "train shared-4x", "add-reader", "sweep", "seek"]
HELPS += ["ask", "eval", "lens explain", "lens eval", "lens train smollm2", "bench train", "report"]
HELPS += ["compress", "chat", "serve", "fit"]
OTHERS = {"--multi_gpu", "--num_processes", "--use_fsdp", "--fsdp_version", "--help", "--OPTION"}
OTHERS |= {"--model_args", "--include_path", "--tasks", "--metadata", "--head"}
OTHERS |= {"--kv-transfer-config", "--model"}
"""Options of Accelerate, lm-evaluation-harness, Ray, vLLM and of all programs."""


def test_options_that_are_named_exist(monkeypatch, capsys):
    known = set(OTHERS)
    for command in HELPS:
        monkeypatch.setattr(sys, "argv", ["latentwire", *command.split(), "--help"])
        with pytest.raises(SystemExit):
            main()
        known |= set(re.findall(r"--[\w.-]*\w", capsys.readouterr().out))
    for page in (p for p in PAGES if p.name != "decisions.md"):  # it tells of options that went
        named = re.findall(r"(?<![\w-])--[a-zA-Z][\w.-]*\w", page.read_text())
        assert set(named) <= known, page


def test_a_command_that_is_named_exists():
    named = {match[1] for line in commands() if (match := BARE.fullmatch(line))}
    assert named and named <= {*COMMANDS, *GROUPS}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_blocks_are_of_names_that_exist(page):
    for block in fenced(page, "python"):
        known, used = {*dir(builtins)}, set()
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module}.{alias.name}"
                    known.add(alias.asname or alias.name)
            elif isinstance(node, ast.Name):
                (known if isinstance(node.ctx, ast.Store) else used).add(node.id)
        assert used <= known, block


def test_the_grid_of_the_tour_loads(tmp_path):
    (grid,) = (b for b in fenced(ROOT / "docs" / "tour.md", "python") if b.startswith("# grid.py"))
    (tmp_path / "grid.py").write_text(grid)
    members = load_grid(tmp_path / "grid.py")
    assert {name: (m.wire.ratio, m.ratios) for name, m in members.items()} == {
        f"{n}x": (n, (n,)) for n in (2, 4, 8)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_and_sections_that_are_named_are_there(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)|(?:srcset|src)=\"([^\"]+)\"", text):
        path, _, section = "".join(target).partition("#")
        there = (page.parent / path) if path else page
        assert there.exists(), target
        if section:
            heads = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads]
            assert section in slugs, target
    for path in re.findall(r"`((?:latentwire|tests|reproduce|docs|examples)/[\w./-]+)`", text):
        assert (ROOT / path).exists() or "NAME" in path, path
    for name, path in re.findall(r"`([\w.]+)` in `(latentwire/[\w/]+\.py)`", text):
        defined = [n.name for n in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(
            n, ast.FunctionDef | ast.ClassDef)]  # fmt: skip
        defined += re.findall(r"^([A-Z_]+)\b", (ROOT / path).read_text(), re.MULTILINE)
        assert set(name.split(".")) <= set(defined), f"{name} in {path}"
