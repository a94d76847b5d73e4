"""What the page of a sweep holds: verdict, plots for each reader, and the table of all members."""

from __future__ import annotations

from html import escape
from typing import Any

from latentwire.report.shell import html_table, verdict_section
from latentwire.report.sweep import COLUMNS, Scored, scored, sweep_rows, verdict
from latentwire.report.sweep_plots import cost_plot


def sweep_sections(run: str, found: dict[str, Any]) -> list[str]:
    """Sections of the page of a sweep of this name; found: the contents of its files by name."""
    results = found["results.json"]
    limit = f"the first {results['limit']} questions of " if results.get("limit") else ""
    readers: dict[str, list[tuple[int, Scored]]] = {}
    for number, one in enumerate(scored(results), 1):
        readers.setdefault(one.reader, []).append((number, one))
    return [
        f"<h1>{escape(run)}</h1>",
        f'<p class="note">A sweep, each member scored on {limit}{escape(results["data"])}</p>',
        verdict_section("", verdict(results)),
        *(_plots(reader, rows) for reader, rows in readers.items()),
        f"<h2>Members</h2>{html_table(COLUMNS, sweep_rows(results))}",
        _troubles(results["members"]),
    ]


def _plots(reader: str, rows: list[tuple[int, Scored]]) -> str:
    return f"""<h2>{escape(reader)}</h2>
{cost_plot(rows, "tokens")}
{cost_plot(rows, "bytes")}
<p class="note">Means over contexts, on logarithmic axes. Numbers: those of the table. Bars: the
wire's 95% interval. A text that was cut to equal tokens is drawn at its share of the text's bytes,
one that was cut to equal bytes at its share of the tokens.</p>"""


def _troubles(members: dict[str, Any]) -> str:
    lines = [(name, "failed", m["error"]) for name, m in members.items() if m.get("error")]
    for name, member in members.items():
        lines += [(name, f"alarm {a}", text) for a, text in (member.get("alarms") or {}).items()]
    items = "".join(f"<li>{escape(': '.join(line))}</li>" for line in lines)
    return f"<h2>Failures and alarms</h2><ul>{items}</ul>" if items else ""
