"""Commands of the wire: ask, eval, train."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from latentwire.commands.shared import check_folder, out, run_training, write_json

Positional = tyro.conf.Positional


def ask(
    question: Positional[str],
    context: Path,
    wire: str = "default",
    full_text: bool = False,
) -> None:
    """Answer a question about a text file that the reader sees only as latents.

    Args:
        question: What to ask.
        context: Any UTF-8 text file; one longer than the wire's window is compressed window by
            window.
        wire: A wire's folder, or default, the shipped one.
        full_text: Also show what the same reader answers with the whole text in front of it.
    """
    from latentwire.evals import baselines
    from latentwire.tasks.base import DataError, read_text
    from latentwire.tasks.qa import answers, with_format
    from latentwire.wire.wire import Wire

    if not question.strip():
        raise DataError("the question is empty; expected text")
    text = read_text(context)
    loaded = Wire.from_pretrained(wire)
    lm = loaded.lm
    messages = loaded.send([text])

    def answer(prefix) -> str:
        return answers(lm, [question], with_format(lm, loaded.format, prefix))[0]

    print(answer(loaded.receive(messages)))
    tokens, latents = len(lm.ids(text)), len(messages[0].latents)
    out.print(f"[dim]{lm.name} read {tokens} tokens as {latents} latents[/dim]", highlight=False)
    if full_text:
        print(f"full text: {answer(baselines.full_text(lm)([text]))}")


def evaluate(
    wire: Positional[str] = "default",
    data: str | None = None,
    limit: int | None = None,
    json_out: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    run: Path | None = None,
    bits: int = 16,
    needles: Literal["number", "uuid"] | None = None,
    ray: str | None = None,
) -> None:
    """Score a wire beside full text, truncation, no text, and latents that say nothing.

    Args:
        wire: A wire's folder, or default, the shipped one.
        data: JSONL with rows {"id", "context", "question", "answers"}; the shipped almanac if not
            given.
        limit: Only the first so many questions.
        json_out: Write the result as JSON to this file.
        run: Run folder for results.json, predictions.jsonl and report.html; one that was
            interrupted is gone on with.
        bits: Bits of one code of a message: 16, 8, 6 or 4.
        needles: Ask for a 12-digit number or a UUID that is hidden in each passage, in place of the
            questions of the data.
        ray: Answer by the workers of the Ray at this address, or of one started here if local.
    """
    from latentwire.recipes.evaluation import ALMANAC, evaluate_wire, load_wire
    from latentwire.recipes.workers import on_ray
    from latentwire.report.page import write_report
    from latentwire.report.tables import results_table, verdict

    if limit is not None and limit < 1:
        raise ValueError(f"--limit is {limit}; expected at least 1")
    check_folder(json_out)
    spread = None if ray is None else on_ray(ray, partial(load_wire, wire))
    result = evaluate_wire(load_wire(wire), data or ALMANAC, limit, run, bits, needles, spread)
    out.print(results_table(result))
    for line in verdict(result):
        out.print(f"- {line}", markup=False, highlight=False)
    write_json(json_out, result)
    if run is not None:
        print(f"report: {write_report(run)}")


def train(arguments: list[str]) -> int:
    """Train a recipe; every field of it can be overridden on the command line. Exit status 3 where
    alarms stand at the end, or where --stop-on collapse ended it."""
    from latentwire.recipes.wire import RECIPES, train_wire

    return run_training(RECIPES, train_wire, arguments, "latentwire train", "wire")
