"""Imports go one way: lm and tasks are the base; train, evals and runs stand on it, then the
systems side by side, then bench and cli; report reads files."""

import ast
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
    "cli": SHARED | SYSTEMS | {"bench", "report", "cli"},
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


def test_what_the_package_gives_by_name():
    assert set(latentwire.__all__) <= set(dir(latentwire))
    for name in latentwire.__all__:
        assert getattr(latentwire, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'wires'"):
        latentwire.wires  # noqa: B018
