"""Imports go one way: lm and tasks are the base, the parts stand on it side by side, recipes join
them, report reads files."""

import ast
from pathlib import Path

import pytest

import latentwire

BASE = {"files", "texts", "reading", "artifact", "patterns", "terminal"}
ALLOWED = {
    "lm": {"lm"},
    "tasks": {"lm", "tasks"},
    "wire": {"lm", "tasks", "wire", "files", "ridge", "positions"},
    "seek": {"lm", "tasks", "seek"},
    "lens": {"lm", "tasks", "lens", "files", "ridge", "positions"},
    "train": {"lm", "tasks", "train"},
    "evals": {"lm", "tasks", "evals"},
    "bench": {"bench", "lm", "tasks", "wire", "seek", "lens", "train", "recipes"},
    "commands": {"commands", "bench", "lm", "tasks", "wire", "seek", "lens", "evals", "recipes"}
    | {"report", "train"},
    "report": {"report"},
    "recipes": {"lm", "tasks", "wire", "seek", "lens", "train", "evals", "recipes", "ridge"},
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


def test_what_the_package_gives_by_name():
    assert set(latentwire.__all__) <= set(dir(latentwire))
    for name in latentwire.__all__:
        assert getattr(latentwire, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'wires'"):
        latentwire.wires  # noqa: B018
