"""Writes a text under a lens as one self-contained HTML page. Each token shows, under the pointer
or the keyboard's focus, the explanations of its activation.

    write_lens_page(Path("page.html"), {"model": "smollm2-135m", "layer": 15}, rows)

rows: one dict per token with "token", "kl" and "explanations", a list of {"text", "explained"},
best first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from latentwire.files import write_whole
from latentwire.report.shell import joined, whole_page

CSS = """
:root { --tint: 11, 87, 208 }
@media screen and (prefers-color-scheme: dark) { :root { --tint: 134, 180, 255 } }
#text { font-size: 1.15rem; line-height: 2; white-space: pre-wrap; overflow-wrap: anywhere;
  margin: 1.5rem 0 }
button { font: inherit; color: inherit; border: 0; border-radius: .2rem; padding: .1rem 0;
  margin: 0; cursor: pointer; white-space: pre-wrap;
  background: rgba(var(--tint), calc(var(--explained) * .45)) }
button.on { outline: 2px solid var(--accent); outline-offset: 1px }
#legend { display: flex; align-items: center; gap: .5rem }
#legend i { flex: 0 1 9rem; height: .9rem; border: 1px solid var(--line); border-radius: .2rem;
  background: linear-gradient(to right, transparent, rgba(var(--tint), .45)) }
#panel { border-top: 1px solid var(--line); padding-top: .75rem; min-height: 12rem }
#panel h2 { font-size: 1.05rem; margin: 0 0 .5rem; white-space: pre-wrap }
#panel p { margin: .25rem 0; white-space: pre-wrap; overflow-wrap: anywhere }
#panel span { color: var(--muted); font-size: .85rem; font-variant-numeric: tabular-nums }
"""

SCRIPT = """
const rows = JSON.parse(document.getElementById("rows").textContent);
const panel = document.getElementById("panel");
const buttons = [...document.querySelectorAll("#text button")];
let pinned = null;
function line(tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  return element;
}
function show(i) {
  const row = rows[i];
  buttons.forEach((b, j) => b.classList.toggle("on", i === j));
  panel.replaceChildren(
    line("h2", JSON.stringify(row.token)),
    line("span", "With the best explanation's reconstruction in place of the activation, the "
      + "next-token distribution changes by " + row.kl.toFixed(2) + " nats (KL)."));
  for (const explanation of row.explanations) {
    const p = line("p", explanation.text + "  ");
    p.append(line("span", "variance explained: " + explanation.explained.toFixed(2)));
    panel.append(p);
  }
}
buttons.forEach((button, i) => {
  button.addEventListener("mouseenter", () => pinned === null && show(i));
  button.addEventListener("focus", () => pinned === null && show(i));
  button.addEventListener("click", () => { pinned = pinned === i ? null : i; show(i); });
});
if (buttons.length) show(buttons.length - 1);
"""


TITLE = "Explained activations"
BODY = Markup("""<h1>{title}</h1>
<p class="note">{about}. Point at a token or move with Tab to see the explanations of its
activation; click a token to keep it.</p>
<p class="note" id="legend">variance explained: 0 or less <i></i> 1</p>
<p class="note">The shade of a token is the share of its activation's variance that the best
explanation reconstructs: 1 is all of it, and the mean activation explains 0.</p>
<div id="text">{before}{tokens}{after}</div>
<section id="panel" aria-live="polite"></section>
<script type="application/json" id="rows">{data}</script>
<script>{script}</script>""")


def write_lens_page(
    path: Path,
    facts: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    around: tuple[str, str] = ("", ""),
) -> None:
    """Write the page, whole or not at all. around: text before and after the explained tokens."""
    # "</" would end the script element, and "<!--" keep it open, whatever the JSON around it.
    data = json.dumps(list(rows), ensure_ascii=False).replace("<", "\\u003c")
    title = f"Explained activations of {facts['model']}" if "model" in facts else TITLE
    body = BODY.format(
        title=title,
        about=", ".join(f"{name} {value}" for name, value in facts.items()),
        before=around[0],
        tokens=joined(_token(row) for row in rows),
        after=around[1],
        data=Markup(data),
        script=Markup(SCRIPT),
    )
    write_whole(path, whole_page(title, [body], CSS))


def _token(row: Mapping[str, Any]) -> Markup:
    share = min(1.0, max(0.0, row["explanations"][0]["explained"]))
    button = Markup('<button type="button" style="--explained: {}">{}</button>')
    return button.format(f"{share:.2f}", row["token"])
