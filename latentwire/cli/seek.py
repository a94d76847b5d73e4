"""The command of seek."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from latentwire.cli.command_line import MODEL, check_folder, out, run_command, write_json
from latentwire.terminal import printable


def seek(arguments: list[str]) -> None:
    """Improve answers at test time by searching a model's own hidden states, beside controls."""
    from latentwire.files import owned
    from latentwire.report.page import write_report
    from latentwire.report.seek import seek_table, verdict
    from latentwire.runs.workers import on_ray
    from latentwire.seek.recipe import SeekRecipe, load_task
    from latentwire.seek.run import load_lm, run_seek, seek_prompt

    def command(
        model: MODEL,
        recipe: tyro.conf.OmitArgPrefixes[SeekRecipe],
        prompt: str | None = None,
        run: Path | None = None,
        json_out: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
        ray: str | None = None,
    ) -> None:
        """Improve answers at test time by searching a model's own hidden states, beside controls.

        Args:
            model: Zoo name, Hugging Face id or local folder.
            recipe: What to search, and how.
            prompt: Search the answer to this one prompt, not a data set, and print the trace.
            run: Run folder for predictions.jsonl, results.json and report.html; one that was
                interrupted is gone on with. runs/seek-DATA-REWARD if not given.
            json_out: Write the result as JSON to this file.
            ray: Search by the workers of the Ray at this address, or of one started here if local.
        """
        check_folder(json_out)
        recipe.check()
        if prompt is not None:
            if run is not None or json_out is not None or ray is not None:
                raise ValueError(
                    "--prompt prints a trace and keeps no run; leave --run, --json, --ray out"
                )
            _print_trace(seek_prompt(load_lm(model, recipe.dtype), recipe, prompt))
            return
        task = load_task(recipe)  # a mistake in the data costs no loading of the model
        run = run or recipe.folder()
        executor = None if ray is None else on_ray(ray, partial(load_lm, model, recipe.dtype))
        with owned(run):  # before the model is loaded
            result = run_seek(load_lm(model, recipe.dtype), recipe, run, task, executor)
        out.print(seek_table(result))
        for line in verdict(result):
            out.print(f"- {line}")
        write_json(json_out, result)
        print(f"report: {write_report(run)}")

    run_command(command, arguments, "latentwire seek")


def _print_trace(found: Any) -> None:
    """A search's steps, and the answer it came to."""
    if found.note:
        out.print(f"note: {found.note}")
    for s in found.trace:
        reward = "failed" if s.reward is None else f"{s.reward:.3f}"
        parts = ", ".join(f"{name} {value:g}" for name, value in s.parts.items())
        line = f"step {s.step:2}: reward {reward}, {s.flipped} tokens flipped, {s.tokens} run over"
        out.print(f"{line} {parts}", style="dim")
    print(printable(found.text))
    if found.failure is not None:
        raise ValueError(found.failure)
