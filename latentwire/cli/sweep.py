"""The command of sweeps."""

from pathlib import Path
from typing import Annotated

import tyro

from latentwire.cli.command_line import Positional, check_folder, out, run_command, write_json


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
