"""Inputs as a stranger may send them, drawn by hypothesis: what tests/test_fuzz.py tries a few of,
and reproduce/attack.sh a thousand times as many."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SCALE = int(os.environ.get("LATENTWIRE_FUZZ", "1"))
"""How many times as many inputs as the suite tries."""
TRIED: Counter[str] = Counter()
"""Inputs by what was tried with them, and by what came of it."""

NUMBERS = [-(2**63), -1, 0, 1, 3, 255, 256, 65_536, 3_000_000, 10**9, 2**31, 2**63, 10**30]
NUMBERS += [0.5, 1e300, 1e-300, float("nan"), float("inf")]
TEXTS = ["", "x", "../x", "/dev/zero", "/etc/passwd", "a/b", "..", "nul\0", "\n", "\x1b[31m", "é"]
TEXTS += ["<script>alert(1)</script>", "[/red]", "owner/model", "x" * 5000, "int8", "{activation}"]
SCALARS = st.one_of(st.sampled_from([None, True, False, *NUMBERS, *TEXTS]), st.text(max_size=8))
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


def attack(examples: int) -> Callable[[Callable], Callable]:
    """A test of so many inputs, the same on every run, a thousand times as many in an attack."""
    return settings(
        max_examples=examples * SCALE,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def refused(what: str, call: Callable[[], Any], *errors: type[Exception]) -> Any:
    """What a call gives; None where it refuses its input with one of these errors, in one line of
    at most 2,000 characters. Any other exception is the test's failure."""
    try:
        value = call()
    except errors as error:
        text = str(error)
        assert text and "\n" not in text.strip() and len(text) < 2000, repr(text[:300])
        TRIED[f"{what}: refused"] += 1
        return None
    TRIED[f"{what}: taken"] += 1
    return value


def places(value: Any, at: tuple = ()) -> list[tuple]:
    """The paths of all that is inside a JSON value."""
    if isinstance(value, dict):
        inside = [(*at, key) for key in value]
    elif isinstance(value, list):
        inside = [(*at, i) for i in range(len(value))]
    else:
        inside = []
    return [p for place in inside for p in (place, *places(_at(value, place[len(at) :]), place))]


def _at(value: Any, place: tuple) -> Any:
    for key in place:
        value = value[key]
    return value


@st.composite
def edited(draw: st.DrawFn, record: Any) -> Any:
    """A JSON value with one to three places of it replaced, removed or added to."""
    record = deepcopy(record)
    for _ in range(draw(st.integers(1, 3))):
        if not (every := places(record)):
            return draw(JSON)
        *above, key = draw(st.sampled_from(every))
        holder = _at(record, tuple(above))
        how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
        if how == "remove":
            del holder[key]
        elif how == "add" and isinstance(holder, dict):
            holder[draw(st.text(max_size=8))] = draw(JSON)
        else:
            holder[key] = draw(JSON)
    return record


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes of which some were changed, cut off or put in."""
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(out) - 1)))
        how = draw(st.sampled_from(["flip", "flip", "cut", "insert"]))
        if how == "flip" and out:
            out[place] = draw(st.integers(0, 255))
        elif how == "cut":
            del out[place : place + draw(st.integers(1, 8))]
        else:
            out[place:place] = draw(st.binary(min_size=1, max_size=8))
    return bytes(out)


@st.composite
def tensors_file(draw: st.DrawFn, data: bytes) -> bytes:
    """A safetensors file whose header was edited, or whose bytes were damaged."""
    if draw(st.booleans()):
        return draw(damaged(data))
    size = int.from_bytes(data[:8], "little")
    header = draw(edited(json.loads(data[8 : 8 + size])))
    if isinstance(header, dict) and (entries := [v for v in header.values() if _is_entry(v)]):
        entry = draw(st.sampled_from(entries))
        kinds = ["F16", "BF16", "F32", "F64", "I8", "BOOL", "C64", "U64", "F8_E4M3", "F4", "X"]
        entry["dtype"] = draw(st.sampled_from([entry.get("dtype"), *kinds]))
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def _is_entry(value: Any) -> bool:
    return isinstance(value, dict) and "shape" in value


LINES = st.one_of(
    JSON.map(json.dumps),
    st.text(max_size=20),
    st.sampled_from(
        ["[" * 100_000, '{"a":' * 100_000, "1" * 5000, '"\\ud800"', '{"id": "\\udfff"}', "\ufeff{}"]
    ),
)

__all__ = ["JSON", "LINES", "TRIED", "attack", "damaged", "edited", "given", "refused", "st"]
