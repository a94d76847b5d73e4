"""What the page of a wire's run holds: verdict, scores, costs, training and example answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from latentwire.report.plots import f1_plot, training_plot
from latentwire.report.shell import drawn, html_table, joined, verdict_section
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

SHOWN = ("wire", "text", "closed_book", "mismatched_latents")
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


def wire_sections(run: str, found: dict[str, Any]) -> list[Markup]:
    """Sections of the page of a run of this name; found: the contents of its files by name."""
    results, metrics, answers = (
        found[file] for file in ("results.json", "metrics.jsonl", "predictions.jsonl")
    )
    return [
        _title(run, results),
        _results(results) if results is not None else Markup(),
        _training(metrics) if metrics else Markup(),
        _examples(answers) if answers else Markup(),
    ]


def readers_sections(run: str, found: dict[str, Any]) -> list[Markup]:
    """Sections of the page of several readers of the same messages, whose runs lie beside it."""
    results = found["results.json"]
    parts = [Markup("<h1>{}: readers of the same messages</h1>").format(run)]
    if results.get("joint"):
        parts.append(verdict_section("", [joint_verdict(results["joint"])]))
    link = Markup('<p><a href="reader-{}/report.html">Its run, with example answers</a></p>')
    for i, one in enumerate(results["readers"].values()):
        parts += [_title(run, one), _results(one), link.format(i)]
    return parts


def _title(run: str, results: dict[str, Any] | None) -> Markup:
    if results is None:
        about = "This run has a training log but no results: it has not been evaluated."
        return Markup('<h1>{}</h1><p class="note">{}</p>').format(run, about)
    got = {k: results.get(k, "unknown") for k in ("wire", "reader", "data", "n")}
    rest = ", ".join(
        f"{k} {results[k]}"
        for k in ("passages", "ratio", "bits", "keep", "needles", "seed")
        if k in results
    )
    return Markup("""<h1>Wire {wire}, read by {reader}</h1>
<p class="note">{n} questions of {data}; {rest}</p>""").format(**got, rest=rest)


RESULTS = Markup("""{verdict}
<h2>Scores</h2>
{scores}
<p class="note">Brackets: 95% interval. EM: exact match. NLL: nats per token of the gold
answer, its end counted; lower is better. First token, in top 5: how often the gold answer's first
token is the reader's most likely one, or among its five. Truncated to equal bytes: as much text as
fits the message's bytes, which is all of it where the message is the larger; after zstd -19: as
much as zstd packs into them. Pruned to equal tokens: the tokens that the reader itself finds the
most surprising (Selective Context, Li et al. 2023).</p>
{plot}
<h2>What a context costs</h2>
{sizes}
<p class="note">Means over contexts.</p>""")


def _results(results: dict[str, Any]) -> Markup:
    tone = {True: "good", False: "bad", None: ""}[reads_latents(results)]
    rows = conditions(results)
    kinds = ["main" if k == "wire" else "control" if k in CONTROLS else "" for k in rows]
    sizes = ("a context", "full text", "wire", "wire / full text")
    return RESULTS.format(
        verdict=verdict_section(tone, verdict(results)),
        scores=html_table(COLUMNS, result_rows(results), kinds),
        plot=f1_plot(results) if rows else "",
        sizes=html_table(sizes, size_rows(results)),
    )


def _training(metrics: Sequence[dict[str, Any]]) -> Markup:
    checks = {row["stage"]: row["alarms"] for row in metrics if row.get("alarms") is not None}
    alarms = joined(
        Markup("<li>{}: {}: {}</li>").format(stage, name, text)
        for stage, standing in checks.items()
        for name, text in standing.items()
    )
    said = Markup("<p>Alarms at the last check:</p><ul>{}</ul>").format(alarms) if alarms else ""
    return Markup("""<h2>Training</h2>{}{}
<p class="note">Thin: every step. Thick: moving average over a twentieth of the steps, and the value
that it ends at. {}</p>""").format(said, training_plot(metrics), " ".join(pace(metrics)))


def _examples(answers: Sequence[dict[str, Any]]) -> Markup:
    # An id alone may be that of several questions in a run of before ids were checked.
    questions: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for a in answers:
        asked = (str(a["id"]), a["context"], a["question"])
        questions.setdefault(asked, {})[a["condition"]] = a
    ids = drawn(questions, EXAMPLES)
    return Markup("""<h2>Example answers</h2>
<p class="note">{} of {} questions: the first of their ids, sorted and then
shuffled with seed 0.</p>
{}""").format(len(ids), len(questions), joined(_example(questions[i]) for i in ids))


def _example(answers: dict[str, dict[str, Any]]) -> Markup:
    asked = next(iter(answers.values()))
    gold = " | ".join(dict.fromkeys(asked["gold"]))
    pairs = [("gold", gold), *((name(c), _answer(answers.get(c))) for c in SHOWN)]
    return Markup("""<article><h3>{}</h3><dl>{}</dl>
<details><summary>context</summary><p>{}</p></details></article>""").format(
        asked["question"],
        joined(Markup("<dt>{}</dt><dd>{}</dd>").format(*pair) for pair in pairs),
        asked["context"],
    )


def _answer(answer: dict[str, Any] | None) -> Markup:
    if answer is None:
        return Markup('<span class="score">not evaluated</span>')
    text = answer["answer"] or Markup('<span class="score">(empty)</span>')
    if answer["em"] == 1:
        return Markup('{} <span class="right">&#10003; right</span>').format(text)
    return Markup('{} <span class="score">F1 {}</span>').format(text, f"{answer['f1']:.0%}")
