"""Says in words what a sweep's results show, and makes the rows of its tables.

print(*verdict(results), sep="\\n")
rich.print(sweep_table(results))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from latentwire.report.comparison import FEWEST, difference, sign, unjudged
from latentwire.report.tables import NAMES, interval, name, percent, shown, terminal_table
from latentwire.report.tables import RESULTS as ONE
from latentwire.report.verdict import reads_latents

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
"""The shape of results.json, as `folder.expect` takes it."""

COLUMNS = ("member", "F1, %", "full text, %", "latents", "bytes", "reads its latents")
REFERENCES = ("the same reader with", "F1, %", "NLL")


@dataclass(frozen=True)
class Scored:
    """One member as one reader reads its messages in codes of so many bits."""

    label: str
    """Its member, and its bits and reader where they differ within the sweep."""
    short: str
    """The same without the reader."""
    member: str
    reader: str
    results: dict[str, Any]

    @property
    def row(self) -> dict[str, float]:
        """The scores of its wire."""
        return self.results["rows"]["wire"]


def scored(results: dict[str, Any]) -> list[Scored]:
    """All that was scored, in the order of the grid."""
    found = []
    for member, record in results["members"].items():
        for bits, whole in (record.get("evaluations") or {}).items():
            for reader, rows in (whole.get("readers") or {whole.get("reader", ""): {}}).items():
                found.append((member, bits, reader, {**whole, **rows}))
    several = [len({f[i] for f in found}) > 1 for i in range(3)]
    scores = []
    for member, bits, reader, one in found:
        if "wire" in (one.get("rows") or {}):
            short = ", ".join([member] + [f"{bits} bit"] * several[1])
            label = ", ".join([short] + [reader] * several[2])
            scores.append(Scored(label, short, member, reader, one))
    return scores


def verdict(results: dict[str, Any]) -> list[str]:
    """The results in words: the members that are done, the best, and those that beat what they must
    beat."""
    members, rows = results["members"], scored(results)
    failed = [n for n, m in members.items() if m.get("error")]
    left = [n for n, m in members.items() if not m]
    lines = [f"{len(members) - len(failed) - len(left)} of {len(members)} members are done."]
    lines += [f"Failed; the same command tries again: {', '.join(failed)}."] * bool(failed)
    lines += [f"Not run yet: {', '.join(left)}."] * bool(left)
    if not rows:
        return lines
    best = max(rows, key=lambda s: s.row["f1"])
    lines.append(
        f"The highest F1 is that of {best.label}, {interval(best.row, 'f1', '%')}. It was chosen "
        "among all on the questions that it is scored on, so expect somewhat less on others."
    )
    if all(unjudged(s.results) for s in rows):
        needed = f"paired differences on at least {FEWEST} questions, and no member has them"
        return [*lines, f"A verdict needs {needed}."]
    controls = "no text, zero latents and another example's latents"
    lines.append(f"Above {controls}, by the paired difference: {_which(rows, reads_latents)}.")
    for baseline, what in (
        ("truncated_tokens", "truncated to as many tokens"),
        ("pruned_tokens", "pruned to as many tokens"),
        ("truncated_bytes", "truncated to as many bytes"),
        ("truncated_zstd", "truncated to as many bytes after zstd"),
    ):
        if any(baseline in shown(s.results) for s in rows):
            which = _which(rows, lambda one, baseline=baseline: _above(one, baseline))
            lines.append(f"Above the text {what}: {which}.")
    return lines


def _which(rows: Sequence[Scored], beats: Callable[[dict[str, Any]], bool | None]) -> str:
    above = [s.label for s in rows if beats(s.results)]
    return "all" if len(above) == len(rows) else ", ".join(above) or "none"


def _above(one: dict[str, Any], baseline: str) -> bool:
    gain = difference(one, baseline)
    return baseline in shown(one) and not unjudged(one) and gain is not None and sign(gain) > 0


def sweep_rows(results: dict[str, Any]) -> list[list[str]]:
    """Cells under COLUMNS: all that was scored, then the members that were not."""
    rows = []
    for one in scored(results):
        got = one.results
        text = got["rows"].get("text")
        reads = {True: "yes", False: "no", None: "unknown"}[reads_latents(got)]
        sizes = [
            "not measured" if got.get(key) is None else format(got[key], ",.0f")
            for key in ("latents_out", "message_bytes")
        ]
        whole = "not measured" if text is None else f"{100 * text['f1']:.1f}"
        rows.append([one.label, interval(one.row, "f1"), whole, *sizes, reads])
    for member, record in results["members"].items():
        if not record.get("evaluations"):
            rows.append([member, _state(record), "", "", "", ""])
    return rows


def matrix(results: dict[str, Any], rows: Sequence[Scored]) -> list[list[str]]:
    """Crosses the scores of one reader by the two factors that members name: the head, then a row
    for each value of the first factor, a column for each of the second. Empty where members name no
    factors, or differ in more than these."""
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
    """Cells under REFERENCES: the scores of one reader under the other conditions that are shown.
    Where members differ, the lowest and the highest."""
    cells = []
    for key in NAMES:
        found = [r for s in rows if key != "wire" and (r := shown(s.results).get(key))]
        if not found:
            continue
        low, high = ([f(r[k] for r in found) for k in ("f1", "nll")] for f in (min, max))
        same = low == high
        f1 = interval(found[0], "f1") if same else f"{percent(low[0])} to {percent(high[0])}"
        nll = f"{low[1]:.2f}" if same else f"{low[1]:.2f} to {high[1]:.2f}"
        cells.append([name(key), f1, nll])
    return cells


def _state(record: dict[str, Any]) -> str:
    """Says why a member has no scores."""
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
