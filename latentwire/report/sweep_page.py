"""What the page of a sweep holds: verdict, plots for each reader, and the table of all members."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from latentwire.report.shell import html_table, joined, verdict_section
from latentwire.report.sweep import (
    COLUMNS,
    REFERENCES,
    Scored,
    matrix,
    reference_rows,
    scored,
    sweep_rows,
    verdict,
)
from latentwire.report.sweep_plots import cost_plot


def sweep_sections(run: str, found: dict[str, Any]) -> list[Markup]:
    """Sections of the page of a sweep of this name; found: the contents of its files by name."""
    results = found["results.json"]
    limit = f"the first {results['limit']} questions of " if results.get("limit") else ""
    about = Markup('<p class="note">A sweep, each member scored on {}{}</p>')
    readers: dict[str, list[tuple[int, Scored]]] = {}
    for number, one in enumerate(scored(results), 1):
        readers.setdefault(one.reader, []).append((number, one))
    return [
        Markup("<h1>{}</h1>").format(run),
        about.format(limit, results["data"]),
        verdict_section("", verdict(results)),
        *(_of_reader(reader, rows, results) for reader, rows in readers.items()),
        Markup("<h2>Members</h2>") + html_table(COLUMNS, sweep_rows(results)),
        _troubles(results["members"]),
    ]


def _of_reader(reader: str, rows: list[tuple[int, Scored]], results: dict[str, Any]) -> Markup:
    return Markup("""<h2>{}</h2>
{}
{}
{}
<p class="note">Means over contexts, on logarithmic axes. Numbers: those of the table, of several
wires at one place the highest's. Bars: the wire's 95% interval. A text that was cut to equal tokens
is drawn at its share of the text's bytes, one that was cut to equal bytes at its share of the
tokens.</p>""").format(
        reader,
        _crossed(results, [one for _, one in rows]),
        cost_plot(rows, "tokens"),
        cost_plot(rows, "bytes"),
    )


def _crossed(results: dict[str, Any], rows: list[Scored]) -> Markup:
    head, *body = matrix(results, rows) or [[]]
    if not body:
        return Markup()
    rows = [one for one in rows if results["factors"].get(one.member)]
    return Markup("""{}
<p class="note">F1, %, with its 95% interval, and NLL in nats per token of the answer.</p>
{}
<p class="note">Two numbers without brackets: the lowest and the highest beside any member.</p>
""").format(html_table(head, body), html_table(REFERENCES, reference_rows(rows)))


def _troubles(members: dict[str, Any]) -> Markup:
    lines = [(name, "failed", m["error"]) for name, m in members.items() if m.get("error")]
    for name, member in members.items():
        lines += [(name, f"alarm {a}", text) for a, text in (member.get("alarms") or {}).items()]
    items = joined(Markup("<li>{}</li>").format(": ".join(line)) for line in lines)
    return Markup("<h2>Failures and alarms</h2><ul>{}</ul>").format(items) if items else Markup()
