"""A sweep: a grid of recipes, each trained and evaluated in a process and a folder of its own.

# grid.py
from dataclasses import replace
from latentwire.wire.recipe import smollm2_4x

base = smollm2_4x()
grid = {f"{n}x": replace(base, wire=replace(base.wire, ratio=n), ratios=(n,)) for n in (2, 4, 8)}

latentwire sweep grid.py --data squad_dev.jsonl --limit 500
latentwire report runs/grid

A member is a recipe of any kind in KINDS: of a wire of one reader, or of a shared wire.

runs/grid/results.json          all members; the report is made from it
runs/grid/NAME/                 one run, as of `latentwire train`, and its evaluations
runs/grid/NAME/member.json      what it came to, or why it failed
"""

from __future__ import annotations

import json
import re
import runpy
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from latentwire.files import owned, read_rows, write_whole
from latentwire.lm import Dtype, FrozenLM
from latentwire.lm.identity import identity
from latentwire.lm.sentences import SentenceEncoder
from latentwire.runs.folder import check_training, digests
from latentwire.runs.workers import run_isolated
from latentwire.texts import check_least
from latentwire.train.alarms import standing
from latentwire.train.loop import Session
from latentwire.wire import training
from latentwire.wire.codec import BITS
from latentwire.wire.evaluation import ALMANAC, evaluate_wire, load_passages
from latentwire.wire.joint import evaluate_readers
from latentwire.wire.learned import training as learned
from latentwire.wire.learned.config import SharedRecipe
from latentwire.wire.learned.shared_wire import SharedWire
from latentwire.wire.learned.training import load_models, train_shared
from latentwire.wire.training import WireRecipe, train_wire
from latentwire.wire.wire import Wire

MEMBER = "member.json"
Recipe = WireRecipe | SharedRecipe


class Kind(NamedTuple):
    """Functions that train and score members of one kind."""

    train: Callable[[Any, Session | None], Any]
    """A recipe to its trained wire."""
    evaluate: Callable[..., dict]
    """Scores such a wire; takes data, limit, run folder and bits."""
    bits: Callable[[Any], Sequence[int]]
    """That codes of messages of a recipe's wire can have; the first are asked for if none are."""
    factors: Callable[[Any], dict[str, str]]
    """The factors that the report crosses in a table: two of a recipe's fields as text, or none."""
    lms: Callable[[Any], set[str]]
    """Names the frozen LMs of a recipe."""
    config: Callable[[Any, dict[str, Any]], str]
    """Describes all that a training follows from, given identities of its models."""


def _one_reader(recipe: WireRecipe, session: Session | None) -> Wire:
    return Wire.from_pretrained(train_wire(recipe, session) / "wire")


def _several_readers(recipe: SharedRecipe, session: Session | None) -> SharedWire:
    lms = load_models({*recipe.wire.readers, recipe.wire.source}, recipe.wire.dtype)
    return SharedWire.from_pretrained(train_shared(recipe, session, lms) / "wire", lms)


def _encoder_and_injector(recipe: SharedRecipe) -> dict[str, str]:
    if recipe.wire.calibration != "regression":  # one that differs in a third thing
        return {}
    return {"encoder": recipe.wire.encoder, "injectors": recipe.wire.injector}


KINDS: dict[type, Kind] = {
    WireRecipe: Kind(
        _one_reader,
        evaluate_wire,
        lambda _: BITS,
        lambda _: {},
        lambda recipe: {recipe.wire.reader},
        training.config_of,
    ),
    SharedRecipe: Kind(
        _several_readers,
        evaluate_readers,
        lambda recipe: (recipe.wire.bits,),
        _encoder_and_injector,
        lambda recipe: {*recipe.wire.readers, recipe.wire.source},
        learned.config_of,
    ),
}


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of every member of a sweep when it is trained."""

    data: str = ALMANAC
    """JSONL with rows {"id", "context", "question", "answers"}, or hub:NAME; the shipped almanac if
    not given."""
    limit: int | None = None
    """Only the first so many questions."""
    bits: tuple[int, ...] = ()
    """Bits of one code of a message, an evaluation for each; if not given 16, and for a shared wire
    those that it was trained with, which are the only ones it has."""

    def check(self, grid: Mapping[str, Recipe]) -> None:
        """Raises ValueError for what a member cannot be evaluated with, before any is trained."""
        check_least(self, limit=1)
        load_passages(self.data, self.limit, needles=None)
        for name, recipe in grid.items():
            known = KINDS[type(recipe)].bits(recipe)
            if wrong := set(self.bits) - set(known):
                raise ValueError(
                    f"{name}: its codes have {' or '.join(map(str, known))} bits; got "
                    f"{', '.join(map(str, sorted(wrong)))}: leave out --bits, or the member"
                )

    def folder(self, bits: int) -> str:
        """Inside a member's."""
        return f"eval-{Path(self.data).stem}-{self.limit or 'all'}-{bits}bit"


def load_grid(path: Path) -> dict[str, Recipe]:
    """The `grid` of a Python file, or the return value where it is a function: {name: recipe}.
    Raises ValueError for anything else."""
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
        if type(recipe) not in KINDS:
            known = " or ".join(kind.__name__ for kind in KINDS)
            raise ValueError(f"{path}: {name} is a {type(recipe).__name__}; expected a {known}")
    return grid


