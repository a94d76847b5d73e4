"""The commands. Each is a typed function, and its docstring is the help."""

from __future__ import annotations

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


def lens_explain(
    lens: Positional[str],
    text: Positional[str],
    token: int | None = None,
    every: Annotated[bool, tyro.conf.arg(name="all")] = False,
    k: int = 1,
    html: Path | None = None,
) -> None:
    """Say in words what a model's activations hold, token by token; the last token if neither
    --token nor --all is given.

    Args:
        lens: A lens's folder, or default, the shipped one.
        text: What the model reads.
        token: Only this token, counted from 0.
        every: All tokens.
        k: Draw so many explanations of each and show the best.
        html: Also write a page on which a person points at tokens, with all k explanations.
    """
    from latentwire.lens.checks import LensError
    from latentwire.lens.lens import Lens
    from latentwire.recipes.lens_explain import explain_text
    from latentwire.report.lens_page import write_lens_page

    if every and token is not None:
        raise LensError(f"--token {token} and --all; expected one of them")
    if html is not None and not html.absolute().parent.is_dir():
        raise ValueError(f"--html {html}: there is no folder {html.absolute().parent}")
    loaded = Lens.from_pretrained(lens)
    chosen = None if every else [len(loaded.lm.ids(text)) - 1 if token is None else token]
    rows = explain_text(loaded, text, chosen, k)
    print(f"{'':>5}{'token':14} {'explained':>9} {'KL':>6}  explanation")
    for row in rows:
        best = row.explanations[0]
        said = "".join(c if c.isprintable() else "·" for c in best.text.replace("\n", " / "))
        print(f"{row.index:>4} {row.token!r:14} {1 - best.error:9.2f} {row.kl:6.2f}  {said}")
    if html is not None:
        facts = {"model": loaded.config.model, "layer": loaded.config.layer, "explanations": k}
        ids, decode = loaded.lm.ids(text), loaded.lm.tokenizer.decode
        around = decode(ids[: rows[0].index]), decode(ids[rows[-1].index + 1 :])
        write_lens_page(html, facts, [row.record() for row in rows], around)


def lens_eval(
    lens: Positional[str],
    text: tuple[Path, ...],
    limit: int = 200,
    positions: int = 1,
    samples: int = 1,
    seed: int = 0,
    json_out: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Score a lens on the activations of a text, beside controls that say nothing of them.

    Args:
        lens: A lens's folder, or default, the shipped one.
        text: UTF-8 text files that it was not trained on, a document per block.
        limit: Only so many documents, chosen at random.
        positions: Activations of each, chosen at random.
        samples: Score the best of so many drawn explanations; 1 for the greedy one.
        seed: Of all choices.
        json_out: Write the result as JSON to this file.
    """
    from latentwire.files import write_whole
    from latentwire.lens.lens import Lens
    from latentwire.recipes.lens_evaluation import LensEvaluation, evaluate_lens

    if json_out is not None:
        _check_folder(json_out)
    config = LensEvaluation(limit, positions, samples, seed=seed)
    result = evaluate_lens(Lens.from_pretrained(lens), text, config)
    rows = {"lens": result, **result["controls"], **result["references"]}
    print(f"{'':20} {'FVE (95% interval)':>24} {'cosine':>7} {'KL':>6} {'recovered':>9}")
    for name, row in rows.items():
        fve = f"{row['fve']:.3f} ({row['fve_low']:.3f} to {row['fve_high']:.3f})"
        figures = f"{row['cosine']:7.3f} {row['kl']:6.2f} {row['loss_recovered']:9.2f}"
        print(f"{name.replace('_', ' '):20} {fve:>24} {figures}")
    above = "above" if result["beats_every_control"] else "NOT above"
    print(f"The lens's FVE is {above} the interval of every control ({result['n']} activations).")
    if json_out is not None:
        write_whole(json_out, json.dumps(result, indent=1))


def lens_train(arguments: list[str]) -> None:
    """Train a recipe for a lens; every field of it can be overridden on the command line."""
    from latentwire.recipes.lens import RECIPES, train_lens

    made = {name: ((recipe.__doc__ or "").strip(), recipe()) for name, recipe in RECIPES.items()}
    prog = "latentwire lens train"
    recipe = tyro.extras.overridable_config_cli(made, args=arguments, prog=prog)
    print(f"trained: {train_lens(recipe) / 'lens'}")


def lens(arguments: list[str]) -> None:
    """Activations in words: `latentwire lens explain`, `lens train`, `lens eval`."""
    if arguments[:1] == ["train"]:
        lens_train(arguments[1:])
        return
    commands = {"explain": lens_explain, "eval": lens_eval, "train": lens_train}
    tyro.extras.subcommand_cli_from_dict(commands, args=arguments, prog="latentwire lens")


def bench(
    part: Positional[Literal["lens"]],
    tokens: tuple[int, ...] = (16, 64, 128),
    json_out: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Measure what a lens costs on smollm2-135m: differentiable generation and scoring.

    Args:
        part: lens.
        tokens: Lengths of generation.
        json_out: Write the result as JSON to this file.
    """
    from latentwire.files import write_whole
    from latentwire.recipes.lens_bench import bench_lens

    result = bench_lens(tokens=tokens)
    rows = [(f"{n}, {c} tokens", r) for c, m in result["generation"].items() for n, r in m.items()]
    rows.append(("scoring / full logits", result["scoring"]))
    print(f"{'':28} {'seconds':>9} {'MB':>8} {'time':>6} {'memory':>7}")
    for name, row in rows:
        seconds, size, *ratios = row.values()
        shown = [f"{x:.2f}" if x is not None else "-" for x in (seconds, *ratios)]
        used = "too many" if size is None else f"{size / 1e6:.0f}"
        print(f"{name:28} {shown[0]:>9} {used:>8} {shown[1]:>6} {shown[2]:>7}")
    if json_out is not None:
        write_whole(json_out, json.dumps(result, indent=1))


COMMANDS = {
    "ask": ask,
    "bench": bench,
    "eval": evaluate,
    "fetch": fetch,
    "doctor": doctor,
    "report": report,
}
# These parse what follows their name themselves, mostly from a recipe, whose import takes seconds
# that --help need not wait for.
RECIPES = {"train": train, "seek": seek, "lens": lens}


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
