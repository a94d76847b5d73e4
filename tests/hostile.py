"""Inputs as a stranger may send them, each from a random generator: what tests/test_fuzz.py tries a
few of, and reproduce/attack.sh a thousand times as many."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from functools import wraps
from random import Random
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

SCALE = int(os.environ.get("LATENTWIRE_FUZZ", "1"))
"""How many times as many inputs as the suite tries."""
TRIED: Counter[str] = Counter()
"""Inputs by what was tried with them, and by what came of it."""

NUMBERS = [-(2**63), -1, 0, 1, 3, 255, 256, 65_536, 3_000_000, 10**9, 2**31, 2**63, 10**30]
NUMBERS += [0.5, 1e300, 1e-300, float("nan"), float("inf")]
TEXTS = ["", "x", "../x", "/dev/zero", "/etc/passwd", "a/b", "..", "nul\0", "\n", "\x1b[31m", "é"]
TEXTS += ["<script>alert(1)</script>", "[/red]", "owner/model", "x" * 5000, "int8", "{activation}"]
SCALARS = [None, True, False, *NUMBERS, *TEXTS]
LONG = ["[" * 100_000, '{"a":' * 100_000, "1" * 5000, '"\\ud800"', '{"id": "\\udfff"}', "\ufeff{}"]
DTYPES = ["F16", "BF16", "F32", "F64", "I8", "BOOL", "C64", "U64", "F8_E4M3", "F4", "X"]


def attack(examples: int) -> Callable[[Callable], Callable]:
    """A test of so many inputs, the same on every run, each made by its argument `random`.

    In the suite hypothesis chooses what `random` gives, and shrinks an input that fails. In an
    attack it chooses seeds alone, and each makes as many inputs as the suite's are multiplied by:
    hypothesis takes longer over one input than all that is tested.
    """

    def repeated(test: Callable) -> Callable:
        @wraps(test)
        def run(*args: Any, random: Random, **options: Any) -> None:
            for _ in range(SCALE):
                test(*args, random=random, **options)

        return settings(
            max_examples=examples,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink] if SCALE == 1 else [Phase.generate],
        )(given(random=st.randoms(use_true_random=SCALE > 1))(run))

    return repeated


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


def text_of(random: Random, most: int, alphabet: str = "") -> str:
    """Up to so many characters of an alphabet, or of all that UTF-8 can hold."""
    return "".join(
        random.choice(alphabet) if alphabet else _character(random)
        for _ in range(random.randint(0, most))
    )


def _character(random: Random) -> str:
    last = random.choice([0x7F, 0x7F, 0xFF, 0xD7FF, 0x10FFFF])
    code = random.randint(0, last)
    return chr(0x2028 if 0xD800 <= code < 0xE000 else code)


def json_of(random: Random, depth: int = 4) -> Any:
    """A JSON value, most often one that a careless program would believe."""
    kind = random.choice(["scalar", "scalar", "scalar", "text", "list", "object"])
    if kind == "text":
        return text_of(random, 8)
    if kind == "scalar" or not depth:
        return random.choice(SCALARS)
    inside = [json_of(random, depth - 1) for _ in range(random.randint(0, 3))]
    return inside if kind == "list" else {text_of(random, 4): value for value in inside}


def line_of(random: Random, *records: Any) -> str:
    """A text where JSON is expected; most often one of the records, edited, if there are any."""
    kind = random.choice(["JSON", "text", "long", *["record"] * 3 * bool(records)])
    if kind == "record":
        return json.dumps(edited(random, random.choice(records)))
    if kind == "JSON":
        return json.dumps(json_of(random))
    return text_of(random, 20) if kind == "text" else random.choice(LONG)


def places(value: Any, at: tuple = ()) -> list[tuple]:
    """The paths of all that is inside a JSON value."""
    if isinstance(value, dict):
        inside = [(*at, key) for key in value]
    elif isinstance(value, list):
        inside = [(*at, i) for i in range(len(value))]
    else:
        inside = []
    return [p for place in inside for p in (place, *places(value[place[-1]], place))]


def edited(random: Random, record: Any) -> Any:
    """A JSON value with one to three places of it replaced, removed or added to."""
    record = deepcopy(record)
    for _ in range(random.randint(1, 3)):
        if not (every := places(record)):
            return json_of(random)
        *above, key = random.choice(every)
        holder = record
        for step in above:
            holder = holder[step]
        how = random.choice(["replace", "replace", "replace", "remove", "add"])
        if how == "remove":
            del holder[key]
        elif how == "add" and isinstance(holder, dict):
            holder[text_of(random, 8)] = json_of(random)
        else:
            holder[key] = json_of(random)
    return record


def damaged(random: Random, data: bytes) -> bytes:
    """Bytes of which some were changed, cut off or put in."""
    out = bytearray(data)
    for _ in range(random.randint(1, 4)):
        place = random.randint(0, max(0, len(out) - 1))
        how = random.choice(["flip", "flip", "cut", "insert"])
        if how == "flip" and out:
            out[place] = random.randint(0, 255)
        elif how == "cut":
            del out[place : place + random.randint(1, 8)]
        else:
            out[place:place] = random.randbytes(random.randint(1, 8))
    return bytes(out)


def tensors_file(random: Random, data: bytes) -> bytes:
    """A safetensors file whose header was edited, or whose bytes were damaged."""
    if random.choice([True, False]):
        return damaged(random, data)
    size = int.from_bytes(data[:8], "little")
    header = edited(random, json.loads(data[8 : 8 + size]))
    if isinstance(header, dict) and (entries := [v for v in header.values() if _is_entry(v)]):
        entry = random.choice(entries)
        entry["dtype"] = random.choice([entry.get("dtype"), *DTYPES])
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def _is_entry(value: Any) -> bool:
    return isinstance(value, dict) and "shape" in value
