"""The commands. Each is a typed function, and its docstring is the help."""

import json
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

Positional = tyro.conf.Positional
out = Console()


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
    """
    from latentwire.files import write_whole
    from latentwire.recipes.evaluation import ALMANAC, evaluate_wire
    from latentwire.report.page import write_report
    from latentwire.report.tables import results_table, verdict
    from latentwire.wire.wire import Wire

    if limit is not None and limit < 1:
        raise ValueError(f"--limit is {limit}; expected at least 1")
    if json_out is not None:
        _check_folder(json_out)
    result = evaluate_wire(Wire.from_pretrained(wire), data or ALMANAC, limit, run)
    out.print(results_table(result))
    for line in verdict(result):
        out.print(f"- {line}", markup=False, highlight=False)
    if json_out is not None:
        write_whole(json_out, json.dumps(result, indent=1))
    if run is not None:
        print(f"report: {write_report(run)}")


def fetch(name: Positional[str]) -> None:
    """Bring a model to this machine: smollm2-135m, gemma3-270m, or a Hugging Face id."""
    from latentwire.lm.zoo import locate

    print(locate(name))


def doctor(model: Positional[str]) -> int:
    """Check that every path through a model agrees: prefill, cache, padding, patches, scores,
    gradients, and Hugging Face's own output. Exit status 1 where one does not.

    Args:
        model: Zoo name, Hugging Face id or local folder.
    """
    from latentwire.lm.doctor import examine
    from latentwire.lm.frozen import FrozenLM

    failed = 0
    out.print(
        f"{'check':34}{'input':11}{'batch':8}{'difference':>12}{'allowed':>10}", highlight=False
    )
    for f in examine(FrozenLM.from_pretrained(model)):
        failed += not f.passed
        batch, word = ("ragged" if f.ragged else "one row"), ("" if f.passed else "  FAILED")
        line = f"{f.check:34}{f.kind:11}{batch:8}{f.difference:12.1e}{f.tolerance:10.0e}{word}"
        out.print(line, style="red" if word else None, highlight=False)
    out.print(f"{failed} checks failed" if failed else "all checks passed", highlight=False)
    return min(failed, 1)


def report(run: Positional[Path]) -> None:
    """Write RUN/report.html from what a run folder holds."""
    from latentwire.report.page import write_report

    print(write_report(run))


def train(arguments: list[str]) -> None:
    """Train a recipe; every field of it can be overridden on the command line."""
    from latentwire.recipes.wire import RECIPES, train_wire

    made = {name: ((recipe.__doc__ or "").strip(), recipe()) for name, recipe in RECIPES.items()}
    recipe = tyro.extras.overridable_config_cli(made, args=arguments, prog="latentwire train")
    print(f"trained: {train_wire(recipe) / 'wire'}")


def seek(arguments: list[str]) -> None:
    """Improve answers at test time by searching a model's own hidden states, beside controls."""
    from latentwire.files import write_whole
    from latentwire.lm.frozen import FrozenLM
    from latentwire.recipes.seek import SeekRecipe, run_seek, seek_prompt
    from latentwire.report.page import write_report
    from latentwire.report.seek import seek_table, verdict

    def command(
        model: Positional[str],
        recipe: tyro.conf.OmitArgPrefixes[SeekRecipe],
        prompt: str | None = None,
        run: Path | None = None,
        json_out: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    ) -> None:
        """Improve answers at test time by searching a model's own hidden states, beside controls.

        Args:
            model: Zoo name, Hugging Face id or local folder.
            recipe: What to search, and how.
            prompt: Search the answer to this one prompt, not a data set, and print the trace.
            run: Run folder for predictions.jsonl, results.json and report.html; one that was
                interrupted is gone on with.
            json_out: Write the result as JSON to this file.
        """
        if json_out is not None:
            _check_folder(json_out)
        lm = FrozenLM.from_pretrained(model)
        if prompt is not None:
            _print_trace(seek_prompt(lm, recipe, prompt))
            return
        result = run_seek(lm, recipe, run)
        out.print(seek_table(result))
        for line in verdict(result):
            out.print(f"- {line}", markup=False, highlight=False)
        if json_out is not None:
            write_whole(json_out, json.dumps(result, indent=1))
        if run is not None:
            print(f"report: {write_report(run)}")

    tyro.cli(command, args=arguments, prog="latentwire seek")


def bench(
    what: Positional[Literal["seek"]],
    model: str = "smollm2-135m",
    lengths: tuple[int, ...] = (64, 256, 1024),
    problems: int = 4,
    steps: int = 2,
    json_out: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Time ours against a plain implementation of the same, in this process.

    Args:
        what: seek: the published loop without a cache, one problem and one verifier at a time.
        model: Zoo name, Hugging Face id or local folder.
        lengths: Answer lengths in tokens. The plain loop's time grows with their square.
        problems: How many problems both search.
        steps: Steps of each search.
        json_out: Write the result as JSON to this file.
    """
    from latentwire.bench.seek import almanac_problems, bench_seek
    from latentwire.files import write_whole
    from latentwire.lm.frozen import FrozenLM

    if json_out is not None:
        _check_folder(json_out)
    result = bench_seek(FrozenLM.from_pretrained(model), almanac_problems(problems), lengths, steps)
    for length, row in result["lengths"].items():
        memory = "" if row["memory_ratio"] is None else f", {row['memory_ratio']:.1f}x the memory"
        print(
            f"{length} tokens: the plain loop takes {row['time_ratio']:.1f}x the time, "
            f"{row['forwards_ratio']:.1f}x the token-forwards{memory}; "
            f"{'the same' if row['same_tokens'] else 'OTHER'} tokens"
        )
    if json_out is not None:
        write_whole(json_out, json.dumps(result, indent=1))


def _print_trace(found: Any) -> None:
    """A search's steps, and the answer it came to."""
    if found.note:
        out.print(f"note: {found.note}", markup=False, highlight=False)
    for s in found.trace:
        reward = "failed" if s.reward is None else f"{s.reward:.3f}"
        parts = ", ".join(f"{name} {value:g}" for name, value in s.parts.items())
        line = f"step {s.step:2}: reward {reward}, {s.flipped} tokens flipped, {s.tokens} run over"
        out.print(f"[dim]{line}[/dim] [dim]{parts}[/dim]", highlight=False)
    if found.failure is not None:
        raise ValueError(found.failure)
    print(found.text)


def _check_folder(path: Path) -> None:
    if not path.absolute().parent.is_dir():
        raise ValueError(f"--json {path}: there is no folder {path.absolute().parent}")


COMMANDS = {
    "ask": ask,
    "eval": evaluate,
    "fetch": fetch,
    "doctor": doctor,
    "report": report,
    "bench": bench,
}
# These build their options from a recipe, whose import takes seconds that --help need not wait for.
RECIPES = {"train": train, "seek": seek}


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit status 2."""
    arguments = sys.argv[1:]
    warnings.formatwarning = lambda message, *_, **__: f"latentwire: {message}\n"
    try:
        if arguments[:1] and arguments[0] in RECIPES:
            RECIPES[arguments[0]](arguments[1:])
            return
        every = {**COMMANDS, **RECIPES}
        status = tyro.extras.subcommand_cli_from_dict(every, args=arguments, prog="latentwire")
        raise SystemExit(status or 0)
    except (ValueError, OSError, FloatingPointError) as error:
        # Some messages come from libraries and have many lines; a user's mistake costs one.
        print("latentwire:", " ".join(str(error).split()), file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
