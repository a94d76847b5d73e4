"""Builds the page of a sweep: verdict, plots for each reader, and the table of all members."""

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
    about = Markup('<p class="note">Each member was scored on {}{}.</p>')
    readers: dict[str, list[Scored]] = {}
    for one in scored(results):
        readers.setdefault(one.reader, []).append(one)
    return [
        Markup("<h1>Sweep {}</h1>").format(run),
        about.format(limit, results["data"]),
        verdict_section("", verdict(results)),
        *(_of_reader(i, name, rows, results) for i, (name, rows) in enumerate(readers.items())),
        Markup("<h2>Members</h2>") + html_table(COLUMNS, sweep_rows(results)),
        _troubles(results["members"]),
    ]


def _of_reader(number: int, reader: str, rows: list[Scored], results: dict[str, Any]) -> Markup:
    return Markup("""<h2>Read by {}</h2>
{}
{}
{}
<p class="note">Means over contexts, on logarithmic axes. Vertical bars: 95% interval of the wire's
F1. Where several wires cost the same, only the one with the highest F1 is named. Text truncated to
equal tokens is drawn at its share of the text's bytes, text truncated to equal bytes at its share
of the tokens. Text that fits whole into the bytes of a message is not drawn again.</p>""").format(
        reader,
        _crossed(results, rows),
        cost_plot(rows, "tokens", f"tokens{number}"),
        cost_plot(rows, "bytes", f"bytes{number}"),
    )


def _crossed(results: dict[str, Any], rows: list[Scored]) -> Markup:
    head, *body = matrix(results, rows) or [[]]
    if not body:
        return Markup()
    rows = [one for one in rows if results["factors"].get(one.member)]
    return Markup("""{}
<p class="note">F1, %, with its 95% interval, and NLL in nats per token of the answer.</p>
{}
<p class="note">Two numbers without brackets: the lowest and the highest score of this condition in
the evaluations of all members.</p>
""").format(html_table(head, body), html_table(REFERENCES, reference_rows(rows)))


def _troubles(members: dict[str, Any]) -> Markup:
    lines = [(name, "failed", m["error"]) for name, m in members.items() if m.get("error")]
    for name, member in members.items():
        lines += [(name, f"alarm {a}", text) for a, text in (member.get("alarms") or {}).items()]
    items = joined(Markup("<li>{}</li>").format(": ".join(line)) for line in lines)
    return Markup("<h2>Failures and alarms</h2><ul>{}</ul>").format(items) if items else Markup()
