"""Entry point: which command."""

import sys

from latentwire.cli.ask import ask
from latentwire.cli.bench import bench
from latentwire.cli.command_line import run_command
from latentwire.cli.lens import lens
from latentwire.cli.models import doctor, fetch, report
from latentwire.cli.seek import seek
from latentwire.cli.serve import chat, compress, serve
from latentwire.cli.wire import add_reader, evaluate, fit, sweep, train
from latentwire.terminal import exit_with

COMMANDS = {"ask": ask, "eval": evaluate, "compress": compress, "chat": chat, "serve": serve}
COMMANDS |= {"fit": fit, "fetch": fetch, "doctor": doctor, "report": report}
# These parse what follows their name themselves: they have commands of their own, or options that
# are built from a recipe, whose import takes seconds that --help need not wait for.
GROUPS = {"train": train, "add-reader": add_reader, "sweep": sweep, "seek": seek}
GROUPS |= {"lens": lens, "bench": bench}


def main() -> None:
    """Entry point: run the command that the arguments name."""
    exit_with(lambda: _run(sys.argv[1:]))


def _run(arguments: list[str]) -> int | None:
    if arguments[:1] and arguments[0] in GROUPS:
        return GROUPS[arguments[0]](arguments[1:])
    return run_command({**COMMANDS, **GROUPS}, arguments, "latentwire")


if __name__ == "__main__":
    main()
