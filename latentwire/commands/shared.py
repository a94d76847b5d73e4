"""What commands share: the terminal, and results as JSON."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from latentwire.files import write_whole

out = Console()


def check_folder(path: Path | None, option: str = "--json") -> None:
    """Raises ValueError where an option's file can't be written, before anything is computed."""
    if path is not None and not path.absolute().parent.is_dir():
        raise ValueError(f"{option} {path}: there is no folder {path.absolute().parent}")
    if path is not None and path.is_dir():
        raise ValueError(f"{option} {path} is a folder; expected a file")


def write_json(path: Path | None, result: dict[str, Any]) -> None:
    """Write a result where --json says."""
    if path is not None:
        write_whole(path, json.dumps(result, indent=1))
