"""Imports go one way: lm and tasks are the base; train, evals and runs stand on it, then the
systems side by side, then serve, bench and cli; report reads files. Files and functions stay small,
and a docstring is a sentence."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import latentwire

BASE = {
    "files",
    "texts",
    "reading",
    "artifact",
    "card",
    "patterns",
    "terminal",
    "ridge",
    "positions",
}
"""Modules of no room; each may be used by any."""
SHARED = {"lm", "tasks", "train", "evals", "runs"}
SYSTEMS = {"wire", "lens", "seek"}
ALLOWED = {
    "lm": {"lm"},
    "tasks": {"lm", "tasks"},
    "train": {"lm", "tasks", "train"},
    "evals": {"lm", "tasks", "evals"},
    "runs": {"lm", "tasks", "train", "runs"},
    "wire": SHARED | {"wire"},
    "lens": SHARED | {"lens"},
    "seek": SHARED | {"seek"},
    "bench": SHARED | SYSTEMS | {"bench"},
    "serve": SHARED | SYSTEMS | {"serve"},
    "cli": SHARED | SYSTEMS | {"bench", "report", "serve", "cli"},
    "lm_eval": SHARED | {"wire", "lm_eval"},
    "report": {"report"},
}
ROOT = Path(latentwire.__file__).parent


def imported(path: Path) -> set[str]:
    """Names of all modules that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def test_every_package_has_its_rule():
    assert {p.parent.name for p in ROOT.glob("*/__init__.py")} == set(ALLOWED)


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_only_what_they_may(package):
    for path in (ROOT / package).rglob("*.py"):
        inside = {m.split(".")[1] for m in imported(path) if m.startswith("latentwire.")}
        assert inside <= ALLOWED[package] | BASE, path


def test_only_the_port_touches_transformers():
    for path in ROOT.rglob("*.py"):
        if path.parent.name != "lm":
            assert not {m for m in imported(path) if m.split(".")[0] == "transformers"}, path


FILE_LINES, FUNCTION_LINES = 350, 50


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text()))


def test_files_and_functions_are_small():
    files, functions = set(), set()
    for path in ROOT.rglob("*.py"):
        name = path.relative_to(ROOT).as_posix()
        if len(path.read_text().splitlines()) > FILE_LINES:
            files.add(name)
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                help_lines = len((ast.get_docstring(node) or "").splitlines())
                assert node.end_lineno is not None
                if node.end_lineno - node.lineno - help_lines >= FUNCTION_LINES:
                    functions.add(f"{name} {node.name}")
    assert not files and not functions


NO_SENTENCE = r"(Of|What|Whether|How|Which|Where|Who|When)\b"


def test_docstrings_begin_as_sentences():
    for path in ROOT.rglob("*.py"):
        for node in nodes(path):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                text = str(node.value.value).strip()
                assert not re.match(NO_SENTENCE, text), (path, text[:60])


def test_what_the_package_gives_by_name():
    assert set(latentwire.__all__) <= set(dir(latentwire))
    for name in latentwire.__all__:
        assert getattr(latentwire, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'wires'"):
        latentwire.wires  # noqa: B018
