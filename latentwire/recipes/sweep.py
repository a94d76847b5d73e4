"""A sweep: a grid of recipes, each trained and evaluated in a process and a folder of its own.

# grid.py
from dataclasses import replace
from latentwire.recipes.wire import smollm2_4x

base = smollm2_4x()
grid = {f"{n}x": replace(base, wire=replace(base.wire, ratio=n)) for n in (2, 4, 8)}

latentwire sweep grid.py --data squad_dev.jsonl --limit 500
latentwire report runs/grid

runs/grid/results.json          all members; the report is made from it
runs/grid/NAME/                 one run, as of `latentwire train`, and its evaluations
runs/grid/NAME/member.json      what it came to, or why it failed
"""

from __future__ import annotations

import json
import re
import runpy
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from latentwire.files import write_whole
from latentwire.recipes.evaluation import ALMANAC, evaluate_wire
from latentwire.recipes.wire import WireRecipe, train_wire
from latentwire.recipes.workers import apart
from latentwire.train.guards import standing
from latentwire.train.loop import Session
from latentwire.wire.message import check_bits
from latentwire.wire.wire import Wire

MEMBER = "member.json"


@dataclass(frozen=True)
class Evaluation:
    """What every member of a sweep is asked when it is trained."""

    data: str = ALMANAC
    """JSONL with rows {"id", "context", "question", "answers"}, or hub:NAME; the shipped almanac if
    not given."""
    limit: int | None = None
    """Only the first so many questions."""
    bits: tuple[int, ...] = (16,)
    """Bits of one code of a message; an evaluation for each."""

    def check(self) -> None:
        """Raises ValueError for what no member could be evaluated with."""
        if not self.bits or (self.limit is not None and self.limit < 1):
            raise ValueError(f"limit {self.limit}, bits {self.bits}; expected at least 1 of each")
        for bits in self.bits:
            check_bits(bits)

    def folder(self, bits: int) -> str:
        """Inside a member's."""
        return f"eval-{Path(self.data).stem}-{self.limit or 'all'}-{bits}bit"


def load_grid(path: Path) -> dict[str, WireRecipe]:
    """What `grid` of a Python file is, or gives where it is a function: {name: recipe}. Raises
    ValueError for anything else."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected Python with grid = {{name: recipe}}")
    try:
        found = runpy.run_path(str(path)).get("grid")
        grid = found() if callable(found) else found
    except Exception as error:  # the user's code may raise anything
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from None
    if not isinstance(grid, dict) or not grid:
        raise ValueError(f"{path}: grid is {grid!r}; expected {{name: recipe}} or a function of it")
    for name, recipe in grid.items():
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.,=+-]*", name):
            raise ValueError(f"{path}: member {name!r}; expected a name that a folder can have")
        if not isinstance(recipe, WireRecipe):
            raise ValueError(f"{path}: {name} is a {type(recipe).__name__}; expected a WireRecipe")
    return grid


def run_sweep(
    grid: Mapping[str, WireRecipe],
    out: Path,
    evaluation: Evaluation = Evaluation(),
    session: Session | None = None,
    ray: str | None = None,
    said: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run all members that are not done; the whole result as one dict, also in out/results.json.

    One that fails or is killed does not stop the others, and begins where it stopped when the sweep
    is run again. ray: the address of the Ray that they run on; one after another here if None.
    said: told in one line of each that ends.
    """
    evaluation.check()
    _begin(grid, out, evaluation)
    left = {n: r for n, r in grid.items() if _result(n, r, out, evaluation).get("error", True)}
    for name in (n for n in grid if n not in left):
        said(f"{name}: done before")
    jobs = {n: (n, r, out, evaluation, session) for n, r in left.items()}
    for name in left:
        (out / name / MEMBER).unlink(missing_ok=True)
    for name, died in apart(run_member, jobs, ray):
        if died is not None:
            _write(out / name, left[name], evaluation, error=f"its process died: {died}")
        error = _result(name, left[name], out, evaluation).get("error")
        said(f"{name}: {error or 'done'}")
        _collect(grid, out, evaluation)
    return _collect(grid, out, evaluation)


def run_member(
    name: str, recipe: WireRecipe, out: Path, evaluation: Evaluation, session: Session | None
) -> None:
    """Train and evaluate one member, or go on with it; its member.json says what it came to."""
    folder = out / name
    try:
        train_wire(replace(recipe, out=folder), session)
        results = {}
        for bits in evaluation.bits:
            wire = Wire.from_pretrained(str(folder / "wire"))
            run = folder / evaluation.folder(bits)
            results[str(bits)] = evaluate_wire(wire, evaluation.data, evaluation.limit, run, bits)
        _write(folder, recipe, evaluation, alarms=standing(folder), evaluations=results)
    except Exception as error:  # whatever it is, it is this member's alone
        traceback.print_exc()
        said = " ".join(f"{type(error).__name__}: {error}".split())
        _write(folder, recipe, evaluation, error=said)


def _begin(grid: Mapping[str, WireRecipe], out: Path, evaluation: Evaluation) -> None:
    """Make `out` the folder of a sweep, whose grid may have grown. Raises ValueError for a folder
    of another kind of run."""
    config = out / "config.json"
    if config.exists() and "grid" not in json.loads(config.read_text()):
        raise ValueError(f"{out} holds a run that is no sweep; give another --run or remove it")
    out.mkdir(parents=True, exist_ok=True)
    members = {name: asdict(recipe) for name, recipe in grid.items()}
    about = {"evaluation": asdict(evaluation), "grid": members}
    write_whole(config, json.dumps(about, indent=1, default=str))


def _write(folder: Path, recipe: WireRecipe, evaluation: Evaluation, **facts: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    record = {"asked": _asked(recipe, evaluation), **facts}
    write_whole(folder / MEMBER, json.dumps(record, indent=1))


def _result(name: str, recipe: WireRecipe, out: Path, evaluation: Evaluation) -> dict[str, Any]:
    """What a member came to; nothing where it has not ended, or was asked something else."""
    path = out / name / MEMBER
    record = json.loads(path.read_text()) if path.exists() else {}
    if record.pop("asked", None) != _asked(recipe, evaluation):
        return {}
    return {"error": None, **record}


def _asked(recipe: WireRecipe, evaluation: Evaluation) -> dict[str, Any]:
    """Recipe and evaluation as they come back from JSON."""
    asked = {"recipe": {**asdict(recipe), "out": None}, "evaluation": asdict(evaluation)}
    return json.loads(json.dumps(asked))


def _collect(grid: Mapping[str, WireRecipe], out: Path, evaluation: Evaluation) -> dict[str, Any]:
    members = {name: _result(name, recipe, out, evaluation) for name, recipe in grid.items()}
    about = {**asdict(evaluation), "data": Path(evaluation.data).name}
    result = {"kind": "sweep", **about, "members": members}
    write_whole(out / "results.json", json.dumps(result, indent=1))
    return json.loads(json.dumps(result))
