"""Jobs for processes of their own; they import nothing, so that a process begins at once."""

import os
import signal
from pathlib import Path


def note(path: Path, text: str) -> None:
    path.write_text(text)


def die(_path: Path, _text: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def do(path: Path, text: str) -> None:
    die(path, text) if text == "die" else note(path, text)