def run_sweep(
    grid: Mapping[str, Recipe],
    out: Path,
    evaluation: Evaluation = Evaluation(),
    session: Session | None = None,
    ray: str | None = None,
    said: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run all members that are not done; the whole result as one dict, also in out/results.json.

    One that fails or is killed does not stop the others, and begins where it stopped when the sweep
    is run again. Raises ValueError where another process has the folder, and where a member that is
    done rests on models, data or releases that have changed since.

    ray: the address of the Ray that they run on; one after another here if None. said: told in one
    line of each that ends.
    """
    evaluation.check(grid)
    with owned(out):
        return _run(grid, out, evaluation, session, ray, said)


def _run(
    grid: Mapping[str, Recipe],
    out: Path,
    evaluation: Evaluation,
    session: Session | None,
    ray: str | None,
    said: Callable[[str], None],
) -> dict[str, Any]:
    _begin(grid, out, evaluation)
    left = {n: r for n, r in grid.items() if _result(n, r, out, evaluation).get("error", True)}
    identities: dict[tuple[str, Dtype], dict[str, Any]] = {}
    for name in (n for n in grid if n not in left):
        _check_done(out / name, grid[name], identities)
        said(f"{name}: done before")
    jobs = {n: (n, r, out, evaluation, session) for n, r in left.items()}
    for name in left:
        (out / name / MEMBER).unlink(missing_ok=True)
    for name, died in run_isolated(run_member, jobs, ray):
        if died is not None:
            _write(out / name, left[name], evaluation, error=f"its process died: {died}")
        error = _result(name, left[name], out, evaluation).get("error")
        said(f"{name}: {error or 'done'}")
        _collect(grid, out, evaluation)
    return _collect(grid, out, evaluation)


def run_member(
    name: str, recipe: Recipe, out: Path, evaluation: Evaluation, session: Session | None
) -> None:
    """Train and evaluate one member, or go on with it; its member.json says what it came to."""
    folder, kind = out / name, KINDS[type(recipe)]
    try:
        with owned(folder):
            trained, results = kind.train(replace(recipe, out=folder), session), {}
            for bits in evaluation.bits or kind.bits(recipe)[:1]:
                asked = (evaluation.data, evaluation.limit, folder / evaluation.folder(bits), bits)
                results[str(bits)] = kind.evaluate(trained, *asked)
            alarms = standing(read_rows(folder / "metrics.jsonl"))
            _write(folder, recipe, evaluation, alarms=alarms, evaluations=results)
    except Exception as error:  # whatever it is, it is this member's alone
        traceback.print_exc()
        said = " ".join(f"{type(error).__name__}: {error}".split())
        _write(folder, recipe, evaluation, error=said)


def _begin(grid: Mapping[str, Recipe], out: Path, evaluation: Evaluation) -> None:
    """Make `out` the folder of a sweep, whose grid may have grown. Raises ValueError for a folder
    of another kind of run."""
    config = out / "config.json"
    if config.exists() and "grid" not in json.loads(config.read_text()):
        raise ValueError(f"{out} holds a run that is no sweep; give another --run or remove it")
    out.mkdir(parents=True, exist_ok=True)
    members = {name: asdict(recipe) for name, recipe in grid.items()}
    about = {"evaluation": asdict(evaluation), "grid": members}
    write_whole(config, json.dumps(about, indent=1, default=str))


def _check_done(
    folder: Path, recipe: Recipe, identities: dict[tuple[str, Dtype], dict[str, Any]]
) -> None:
    """Raises ValueError where a member that is done would be another now, though its recipe is the
    same. identities: of the models that were loaded for it, each once, and not kept."""
    kind, dtype = KINDS[type(recipe)], recipe.wire.dtype
    lms, saved = kind.lms(recipe), json.loads((folder / "config.json").read_text())
    models = {}
    for name in {*lms, *saved.get("models", ())}:
        if (name, dtype) not in identities:
            identities[name, dtype] = identity(
                FrozenLM.from_pretrained(name, dtype)
                if name in lms
                else SentenceEncoder.from_pretrained(name)
            )
        models[name] = identities[name, dtype]
    check_training(folder, kind.config(recipe, models))


def _write(folder: Path, recipe: Recipe, evaluation: Evaluation, **facts: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    record = {"asked": _asked(recipe, evaluation), **facts}
    write_whole(folder / MEMBER, json.dumps(record, indent=1))


def _result(name: str, recipe: Recipe, out: Path, evaluation: Evaluation) -> dict[str, Any]:
    """The outcome of a member; nothing where it has not ended, or was asked something else."""
    path = out / name / MEMBER
    record = json.loads(path.read_text()) if path.exists() else {}
    if record.pop("asked", None) != _asked(recipe, evaluation):
        return {}
    return {"error": None, **record}


def _asked(recipe: Recipe, evaluation: Evaluation) -> dict[str, Any]:
    """Recipe, evaluation and what its data holds, as they come back from JSON."""
    asked = {"recipe": {**asdict(recipe), "out": None}, "evaluation": asdict(evaluation)}
    asked["data"] = list(digests(evaluation.data).values())
    return json.loads(json.dumps(asked, default=str))


def _collect(grid: Mapping[str, Recipe], out: Path, evaluation: Evaluation) -> dict[str, Any]:
    members = {name: _result(name, recipe, out, evaluation) for name, recipe in grid.items()}
    about = {**asdict(evaluation), "data": Path(evaluation.data).name}
    factors = {name: KINDS[type(recipe)].factors(recipe) for name, recipe in grid.items()}
    result = {"kind": "sweep", **about, "factors": factors, "members": members}
    write_whole(out / "results.json", json.dumps(result, indent=1))
    return json.loads(json.dumps(result))
