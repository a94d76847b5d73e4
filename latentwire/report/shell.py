"""The HTML that every report shares: the page around it, its style sheet, tables, and the choice of
examples.

HTML is Markup, whose `format` and `join` escape whatever is not Markup itself. So text from outside
is text wherever it is put, and only a template that is written here is HTML.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from markupsafe import Markup

Id = TypeVar("Id", str, tuple[str, ...])

CSS = """
:root { color-scheme: light; --bg: #fff; --ink: #1b1f24; --muted: #57606a; --line: #d5dae0;
  --accent: #0b57d0; --control: #8a9099; --good: #116329; --bad: #a40e26 }
@media screen and (prefers-color-scheme: dark) { :root { color-scheme: dark; --bg: #14171a;
  --ink: #e6e8eb; --muted: #a3abb4; --line: #363c44; --accent: #86b4ff;
  --control: #8b929b; --good: #6fd08c; --bad: #ff8f9c } }
* { box-sizing: border-box }
body { max-width: 960px; margin: 0 auto; padding: 1.5rem 1rem 4rem; background: var(--bg);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem }
h3 { font-size: 1rem; margin: 0 0 .4rem } h3.long { font-weight: 400 }
h4 { font-size: .875rem; margin: .8rem 0 .2rem; color: var(--muted) }
.note { color: var(--muted); font-size: .875rem; margin: .4rem 0 }
.verdict { border-left: 4px solid var(--muted); padding: .1rem 0 .1rem 1rem; margin: 1.5rem 0 }
.verdict.good { border-color: var(--good) } .verdict.bad { border-color: var(--bad) }
.verdict p { margin: .5rem 0 } .verdict p:first-child { font-weight: 600; font-size: 1.1rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: .9rem; white-space: nowrap;
  font-variant-numeric: tabular-nums }
th, td { padding: .35rem 0 .35rem .8rem; border-bottom: 1px solid var(--line); text-align: right }
th { font-weight: 600; color: var(--muted) }
th:first-child, td:first-child { text-align: left; padding-left: 0 }
td:first-child { white-space: normal; min-width: 8.5rem }
tr.main td { font-weight: 600; color: var(--accent) } tr.control td { color: var(--muted) }
svg { display: block; width: 100%; max-width: 580px; height: auto; margin-top: 1rem;
  overflow: visible } /* the reader's font may be wider than the one that plots are laid out in */
svg text { font-family: system-ui, sans-serif !important }
article { border-top: 1px solid var(--line); padding: .9rem 0; break-inside: avoid }
dl { display: grid; grid-template-columns: minmax(6.5rem, 11rem) 1fr; gap: .15rem .75rem; margin: 0;
  font-size: .9rem }
dt { color: var(--muted) } dd { margin: 0; min-width: 0; overflow-wrap: anywhere }
.right { color: var(--good); font-weight: 600 } .score { color: var(--muted) }
.right, .score { white-space: nowrap }
details { font-size: .875rem; margin-top: .4rem } summary { color: var(--muted); cursor: pointer }
pre { overflow-x: auto; font-size: .8rem }
.whole { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0 .8rem }
@media print { body { max-width: none; padding: 0; font-size: 11pt } h2 { break-after: avoid } }
"""


PAGE = Markup("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
{body}
</body>
</html>
""")


def whole_page(title: str, body: Sequence[str], css: str = "") -> Markup:
    """A page that needs nothing else. css: of this page, behind that of all."""
    return PAGE.format(title=title, css=Markup(CSS + css), body=joined(body))


def joined(parts: Iterable[str]) -> Markup:
    """Parts of a page one after another."""
    return Markup("").join(parts)


def verdict_section(tone: str, items: Sequence[str]) -> Markup:
    """The verdict, one paragraph an item. tone: good, bad, or empty for neither."""
    paragraphs = joined(Markup("<p>{}</p>").format(item) for item in items)
    return Markup('<section class="verdict {}">{}</section>').format(tone, paragraphs)


def html_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], kinds: Sequence[str] | None = None
) -> Markup:
    """A table of text cells, of a line or more. kinds: for each row main, control or nothing."""
    top = joined(Markup('<th scope="col">{}</th>').format(_lines(cell)) for cell in head)
    lines = joined(
        Markup('<tr class="{}">{}</tr>').format(
            kind, joined(Markup("<td>{}</td>").format(_lines(cell)) for cell in row)
        )
        for kind, row in zip(kinds or [""] * len(rows), rows, strict=True)
    )
    # A wide table scrolls by itself; tabindex lets a keyboard do it.
    return Markup("""<div class="scroll" tabindex="0"><table><thead><tr>{}</tr></thead>
<tbody>{}</tbody></table></div>""").format(top, lines)


def _lines(cell: str) -> Markup:
    return Markup("<br>").join(cell.split("\n"))


def config_section(config: dict[str, Any]) -> Markup:
    """The run's config.json, folded away."""
    text = json.dumps(config, indent=2, ensure_ascii=False)
    return Markup("""<h2>Configuration</h2>
<details><summary>config.json</summary><pre>{}</pre></details>""").format(text)


def drawn(ids: Iterable[Id], count: int) -> list[Id]:
    """Draws so many of the ids by a fixed seed, so that nobody can choose them by their look."""
    shuffled = sorted(ids)
    random.Random(0).shuffle(shuffled)
    return shuffled[:count]
