"""Commands of the wire: eval, fit, train, add-reader, sweep."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from latentwire.cli.command_line import (
    DTYPE,
    MODEL,
    SEVERAL,
    WIRE,
    Positional,
    check_folder,
    chosen_dtype,
    out,
    run_command,
    run_training,
    trained,
    write_json,
)


def evaluate(
    wire: WIRE = "default",
    data: str | None = None,
    reader: SEVERAL = (),
    limit: int | None = None,
    json_out: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    run: Path | None = None,
    bits: int | None = None,
    ratio: int | None = None,
    keep: str | None = None,
    needles: Literal["number", "uuid"] | None = None,
    also: SEVERAL = (),
    selector: str | None = None,
    ray: str | None = None,
    dtype: DTYPE = None,
    answer_tokens: int | None = None,
) -> None:
    """Score a wire beside full text, truncation, no text, and latents that say nothing.

    Args:
        wire: A wire's folder or hub id, or one of those shipped, default or shared.
        data: JSONL with rows {"id", "context", "question", "answers"}; the shipped almanac if not
            given.
        reader: PATH of the wire's reader where it has another here, or NAME=PATH of one of several.
        limit: Only the first so many questions.
        json_out: Write the result as JSON to this file.
        run: Run folder for results.json, predictions.jsonl and report.html; one that was
            interrupted is gone on with.
        bits: Bits of one code of a message of a wire of one reader: 16 (if not given), 8, 6 or
            4.
        ratio: Tokens in per latent out, where it is to be another than the wire's own.
        keep: What of a text to keep as text beside the latents: numbers, names, or what a regular
            expression finds.
        needles: Ask for a 12-digit number or a UUID that is hidden in each passage, in place of the
            questions of the data.
        also: Score eviction alone by this selector too, at the same ratio; key_norm, say. May be
            given several times; an unknown name lists them all.
        selector: Compress without any training, by this selector; an unknown name lists them all.
            WIRE is then a model by zoo name, Hugging Face id or folder.
        ray: Answer by the workers of the Ray at this address, or of one started here if local.
        dtype: Number type of the readers' weights, where it is to be another than the wire was
            trained with; auto is bfloat16 on devices that are faster with it.
        answer_tokens: Longest answer in tokens; 20 if not given, 48 for needles.
    """
    from latentwire.files import owned
    from latentwire.runs.workers import connected, on_ray
    from latentwire.wire.evaluation import ALMANAC, evaluate_wire
    from latentwire.wire.joint import evaluate_readers
    from latentwire.wire.load import load_reader, load_with
    from latentwire.wire.selectors import selector_of
    from latentwire.wire.wire import Wire

    for option, number in (("limit", limit), ("answer-tokens", answer_tokens)):
        if number is not None and number < 1:
            raise ValueError(f"--{option} is {number}; expected at least 1")
    check_folder(json_out)
    for name in also:  # a mistake in one is told before any model is loaded
        selector_of(name)
    weights = chosen_dtype(dtype)

    def executor(number: int) -> Any:
        one = partial(load_reader, wire, ratio, keep, number, selector, weights, reader)
        return on_ray(ray, one) if ray else None

    with owned(run):  # before any model is loaded
        loaded = load_with(wire, ratio, keep, selector, dtype=weights, readers=reader)
        asked = (data or ALMANAC, limit, run, bits, needles)
        with nullcontext() if ray is None else connected(ray):  # once, for all readers
            if isinstance(loaded, Wire):
                result = evaluate_wire(loaded, *asked, executor(0), also, answer_tokens)
            else:
                workers = executor if ray else None
                result = evaluate_readers(loaded, *asked, workers, also, answer_tokens)
    _show(result, run)
    write_json(json_out, result)


def _show(result: dict[str, Any], run: Path | None) -> None:
    """Print tables and verdicts, and write the report where there is a run folder."""
    from latentwire.report.page import write_report
    from latentwire.report.tables import results_table
    from latentwire.report.verdict import joint_verdict, verdict

    each = result.get("readers", {result.get("reader"): result})
    for i, (name, one) in enumerate(each.items()):
        folder = f"reader-{i}" if "readers" in result else "."
        if len(each) > 1:
            out.print(name, style="bold")
        out.print(results_table(one))
        for line in verdict(one):
            out.print(f"- {line}")
        if run is not None:
            print(f"report: {write_report(run / folder)}")
    if "joint" in result:
        out.print(joint_verdict(result["joint"]))
    if run is not None and "readers" in result:
        print(f"report of all: {write_report(run)}")


def fit(
    model: MODEL,
    data: str = "hub:rajpurkar/squad",
    run: Path | None = None,
    passages: int = 200,
    ratio: int = 4,
    window: int = 512,
    dtype: DTYPE = None,
) -> None:
    """Fit the scorer of a wire for any supported model in closed form, in minutes: each token is
    scored by the attention that questions about passages gave it. The wire keeps a model's own
    keys and values; `latentwire train` also trains what moves them.

    Args:
        model: Zoo name, Hugging Face id or local folder.
        data: JSONL with rows {"id", "context", "question", "answers"}, or hub:NAME.
        run: Run folder; runs/fit-MODEL if not given. The wire is the folder `wire` in it.
        passages: Passages that are looked at.
        ratio: Tokens in per latent out.
        window: Most tokens that are read in one pass.
        dtype: Number type of the model's weights, float32 if not given; auto is bfloat16 on devices
            that are faster with it.
    """
    from latentwire.wire.recipe import scorer_alone
    from latentwire.wire.training import train_wire

    weights = chosen_dtype(dtype) or "float32"
    given = {"data": data, "out": run, "scorer_passages": passages, "held_out": 1}
    folder = train_wire(scorer_alone(model, ratio, window, weights, **given)) / "wire"
    print(f"fitted: {folder}")


def train(arguments: list[str]) -> int:
    """Train a recipe; every field of it can be overridden on the command line. Exit status 3 where
    alarms stand at the end, or where --stop-on collapse ended it."""
    from latentwire.wire.codes import config as codes_config
    from latentwire.wire.codes.training import train_codes
    from latentwire.wire.learned import config as shared_config
    from latentwire.wire.learned.training import train_shared
    from latentwire.wire.recipe import RECIPES
    from latentwire.wire.training import train_wire

    def run(recipe, session) -> Path:
        if isinstance(recipe, codes_config.CodeRecipe):
            return train_codes(recipe, session)
        several = isinstance(recipe, shared_config.SharedRecipe)
        return (train_shared if several else train_wire)(recipe, session)

    recipes = {**RECIPES, **codes_config.RECIPES, **shared_config.RECIPES}
    return run_training(recipes, run, arguments, "latentwire train", "wire")


def add_reader(arguments: list[str]) -> int:
    """Train one more reader of a wire; the readers that it has stay as they are. Says what each
    loses by latents in place of the text, on passages held out. Exit status 3 where alarms stand at
    the end, or where --stop-on collapse ended it."""
    from latentwire.train.settings import Session

    def command(
        wire: WIRE,
        model: MODEL,
        session: tyro.conf.OmitArgPrefixes[Session],
        data: str,
        run: Path | None = None,
        steps: int | None = None,
        format_steps: int | None = None,
        batch_size: int | None = None,
        dtype: Literal["float32", "bfloat16"] | None = None,
    ) -> int:
        """Train one more reader of a wire; the readers that it has stay as they are. Says what each
        loses by latents in place of the text, on passages held out.

        Args:
            wire: A wire's folder or hub id, or a shipped one: default, shared, interlingua. A wire
                of one reader becomes one whose messages are text in the code of that reader; it
                alone reads those sent before.
            model: Zoo name, Hugging Face id or local folder of the new reader.
            session: How the training is computed, watched and kept.
            data: JSONL with rows {"id", "context", "question", "answers"}, or hub:NAME.
            run: Run folder; runs/added-MODEL if not given. The wire with all readers is in a folder
                in it.
            steps: Steps of the adapter; as many as in training a wire of this kind if not given. 0
                leaves a decoder of latent codes at its closed form, which takes minutes.
            format_steps: Steps of the soft prompt before it, likewise.
            batch_size: Passages per step, likewise.
            dtype: Number type of the new reader's weights; that of the first reader if not given.
        """
        from latentwire.wire.adding import Addition

        counts = {"steps": steps, "format_steps": format_steps, "batch_size": batch_size}
        added = Addition(wire, model, data, run, dtype=dtype, **counts)
        return trained(lambda: added.train(session), lambda folder: _print_lines(added, folder))

    return run_command(command, arguments, "latentwire add-reader")


def _print_lines(added: Any, folder: Path) -> None:
    print(f"added: {added.place(folder)}")
    for line in added.losses(folder):
        out.print(f"- {line}")


def sweep(arguments: list[str]) -> int:
    """Train and evaluate a grid of recipes. Exit status 1 where a member failed."""
    from latentwire.report.page import write_report
    from latentwire.report.sweep import sweep_table
    from latentwire.train.loop import Session
    from latentwire.wire.sweep import Evaluation, load_grid, run_sweep

    def command(
        grid: Positional[Annotated[Path, tyro.conf.arg(metavar="GRID.py")]],
        evaluation: tyro.conf.OmitArgPrefixes[Evaluation],
        session: tyro.conf.OmitArgPrefixes[Session],
        run: Path | None = None,
        ray: str | None = None,
        json_out: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    ) -> int:
        """Train and evaluate a grid of recipes, each in a run folder of its own. The same command
        goes on with a sweep that was stopped, and tries those again that failed.

        Args:
            grid: A Python file whose `grid` is {name: recipe}, or a function that returns it; the
                recipes are those of `latentwire train`, of any kind.
            evaluation: What every member is asked when it is trained.
            session: How their trainings are watched and kept.
            run: Folder of the sweep; runs/GRID if not given.
            ray: Run members at the same time, on the Ray at this address, or on one started here if
                local; one after another if not given.
            json_out: Write the result as JSON to this file.
        """
        check_folder(json_out)
        members, run = load_grid(grid), run or Path("runs") / grid.stem

        def said(line: str) -> None:
            out.print(line, soft_wrap=True)

        result = run_sweep(members, run, evaluation, session, ray, said)
        out.print(sweep_table(result))
        write_json(json_out, result)
        print(f"report: {write_report(run)}")
        return int(any(m.get("error", True) for m in result["members"].values()))

    return run_command(command, arguments, "latentwire sweep")
