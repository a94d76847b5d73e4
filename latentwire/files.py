"""Files that appear whole or not at all, and what names their contents."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def digest(data: bytes | str) -> str:
    """The first 16 hexadecimal digits of the sha256."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()[:16]


def write_whole(path: Path, data: bytes | str, writer: str = "") -> None:
    """Write beside `path`, then move into place: a kill or a full disk leaves what was there.

    writer: a name of its own for each of several that write the same file at the same time.
    """
    part = path.with_name(f"{path.name}{writer}.part")
    try:
        part.write_bytes(data.encode() if isinstance(data, str) else data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_rows(path: Path) -> list[Any]:
    """The JSON of each line of a file that is appended to, but for one that was cut off, maybe
    inside a character; none where there is no file."""
    whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    return [json.loads(line) for line in whole.decode().split("\n") if line]
