"""What a sweep's results say: the verdict in words, and the rows of its table.

print(*verdict(results), sep="\\n")
rich.print(sweep_table(results))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from latentwire.report.tables import (
    NAMES,
    interval,
    name,
    percent,
    reads_latents,
    terminal_table,
)
from latentwire.report.tables import RESULTS as ONE

RESULTS = {
    "data": str,
    "factors?": {"*": {"*": str}},
    "members": {
        "*": {
            "error?": str,
            "alarms?": {"*": str},
            "evaluations?": {"*": {**ONE, "readers?": {"*": ONE}}},
        }
    },
}
"""What results.json must hold, as `folder.expect` takes it."""

COLUMNS = ("member", "F1, %", "full text, %", "latents", "bytes", "reads its latents")
REFERENCES = ("the same reader with", "F1, %", "NLL")


@dataclass(frozen=True)
class Scored:
    """One member as one reader reads its messages in codes of so many bits."""

    label: str
    member: str
    reader: str
    results: dict[str, Any]

    @property
    def row(self) -> dict[str, float]:
        """The scores of its wire."""
        return self.results["rows"]["wire"]


def scored(results: dict[str, Any]) -> list[Scored]:
    """All that was scored, in the order of the grid. Labels name bits and reader where they differ
    within the sweep."""
    found = []
    for member, record in results["members"].items():
        for bits, whole in (record.get("evaluations") or {}).items():
            for reader, rows in (whole.get("readers") or {whole.get("reader", ""): {}}).items():
                found.append((member, bits, reader, {**whole, **rows}))
    several = [len({f[i] for f in found}) > 1 for i in range(3)]
    made = []
    for member, bits, reader, one in found:
        if "wire" in (one.get("rows") or {}):
            parts = [member] + [f"{bits} bit"] * several[1] + [reader] * several[2]
            made.append(Scored(", ".join(parts), member, reader, one))
    return made


def verdict(results: dict[str, Any]) -> list[str]:
    """The results in words: who is done, which is the best, and which beat what they must beat."""
    members, rows = results["members"], scored(results)
    failed = [n for n, m in members.items() if m.get("error")]
    left = [n for n, m in members.items() if not m]
    said = [f"{len(members) - len(failed) - len(left)} of {len(members)} members are done."]
    said += [f"Failed, and tried again by the same command: {', '.join(failed)}."] * bool(failed)
    said += [f"Not run yet: {', '.join(left)}."] * bool(left)
    if not rows:
        return said
    best = max(rows, key=lambda s: s.row["f1"])
    said.append(
        f"The highest F1 is that of {best.label}, {interval(best.row, 'f1', '%')}. It was chosen "
        "among all on the questions that it is scored on, so expect somewhat less on others."
    )
    controls = "the intervals of no text, zero latents and another example's latents"
    said.append(f"Above {controls}: {_which(rows, reads_latents)}.")
    for baseline, what in (
        ("truncated_tokens", "truncated to as many tokens"),
        ("pruned_tokens", "pruned to as many tokens"),
        ("truncated_bytes", "truncated to as many bytes"),
        ("truncated_zstd", "truncated to as many bytes after zstd"),
    ):
        if any(baseline in s.results["rows"] for s in rows):
            which = _which(rows, lambda one, baseline=baseline: _above(one, baseline))
            said.append(f"Above the text {what}: {which}.")
    return said


def _which(rows: Sequence[Scored], beats: Callable[[dict[str, Any]], bool | None]) -> str:
    above = [s.label for s in rows if beats(s.results)]
    return "all" if len(above) == len(rows) else ", ".join(above) or "none"


def _above(one: dict[str, Any], baseline: str) -> bool:
    rows = one["rows"]
    return baseline in rows and rows["wire"]["f1_low"] > rows[baseline]["f1_high"]


def sweep_rows(results: dict[str, Any]) -> list[list[str]]:
    """Cells under COLUMNS: all that was scored, numbered as in the plots, then the members that
    were not."""
    rows = []
    for number, one in enumerate(scored(results), 1):
        got = one.results
        text = got["rows"].get("text")
        reads = {True: "yes", False: "no", None: "unknown"}[reads_latents(got)]
        sizes = [
            "not measured" if got.get(key) is None else format(got[key], ",.0f")
            for key in ("latents_out", "message_bytes")
        ]
        whole = "not measured" if text is None else f"{100 * text['f1']:.1f}"
        rows.append([f"{number}. {one.label}", interval(one.row, "f1"), whole, *sizes, reads])
    for member, record in results["members"].items():
        if not record.get("evaluations"):
            rows.append([member, _state(record), "", "", "", ""])
    return rows


def matrix(results: dict[str, Any], rows: Sequence[Scored]) -> list[list[str]]:
    """What one reader scored, crossed by the two factors that members name: the head, then a row
    for each value of the first factor, a column for each of the second. Nothing where members name
    no factors, or differ in more than these."""
    factors = {n: f for n, f in (results.get("factors") or {}).items() if len(f) == 2}
    members = {tuple(f.values()): n for n, f in factors.items()}
    if len(members) < max(2, len(factors)):
        return []
    firsts, seconds = (list(dict.fromkeys(values)) for values in zip(*members, strict=True))
    cells = {m: _state(record) for m, record in results["members"].items()}
    for s in rows:
        cells[s.member] = f"{interval(s.row, 'f1')}\nNLL {s.row['nll']:.2f}".replace(" (", "\n(")
    named = " / ".join(next(iter(factors.values())))
    body = [[a, *(cells.get(members.get((a, b), ""), "") for b in seconds)] for a in firsts]
    return [[named, *(b.replace(" + ", " +\n") for b in seconds)], *body]


def reference_rows(rows: Sequence[Scored]) -> list[list[str]]:
    """Cells under REFERENCES: what one reader scores under the other conditions. Where that is not
    the same for all members, the lowest and the highest."""
    made = []
    for key in NAMES:
        found = [r for s in rows if key != "wire" and (r := s.results["rows"].get(key))]
        if not found:
            continue
        low, high = ([f(r[k] for r in found) for k in ("f1", "nll")] for f in (min, max))
        same = low == high
        f1 = interval(found[0], "f1") if same else f"{percent(low[0])} to {percent(high[0])}"
        nll = f"{low[1]:.2f}" if same else f"{low[1]:.2f} to {high[1]:.2f}"
        made.append([name(key), f1, nll])
    return made


def _state(record: dict[str, Any]) -> str:
    """Of a member that was not scored."""
    return "failed" if record.get("error") else "not run yet"


def sweep_table(results: dict[str, Any]) -> Table:
    """The rows for a terminal of 80 columns."""
    table = terminal_table(
        ("member", "F1, %", "text", "latents", "bytes", "reads"),
        "Brackets: 95% interval. text: F1 of the full text\n"
        "reads: above no text, zero latents, mismatched latents",
    )
    for row in sweep_rows(results):
        table.add_row(*row, style=None if row[-1] else "dim")
    return table
