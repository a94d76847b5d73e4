"""Reads the files of a run folder, and says in one line what is wrong with one.

What a file must hold is written as a shape: a type (float: any finite number; whole ones are of 64
bits), a tuple of types, [shape] for a list, or {key: shape} for an object. A key "name?" may be
absent or null, and the key "*" stands for every other key.

    rows = read_records(run / "metrics.jsonl", {"stage": str, "step": int, "loss": float})
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from latentwire.reading import InputError, parse_json, read_regular, shortened

WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
}


class ReportError(InputError):
    """A run folder does not hold what a report needs."""


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is no file."""
    if not path.exists():
        return None
    return expect(_parsed(_text(path), str(path)), {}, str(path))


def read_records(path: Path, shape: dict[str, Any]) -> list[dict[str, Any]]:
    """The JSON objects in a file, one a line, each of one shape; none where there is no file."""
    if not path.exists():
        return []
    # Not splitlines(), which also splits at characters that may stand inside a JSON string.
    # What follows the last line end is a line that a running training is just writing.
    *lines, _ = _text(path).split("\n")
    found = []
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        found.append(expect(_parsed(line, where), shape, where))
    return found


def expect(value: Any, shape: Any, where: str, at: str = "") -> Any:
    """The value, if it has this shape. Raises ReportError with where it stands, what was expected
    and what was got."""
    if isinstance(shape, dict):
        _typed(value, (dict,), where, at)
        named = {key.removesuffix("?"): key for key in shape}
        for key in value if "*" in shape else ():
            named.setdefault(key, "*")
        for key, as_written in named.items():
            if key == "*" or (as_written.endswith("?") and value.get(key) is None):
                continue
            plain = key if key.isprintable() and len(key) < 80 else shortened(key)
            place = f"{at}.{plain}" if at else plain
            if key not in value:
                raise ReportError(
                    f"{where}: expected {_said(shape[as_written])} as {place}, got nothing"
                )
            expect(value[key], shape[as_written], where, place)
    elif isinstance(shape, list):
        _typed(value, (list,), where, at)
        for i, inner in enumerate(value):
            expect(inner, shape[0], where, f"{at}[{i}]")
    else:
        _typed(value, shape if isinstance(shape, tuple) else (shape,), where, at)
    return value


def _typed(value: Any, types: tuple[type, ...], where: str, at: str) -> None:
    if not any(_is(value, t) for t in types):
        place = f" as {at}" if at else ""
        raise ReportError(f"{where}: expected {_said(types)}{place}, got {_short(value)}")


def _is(value: Any, kind: type) -> bool:
    if kind in (int, float) and isinstance(value, int):  # numpy, and so a plot, takes 64 bits
        return not isinstance(value, bool) and abs(value) < 2**63
    if kind is float:
        return isinstance(value, float) and abs(value) < 1e300  # which is false for NaN
    return isinstance(value, kind)


def _said(shape: Any) -> str:
    if isinstance(shape, tuple):
        return " or ".join(WORDS[t] for t in shape)
    return WORDS[type(shape) if isinstance(shape, dict | list) else shape]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else text[:37] + "..."


def _text(path: Path) -> str:
    try:
        return read_regular(path).decode()
    except OSError as error:
        raise ReportError(f"{path}: expected a file that can be read, got: {error}") from error
    except UnicodeDecodeError as error:
        raise ReportError(f"{path}: expected UTF-8, got something else: {error}") from error


def _parsed(text: str, where: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise ReportError(f"{where}: expected JSON: {error}") from error
