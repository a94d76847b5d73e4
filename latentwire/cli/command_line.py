"""Shared by all commands: the terminal, results as JSON, and trainings."""

import difflib
import io
import json
import re
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from dataclasses import make_dataclass
from functools import partial, wraps
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from latentwire.files import read_rows, write_whole
from latentwire.terminal import terminal

out = terminal()

Positional = tyro.conf.Positional
WIRE = Positional[Annotated[str, tyro.conf.arg(metavar="WIRE")]]
LENS = Positional[Annotated[str, tyro.conf.arg(metavar="LENS")]]
MODEL = Positional[Annotated[str, tyro.conf.arg(metavar="MODEL")]]
SEVERAL = tyro.conf.UseAppendAction[tuple[str, ...]]
"""An option that may be given several times."""
TEXT = Positional[Annotated[str, tyro.conf.arg(metavar="TEXT")]]
DTYPE = Literal["auto", "float32", "bfloat16"] | None


def chosen_dtype(asked: DTYPE) -> Literal["float32", "bfloat16"] | None:
    """The number type that --dtype asks for; auto is the one in which models run fastest on their
    device. None is for each model's own."""
    if asked != "auto":
        return asked
    from latentwire.lm.devices import accelerator, fast_dtype  # torch takes a second to load

    device = accelerator()
    return fast_dtype("cpu" if device is None else device.type)


def check_folder(path: Path | None, option: str = "--json") -> None:
    """Raises ValueError where an option's file can't be written, before anything is computed."""
    if path is not None and not path.absolute().parent.is_dir():
        raise ValueError(f"{option} {path}: there is no folder {path.absolute().parent}")
    if path is not None and path.is_dir():
        raise ValueError(f"{option} {path} is a folder; expected a file")


def write_json(path: Path | None, result: dict[str, Any]) -> None:
    """Write a result where --json says."""
    if path is not None:
        write_whole(path, json.dumps(result, indent=1))


def parse_command(
    commands: Callable | Mapping[str, Callable], arguments: list[str], prog: str
) -> Callable[[], int | None]:
    """The call that the arguments ask for, of a command or of one of several by name. Raises
    ValueError, of one line, for arguments that it does not take."""

    def parsed(command: Callable) -> Callable:
        @wraps(command)
        def call(*given: Any, **named: Any) -> Callable[[], int | None]:
            return partial(command, *given, **named)

        # tyro breaks the text of an option wherever the docstring does.
        command.__doc__ = re.sub(r"\n {8}(?=\S)", " ", cleandoc(command.__doc__ or ""))
        return call

    if isinstance(commands, Mapping):
        all_parsed = {name: parsed(command) for name, command in commands.items()}
        parse = partial(tyro.extras.subcommand_cli_from_dict, all_parsed)
    else:
        parse = partial(tyro.cli, parsed(commands))
    return _in_one_line(partial(parse, args=arguments, prog=prog))


def run_command(
    commands: Callable | Mapping[str, Callable], arguments: list[str], prog: str
) -> int:
    """Parse the arguments of a command, or of one of several by name, and run it; the exit status.
    Raises ValueError as parse_command does."""
    return parse_command(commands, arguments, prog)() or 0


def run_training(
    recipes: Mapping[str, Callable[[], Any]],
    train: Callable[[Any, Any], Path],
    arguments: list[str],
    prog: str,
    part: str,
) -> int:
    """Train the recipe that the arguments name, with the fields that they override; the exit status
    of `trained`. Raises ValueError for arguments that name nothing.

    part: the folder of a run that holds what was trained.
    """
    recipe, session = _parsed(recipes, arguments, prog)
    return trained(
        lambda: train(recipe, session), lambda folder: print(f"trained: {folder / part}")
    )


def trained(train: Callable[[], Path], after: Callable[[Path], None]) -> int:
    """Train, do what comes after with the run folder, and say how fast it went and which alarms
    stand at its end; exit status 3 where some do, or ended it. Of several processes that train, all
    but the first are done when it is trained."""
    from latentwire.report.tables import pace
    from latentwire.train import parallel
    from latentwire.train.alarms import CollapseError, standing

    try:
        folder = train()
    except CollapseError as collapse:
        if parallel.rank() > 0:
            return 0
        out.print(f"latentwire: {collapse}", soft_wrap=True)
        return 3
    if parallel.rank() > 0:  # a launcher ends all processes when one has a status of its own
        return 0
    after(folder)
    rows = read_rows(folder / "metrics.jsonl")
    for said in pace(rows):
        out.print(said, soft_wrap=True)
    alarms = standing(rows)
    for name, text in alarms.items():
        out.print(f"alarm: {name}: {text}", soft_wrap=True)
    return 3 if alarms else 0


def _parsed(
    recipes: Mapping[str, Callable[[], Any]], arguments: list[str], prog: str
) -> tuple[Any, Any]:
    """A recipe and a session, as the command line says."""
    from latentwire.train.schedules import Schedule
    from latentwire.train.settings import Session

    name, listed = (arguments or ["--help"])[0], ", ".join(recipes)
    if name in ("-h", "--help"):
        print(f"usage: {prog} RECIPE [OPTIONS]; {prog} RECIPE --help shows every option\n")
        for key, recipe in recipes.items():
            print(f"  {key:14} {(recipe.__doc__ or '').strip()}")
        raise SystemExit(0)
    if name not in recipes:
        near = difflib.get_close_matches(name, recipes, n=1, cutoff=0.4)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"unknown recipe {name!r}{hint}: expected one of {listed}")
    recipe = recipes[name]()

    def scheduled(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
        if info.type is Schedule:  # else seven options for each, of which most stay as they are
            return tyro.constructors.PrimitiveConstructorSpec(
                "*", "SCHEDULE", Schedule.parse, lambda x: isinstance(x, Schedule), Schedule.words
            )

    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(scheduled)
    top = tyro.conf.arg(name="")  # the fields of both stand side by side, without a prefix
    parts = {"recipe": recipe, "session": Session()}
    fields = [(key, Annotated[type(value), top], value) for key, value in parts.items()]
    both = make_dataclass("Training", fields, namespace={"__doc__": recipes[name].__doc__})
    with registry:
        parsed = _in_one_line(lambda: tyro.cli(both, args=arguments[1:], prog=f"{prog} {name}"))
    return parsed.recipe, parsed.session


def _in_one_line(parse: Callable[[], Any]) -> Any:
    """The arguments as tyro parses them; a mistake that it would draw a box around is a ValueError
    of one line."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return parse()
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(_unboxed(said.getvalue())) from None


def _unboxed(boxed: str) -> str:
    """The mistake, and the options that tyro takes for meant."""
    sections: list[list[str]] = [[]]
    for line in (line.strip("│ ") for line in boxed.splitlines()):
        if line and set(line) <= set("─-"):
            sections.append([])
        elif line and line[0] not in "╭╰":
            sections[-1].append(line)
    if not boxed.startswith("╭"):  # without UTF-8 the title is a section of its own
        del sections[0]
    said = " ".join(sections[0]) if sections else "the arguments cannot be read"
    lines = [x for s in sections if s and s[0].startswith("Perhaps you meant") for x in s]
    meant = [line.split()[0] for line in lines if line.startswith("--")]
    return said + (f"; did you mean {' or '.join(meant)}?" if meant else "")
