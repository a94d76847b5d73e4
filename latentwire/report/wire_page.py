"""What the page of a wire's run holds: verdict, scores, costs, training and example answers."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from latentwire.report.plots import f1_plot, training_plot
from latentwire.report.shell import drawn, html_table, verdict_section
from latentwire.report.tables import (
    COLUMNS,
    CONTROLS,
    conditions,
    joint_verdict,
    name,
    pace,
    reads_latents,
    result_rows,
    size_rows,
    verdict,
)

EXAMPLES = 20
"""Questions shown with their answers."""

SHOWN = ("wire", "text", "closed_book", "foreign_latents")
"""Conditions whose answers are shown."""

RECORDS = {
    "metrics.jsonl": {
        **{"stage": str, "step": int, "loss": float, "alarms?": {"*": str}},
        **{"tokens?": float, "seconds?": float, "waited?": float},
    },
    "predictions.jsonl": {
        "id": (str, int),
        "condition": str,
        "context": str,
        "question": str,
        "gold": [str],
        "answer": str,
        "em": float,
        "f1": float,
    },
}
"""The files with one record a line, and what a record must hold."""

KEYS = {
    "metrics.jsonl": ("stage", "step"),
    "predictions.jsonl": ("id", "context", "question", "condition"),
}
"""The fields of a record that no other in its file has."""


def wire_sections(run: str, found: dict[str, Any]) -> list[str]:
    """Sections of the page of a run of this name; found: the contents of its files by name."""
    results, metrics, answers = (
        found[file] for file in ("results.json", "metrics.jsonl", "predictions.jsonl")
    )
    return [
        _title(run, results),
        _results(results) if results is not None else "",
        _training(metrics) if metrics else "",
        _examples(answers) if answers else "",
    ]


def readers_sections(run: str, found: dict[str, Any]) -> list[str]:
    """Sections of the page of several readers of the same messages, whose runs lie beside it."""
    results = found["results.json"]
    parts = [f"<h1>{escape(run)}: readers of the same messages</h1>"]
    if results.get("joint"):
        parts.append(verdict_section("", [joint_verdict(results["joint"])]))
    for i, one in enumerate(results["readers"].values()):
        parts += [_title(run, one), _results(one)]
        parts.append(f'<p><a href="reader-{i}/report.html">Its run, with example answers</a></p>')
    return parts


def _title(run: str, results: dict[str, Any] | None) -> str:
    if results is None:
        about = "This run has a training log but no results: it has not been evaluated."
        return f'<h1>{escape(run)}</h1><p class="note">{about}</p>'
    got = {k: escape(str(results.get(k, "unknown"))) for k in ("wire", "reader", "data", "n")}
    rest = ", ".join(
        f"{k} {escape(str(results[k]))}"
        for k in ("passages", "ratio", "bits", "keep", "needles", "seed")
        if k in results
    )
    return f"""<h1>Wire {got["wire"]}, read by {got["reader"]}</h1>
<p class="note">{got["n"]} questions of {got["data"]}; {rest}</p>"""


def _results(results: dict[str, Any]) -> str:
    tone = {True: "good", False: "bad", None: ""}[reads_latents(results)]
    rows = conditions(results)
    kinds = ["main" if k == "wire" else "control" if k in CONTROLS else "" for k in rows]
    sizes = ("a context", "full text", "wire", "wire / full text")
    return f"""{verdict_section(tone, verdict(results))}
<h2>Scores</h2>
{html_table(COLUMNS, result_rows(results), kinds)}
<p class="note">Brackets: 95% interval. EM: exact match. NLL: nats per token of the gold
answer, its end counted; lower is better. First token, in top 5: how often the gold answer's first
token is the reader's most likely one, or among its five. Truncated to equal bytes: as much text as
fits the message's bytes, which is all of it where the message is the larger; after zstd -19: as
much as zstd packs into them. Pruned to equal tokens: the tokens that the reader itself finds the
most surprising (Selective Context, Li et al. 2023).</p>
{f1_plot(results) if rows else ""}
<h2>What a context costs</h2>
{html_table(sizes, size_rows(results))}
<p class="note">Means over contexts.</p>"""


def _training(metrics: Sequence[dict[str, Any]]) -> str:
    checks = {row["stage"]: row["alarms"] for row in metrics if row.get("alarms") is not None}
    alarms = [
        f"<li>{escape(f'{stage}: {name}: {text}')}</li>"
        for stage, standing in checks.items()
        for name, text in standing.items()
    ]
    said = f"<p>Alarms at the last check:</p><ul>{''.join(alarms)}</ul>" if alarms else ""
    return f"""<h2>Training</h2>{said}{training_plot(metrics)}
<p class="note">Thin: every step. Thick: moving average over a twentieth of the steps, and the value
that it ends at. {escape(" ".join(pace(metrics)))}</p>"""


def _examples(answers: Sequence[dict[str, Any]]) -> str:
    # An id alone may be that of several questions in a run of before ids were checked.
    questions: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for a in answers:
        asked = (str(a["id"]), a["context"], a["question"])
        questions.setdefault(asked, {})[a["condition"]] = a
    ids = drawn(questions, EXAMPLES)
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
