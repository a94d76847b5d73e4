"""Entry point: which command, and how a mistake is told."""

import os
import sys
import warnings

from latentwire.cli.bench import bench
from latentwire.cli.command_line import run_command
from latentwire.cli.lens import lens
from latentwire.cli.models import doctor, fetch, report
from latentwire.cli.seek import seek
from latentwire.cli.serve import chat, compress, serve
from latentwire.cli.wire import add_reader, ask, evaluate, fit, sweep, train
from latentwire.terminal import printable

COMMANDS = {"ask": ask, "eval": evaluate, "compress": compress, "chat": chat, "serve": serve}
COMMANDS |= {"fit": fit, "fetch": fetch, "doctor": doctor, "report": report}
# These parse what follows their name themselves: they have commands of their own, or options that
# are built from a recipe, whose import takes seconds that --help need not wait for.
GROUPS = {"train": train, "add-reader": add_reader, "sweep": sweep, "seek": seek}
GROUPS |= {"lens": lens, "bench": bench}


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit status 2."""
    arguments = sys.argv[1:]
    warnings.formatwarning = lambda message, *_, **__: f"latentwire: {printable(str(message))}\n"
    try:
        if arguments[:1] and arguments[0] in GROUPS:
            status = GROUPS[arguments[0]](arguments[1:])
        else:
            status = run_command({**COMMANDS, **GROUPS}, arguments, "latentwire")
    except BrokenPipeError:  # who reads our output has enough, as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except (ValueError, OSError, FloatingPointError) as error:
        # Some messages come from libraries and have many lines; a user's mistake costs one.
        print("latentwire:", printable(" ".join(str(error).split())), file=sys.stderr)
        raise SystemExit(2) from None
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        said = printable(" ".join(str(error).split()))
        print(f"latentwire: {said} Take fewer rows at a time, or bfloat16.", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    if status:
        raise SystemExit(status)


if __name__ == "__main__":
    main()
