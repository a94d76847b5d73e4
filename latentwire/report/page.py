"""The report of one run: a single HTML file that needs nothing else, and says in words what the
numbers show before it shows them.

It is made from the files of the run folder alone; what is missing there is named in the page.

    path = write_report(Path("runs/smollm2-4x"))
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from latentwire.files import write_whole
from latentwire.report.plots import f1_plot, training_plot
from latentwire.report.tables import (
    COLUMNS,
    CONTROLS,
    ReportError,
    conditions,
    name,
    reads_latents,
    result_rows,
    size_rows,
    verdict,
)

EXAMPLES = 20
"""Questions shown with their answers."""

SHOWN = ("wire", "text", "closed_book", "foreign_latents")
"""Conditions whose answers are shown."""

CSS = """
:root { color-scheme: light; --bg: #fff; --ink: #1b1f24; --muted: #57606a; --line: #d5dae0;
  --accent: #0b57d0; --soft: #e6effc; --control: #8a9099; --good: #116329; --bad: #a40e26 }
@media screen and (prefers-color-scheme: dark) { :root { color-scheme: dark; --bg: #14171a;
  --ink: #e6e8eb; --muted: #a3abb4; --line: #363c44; --accent: #86b4ff; --soft: #1d2b45;
  --control: #8b929b; --good: #6fd08c; --bad: #ff8f9c } }
* { box-sizing: border-box }
body { max-width: 900px; margin: 0 auto; padding: 1.5rem 1rem 4rem; background: var(--bg);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem }
h3 { font-size: 1rem; margin: 0 0 .4rem }
.note { color: var(--muted); font-size: .875rem; margin: .4rem 0 }
.verdict { border-left: 4px solid var(--muted); padding: .1rem 0 .1rem 1rem; margin: 1.5rem 0 }
.verdict.good { border-color: var(--good) } .verdict.bad { border-color: var(--bad) }
.verdict p { margin: .5rem 0 } .verdict p:first-child { font-weight: 600; font-size: 1.1rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: .9rem; white-space: nowrap;
  font-variant-numeric: tabular-nums }
th, td { padding: .35rem 0 .35rem 1rem; border-bottom: 1px solid var(--line); text-align: right }
th { font-weight: 600; color: var(--muted) }
th:first-child, td:first-child { text-align: left; padding-left: 0 }
@media (max-width: 700px) { td:first-child { white-space: normal; min-width: 8.5rem } }
tr.wire td { font-weight: 600; color: var(--accent) } tr.control td { color: var(--muted) }
svg { display: block; width: 100%; max-width: 580px; height: auto; margin-top: 1rem }
svg text { font-family: system-ui, sans-serif !important }
article { border-top: 1px solid var(--line); padding: .9rem 0; break-inside: avoid }
dl { display: grid; grid-template-columns: minmax(6.5rem, 11rem) 1fr; gap: .15rem .75rem; margin: 0;
  font-size: .9rem }
dt { color: var(--muted) } dd { margin: 0; min-width: 0; overflow-wrap: anywhere }
.right { color: var(--good); font-weight: 600 } .score { color: var(--muted) }
.right, .score { white-space: nowrap }
details { font-size: .875rem; margin-top: .4rem } summary { color: var(--muted); cursor: pointer }
pre { overflow-x: auto; font-size: .8rem }
@media print { body { max-width: none; padding: 0; font-size: 11pt } h2 { break-after: avoid } }
"""


def write_report(run: Path) -> Path:
    """Write RUN/report.html and return its path. Raises ReportError where the folder holds neither
    results nor a training log, or where a file in it is damaged."""
    results, metrics = _json(run / "results.json"), _lines(run / "metrics.jsonl")
    if results is None and not metrics:
        raise ReportError(f"{run}: expected results.json or metrics.jsonl, found neither")
    answers, config = _lines(run / "predictions.jsonl"), _json(run / "config.json")
    body = [
        _title(run, results),
        _results(results) if results is not None else "",
        _training(metrics) if metrics else "",
        _examples(answers) if answers else "",
        _config(config) if config is not None else "",
    ]
    absent = [
        file
        for file, found in (
            ("results.json", results),
            ("metrics.jsonl", metrics),
            ("predictions.jsonl", answers),
            ("config.json", config),
        )
        if not found
    ]
    if absent:
        body.append(f'<p class="note">Not in this run folder, or empty: {", ".join(absent)}.</p>')
    path = run / "report.html"
    write_whole(path, _page(run, body))
    return path


def _page(run: Path, body: Sequence[str]) -> str:
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(run.resolve().name)}: latentwire report</title>
<style>{CSS}</style>
</head>
<body>
{"".join(body)}
</body>
</html>
"""


def _title(run: Path, results: dict[str, Any] | None) -> str:
    if results is None:
        about = "This run has a training log but no results: it has not been evaluated."
        return f'<h1>{escape(run.resolve().name)}</h1><p class="note">{about}</p>'
    got = {k: escape(str(results.get(k, "unknown"))) for k in ("wire", "reader", "data", "n")}
    rest = ", ".join(
        f"{k} {escape(str(results[k]))}" for k in ("passages", "ratio", "seed") if k in results
    )
    return f"""<h1>Wire {got["wire"]}, read by {got["reader"]}</h1>
<p class="note">{got["n"]} questions of {got["data"]}; {rest}</p>"""


def _results(results: dict[str, Any]) -> str:
    tone = {True: "good", False: "bad", None: ""}[reads_latents(results)]
    said = "".join(f"<p>{escape(s)}</p>" for s in verdict(results))
    rows = conditions(results)
    kinds = ["wire" if k == "wire" else "control" if k in CONTROLS else "" for k in rows]
    sizes = ("a context", "full text", "wire", "wire / full text")
    return f"""<section class="verdict {tone}">{said}</section>
<h2>Scores</h2>
{_table(COLUMNS, result_rows(results), kinds)}
<p class="note">Brackets: 95% interval. EM: exact match. NLL: nats per token of the gold
answer, its end counted; lower is better. First token, in top 5: how often the gold answer's first
token is the reader's most likely one, or among its five.</p>
{f1_plot(results) if rows else ""}
<h2>What a context costs</h2>
{_table(sizes, size_rows(results), [""] * len(size_rows(results)))}
<p class="note">Means over contexts.</p>"""


def _training(metrics: Sequence[dict[str, Any]]) -> str:
    return f"""<h2>Training</h2>{training_plot(metrics)}
<p class="note">Thin: every step. Thick: moving average over a twentieth of the steps, and the value
that it ends at.</p>"""


def _config(config: dict[str, Any]) -> str:
    text = escape(json.dumps(config, indent=2, ensure_ascii=False))
    return f"""<h2>Configuration</h2>
<details><summary>config.json</summary><pre>{text}</pre></details>"""


def _examples(answers: Sequence[dict[str, Any]]) -> str:
    """Chosen by a seed, so that nobody can choose them by their look."""
    questions: dict[str, dict[str, dict[str, Any]]] = {}
    for a in answers:
        questions.setdefault(str(a["id"]), {})[a["condition"]] = a
    ids = sorted(questions)
    random.Random(0).shuffle(ids)
    ids = ids[:EXAMPLES]
    return f"""<h2>Example answers</h2>
<p class="note">{len(ids)} of {len(questions)} questions: the first of their ids, sorted and then
shuffled with seed 0.</p>
{"".join(_example(questions[i]) for i in ids)}"""


def _example(answers: dict[str, dict[str, Any]]) -> str:
    asked = next(iter(answers.values()))
    gold = " | ".join(dict.fromkeys(asked["gold"]))
    pairs = [("gold", escape(gold))] + [(name(c), _answer(answers.get(c))) for c in SHOWN]
    listed = "".join(f"<dt>{escape(k)}</dt><dd>{v}</dd>" for k, v in pairs)
    return f"""<article><h3>{escape(asked["question"])}</h3><dl>{listed}</dl>
<details><summary>context</summary><p>{escape(asked["context"])}</p></details></article>"""


def _answer(answer: dict[str, Any] | None) -> str:
    if answer is None:
        return '<span class="score">not evaluated</span>'
    text = escape(answer["answer"]) or '<span class="score">(empty)</span>'
    if answer["em"] == 1:
        return f'{text} <span class="right">&#10003; right</span>'
    return f'{text} <span class="score">F1 {answer["f1"]:.0%}</span>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kinds: Sequence[str]) -> str:
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    lines = [
        f'<tr class="{kind}">' + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for kind, row in zip(kinds, rows, strict=True)
    ]
    # A wide table scrolls by itself; tabindex lets a keyboard do it.
    return f"""<div class="scroll" tabindex="0"><table><thead><tr>{top}</tr></thead>
<tbody>{"".join(lines)}</tbody></table></div>"""


def _json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReportError(f"{path}: expected JSON: {error}") from error


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    # Not splitlines(), which also splits at characters that may stand inside a JSON string.
    # What follows the last line end is a line that a running training is just writing.
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            raise ReportError(f"{path}, line {number}: expected JSON: {error}") from error
    return found
