"""Jobs for processes of their own; they import no model, so that a process begins at once."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from latentwire.files import owned


def note(path: Path, text: str) -> None:
    path.write_text(text)


def die(_path: Path, _text: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait(folder: Path) -> None:
    """Until SIGTERM; how often it came is noted."""
    came: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    note(folder / "began", "")
    while not came:
        time.sleep(0.05)
    time.sleep(0.5)
    note(folder / "came", " ".join(map(str, came)))


def hold(folder: Path) -> None:
    """Own a folder for a minute."""
    with owned(folder):
        note(folder / "began", "")
        time.sleep(60)


def do(path: Path, text: str) -> None:
    die(path, text) if text == "die" else note(path, text)


def doubling(mark: Path, _large: str, _model: object) -> Callable[[int], int]:
    """Work of a worker that dies the first time that it is asked."""

    def double(item: int) -> int:
        if not mark.exists():
            note(mark, "")
            die(mark, "")
        return 2 * item

    return double
