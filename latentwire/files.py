"""Files that appear whole or not at all, digests of contents, and folders with one owner."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

LOCK = ".lock"
"""The file of a run folder that its owner has locked; it stays when nobody has."""


def digest(data: bytes | str) -> str:
    """The first 16 hexadecimal digits of the sha256."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()[:16]


def write_whole(path: Path, data: bytes | str) -> None:
    """Write beside `path`, then move into place: a kill or a full disk leaves what was there, and
    of several that write the same file at the same time the last one counts."""
    part = path.with_name(f"{path.name}.{uuid4().hex}.part")
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


def first_of(rows: Sequence[dict], key: Callable[[dict], Hashable]) -> dict[Any, dict]:
    """Keep the first row of each key, in order: processes that once shared a folder left more."""
    found: dict[Any, dict] = {}
    for row in rows:
        found.setdefault(key(row), row)
    return found


@contextmanager
def owned(folder: Path | None) -> Iterator[None]:
    """Inside, the run folder is this thread's alone; None is no folder, and anybody's. It is made
    where there is none, and is gone again where nothing was written to it.

    The operating system holds the lock, so that a killed owner leaves none behind; what else it
    left, files that were not yet moved into place, is removed. An owner may take its folder again.
    Raises ValueError where another process or thread has it, or where it cannot be written.
    """
    if folder is None:
        yield
        return
    from filelock import FileLock, Timeout

    new = [place for place in (folder, *folder.parents) if not place.exists()]
    lock = FileLock(folder.resolve() / LOCK, timeout=0, is_singleton=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{folder} is in use by another process; wait until that ends, or give another folder"
        ) from None
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written ({error.strerror}); give another run folder or make room"
        ) from None
    try:
        if lock.lock_counter == 1:
            for left in folder.glob("*.part"):
                left.unlink(missing_ok=True)
        yield
    finally:
        with suppress(OSError):
            if lock.lock_counter == 1 and new and set(folder.iterdir()) == {folder / LOCK}:
                (folder / LOCK).unlink()
        lock.release()
        with suppress(OSError):  # one that holds something
            for place in new:
                place.rmdir()
