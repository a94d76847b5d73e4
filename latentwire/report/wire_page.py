"""Builds the page of a wire's run: verdict, scores, costs, training and example answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from latentwire.report.plots import f1_plot, training_plot
from latentwire.report.shell import drawn, html_table, joined, verdict_section
from latentwire.report.tables import (
    COLUMNS,
    CONTROLS,
    answer_budget,
    conditions,
    name,
    pace,
    result_rows,
    shown,
    size_rows,
)
from latentwire.report.verdict import joint_verdict, reads_latents, verdict

EXAMPLES = 20
"""Questions shown with their answers."""

SHOWN = ("wire", "text", "closed_book", "mismatched_latents")
"""Conditions whose answers are shown."""

RECORDS = {
    "metrics.jsonl": {
        **{"stage": str, "step": int, "loss": float, "alarms?": {"*": str}},
        **dict.fromkeys(("tokens?", "seconds?", "waited?"), float),
        **dict.fromkeys(("held?", "held_low?", "held_high?"), float),
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
    reader, data, n = (results.get(k, "unknown") for k in ("reader", "data", "n"))
    ratio = f" at {results['ratio']}x" if "ratio" in results else ""
    passages = f" on {results['passages']} passages" if "passages" in results else ""
    # The id is for finding the artifact; it tells a person nothing.
    settings = ", ".join(
        f"{k} {results[k]}" for k in ("bits", "keep", "needles", "seed", "wire") if k in results
    )
    return Markup("""<h1>Wire{ratio}, read by {reader}</h1>
<p class="note">Run {run}: {n} questions{passages} of {data}. Settings: {settings}</p>""").format(
        **{"ratio": ratio, "reader": reader, "run": run, "n": n, "passages": passages},
        **{"data": data, "settings": settings},
    )


RESULTS = Markup("""{verdict}
<h2>Scores</h2>
{scores}
<p class="note">Brackets: 95% interval. EM: exact match. Wire minus it: difference in F1 on the same
questions, in points. NLL: nats per token of the gold answer, its end counted; lower is better.
Top 1, top 5: how often the first token of the gold answer is the reader's most likely one, or among
its five most likely. Truncated to equal bytes: as much text as fits the message's bytes;
after zstd -19: as much as zstd packs into them. Pruned to equal tokens: the tokens that the reader
itself finds the most surprising (Selective Context, Li et al. 2023).{uncut} {budget}</p>
{plot}
<h2>What a context costs</h2>
{sizes}
<p class="note">Bytes and positions are means over contexts. Times are medians over the first
passages, measured in turn in one process, with the question counted.</p>""")

UNCUT = """ Not shown: {}. The message has as many bytes as the text or more, so that nothing is cut
and the row repeats the full text."""


def _results(results: dict[str, Any]) -> Markup:
    tone = {True: "good", False: "bad", None: ""}[reads_latents(results)]
    rows = shown(results)
    repeated = [name(key) for key in conditions(results) if key not in rows]
    kinds = ["main" if k == "wire" else "control" if k in CONTROLS else "" for k in rows]
    sizes = ("a context", "full text", "wire", "wire / full text")
    return RESULTS.format(
        verdict=verdict_section(tone, verdict(results)),
        scores=html_table(COLUMNS, result_rows(results), kinds),
        uncut=UNCUT.format(", ".join(repeated)) if repeated else "",
        budget=answer_budget(results),
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
    listed = Markup("<p>Alarms at the last check:</p><ul>{}</ul>").format(alarms) if alarms else ""
    measured = any(row.get("held") is not None for row in metrics)
    missing = "" if measured else "; this run measured none"
    return Markup("""<h2>Training</h2>{}{}
<p class="note">Moving average: over a twentieth of the steps. Held-out loss: on examples that
are not trained on, with its 95% interval{}. Numbers at the right: last values. {}</p>""").format(
        listed, training_plot(metrics), missing, " ".join(pace(metrics))
    )


def _examples(answers: Sequence[dict[str, Any]]) -> Markup:
    # An id alone may be that of several questions in a run of before ids were checked.
    questions: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for a in answers:
        asked = (str(a["id"]), a["context"], a["question"])
        questions.setdefault(asked, {})[a["condition"]] = a
    ids = drawn(questions, EXAMPLES)
    return Markup("""<h2>Example answers</h2>
<p class="note">{} of {} questions, drawn with seed 0.</p>
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
