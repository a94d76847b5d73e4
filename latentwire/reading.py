"""Reads files and JSON that a stranger may have written, in bounded time and memory.

record = parse_json(read_regular(Path("config.json"), CONFIG_BYTES))
"""

from __future__ import annotations

import errno
import json
import os
import reprlib
import stat
from collections import Counter
from pathlib import Path
from typing import Any

CONFIG_BYTES = 1 << 20
"""Largest config.json of a wire or a lens."""

LARGEST = 2**31 - 1
"""Largest whole number that a config may hold."""


LINE = 1000
"""Most characters of an error's line."""


class InputError(ValueError):
    """Input from outside cannot be used. Told in one line that a terminal can show, whatever
    names and texts of a file stand in it."""

    def __init__(self, text: str):
        line, half = escaped(text), LINE // 2 - 4
        super().__init__(line if len(line) <= LINE else f"{line[:half]} [...] {line[-half:]}")


def escaped(text: str, kept: str = "") -> str:
    """A text in which the characters that a terminal would obey are escaped, but for those kept."""
    return "".join(c if c.isprintable() or c in kept else ascii(c)[1:-1] for c in text)


def read_regular(path: Path, most: int | None = None) -> bytes:
    """The bytes of a regular file. Raises OSError where there is none, where it is a folder, a
    device or a pipe, which may never end, or where it has more than `most` bytes."""
    # Opening a pipe that nobody writes into would wait for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if most is not None and status.st_size > most:
            why = f"{status.st_size} bytes; expected at most {most}"
            raise OSError(errno.EFBIG, why, str(path))
        with open(descriptor, "rb", closefd=False) as file:
            try:
                return file.read(status.st_size)
            except (MemoryError, OverflowError):
                why = f"{status.st_size} bytes; this machine has no memory for them"
                raise OSError(errno.ENOMEM, why, str(path)) from None
    finally:
        os.close(descriptor)


def saved_config(folder: Path) -> Any:
    """The value of a saved folder's config.json. Raises ValueError with the reason alone."""
    try:
        return parse_json(read_regular(folder / "config.json", CONFIG_BYTES))
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None


def parse_json(text: str | bytes) -> Any:
    """The value of JSON in UTF-8. Raises ValueError, of one line, for text that is none, that is
    nested too deeply, that names a field of an object twice, or that has a number of thousands of
    digits or half of a surrogate pair, which no file can be written with."""
    try:
        text = text.decode() if isinstance(text, bytes) else text
        value = json.loads(text, object_pairs_hook=_fields)
        if "\\ud" in text.lower():
            check_unicode(json.dumps(value, ensure_ascii=False))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except json.JSONDecodeError as error:
        place = "" if error.lineno == 1 else f", line {error.lineno}"
        raise ValueError(error.msg + place) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    return value


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object's fields. Python would keep the last of those of one name."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = next(name for name, count in Counter(k for k, _ in pairs).items() if count > 1)
        raise ValueError(f"field {shortened(twice)} stands twice in an object")
    return fields


def check_unicode(text: str) -> None:
    """Raises ValueError for half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text has {text[error.start]!a} at character {error.start}, half of a surrogate "
            "pair; expected Unicode text"
        ) from None


def check_name(name: str) -> str:
    """A file's name, if it names a file of the folder that it is read from. Raises ValueError for
    a path that leaves it."""
    if name in ("", ".", "..") or set(name) & set("/\\\0"):
        raise ValueError(f"{name[:80]!r} is not a plain file name")
    return name


_BOUNDED = reprlib.Repr()
_BOUNDED.maxstring, _BOUNDED.maxother, _BOUNDED.maxlevel = 80, 80, 2
_BOUNDED.maxlist = _BOUNDED.maxtuple = _BOUNDED.maxdict = 4


def shortened(value: Any) -> str:
    """A value as a message of one line shows it."""
    return _BOUNDED.repr(value)
