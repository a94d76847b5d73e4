"""Builds the page of a run of seek: verdict, scores, plots, changed answers and failures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from latentwire.report.seek import COLUMNS, arm_rows, arms, helps, verdict
from latentwire.report.seek_plots import accuracy_plot, flips_plot
from latentwire.report.shell import drawn, html_table, joined, verdict_section

EXAMPLES = 10
"""Problems shown with their answers."""

SETTINGS = ("strategy", "steps", "k", "section", "lr", "samples", "compat", "temperature", "seed")
"""The settings that stand under the title."""

STEP = {
    "step": int,
    "reward?": float,
    "parts?": {"*": float},
    "flipped": int,
    "text": str,
    "tokens": int,
    "right": bool,
}
SEARCH = {
    "text": str,
    "right": bool,
    "reward?": float,
    "note?": str,
    "failure?": str,
    "trace": [STEP],
}
RECORDS = {
    "predictions.jsonl": {"id": (str, int), "question": str, "arms": {"seek": SEARCH}},
}
"""The files with one record a line, and what a record must hold."""


def seek_sections(run: str, found: dict[str, Any]) -> list[Markup]:
    """Sections of the page of a run of this name; found: the contents of its files by name."""
    results, records = found["results.json"], found["predictions.jsonl"]
    return [
        _title(results),
        _results(results),
        _examples(records) if records else Markup(),
        _failures(records),
    ]


def _title(results: dict[str, Any]) -> Markup:
    config = results.get("config") or {}
    settings = [f"{k} {config[k]}" for k in SETTINGS if config.get(k) is not None]
    about = ", ".join([f"reward {results['reward']}", *settings])
    return Markup("""<h1>Seek on {task} with {model}</h1>
<p class="note">{n} problems, {failures} failed searches. Settings: {about}</p>""").format(
        **{k: results[k] for k in ("task", "model", "n", "failures")}, about=about
    )


FLIPS = Markup("""<h2>How far the search goes</h2>
{}
<p class="note">Share of the tokens in the searched span that differ from the first answer; mean
over the problems whose search is still running at that step.</p>""")
RESULTS = Markup("""{verdict}
<h2>Scores</h2>
{scores}
<p class="note">Brackets: 95% interval. Tokens: token positions processed by language models, those
of the reward included; mean over problems. Seek minus it: difference in accuracy on the same
problems, in points, with its interval. Random sign: a control that takes the same steps with the
sign of the reward drawn at random. Best of N: the sample with the highest reward. pass@K: the share
of problems for which at least one of K samples is right, which takes the gold answer to know. N and
K are means over problems.</p>
<h2>Accuracy against tokens</h2>
{plot}
<p class="note">Lines: accuracy of the answer with the highest reward so far. Vertical bars: 95%
intervals.</p>
{flips}""")


def _results(results: dict[str, Any]) -> Markup:
    tone = {True: "good", False: "bad", None: ""}[helps(results)]
    kinds = [
        "main" if k == "seek" else "control" if k == "random_sign" else "" for k in arms(results)
    ]
    flips = flips_plot(results)
    return RESULTS.format(
        verdict=verdict_section(tone, verdict(results)),
        scores=html_table(COLUMNS, arm_rows(results), kinds),
        plot=accuracy_plot(results),
        flips=FLIPS.format(flips) if flips else "",
    )


def _examples(records: Sequence[dict[str, Any]]) -> Markup:
    changed = {str(r["id"]): r for r in records if _changed(r["arms"]["seek"])}
    ids = drawn(changed, EXAMPLES)
    return Markup("""<h2>Changed answers</h2>
<p class="note">In {} of {} problems the final answer differs from the first.{}</p>
{}""").format(
        len(changed),
        len(records),
        f" {len(ids)} of them, drawn with seed 0, are shown." if ids else "",
        joined(_example(changed[i]) for i in ids),
    )


def _changed(search: dict[str, Any]) -> bool:
    return bool(search["trace"]) and search["trace"][0]["text"] != search["text"]


EXAMPLE = Markup("""<article><h3 class="long">{question}</h3><dl>{listed}</dl>
<details><summary>full answers and rewards by step</summary>
<h4>first answer</h4><p class="whole">{first}</p>
<h4>{final}</h4><p class="whole">{last}</p>
{trace}</details></article>""")


def _example(record: dict[str, Any]) -> Markup:
    search = record["arms"]["seek"]
    first = search["trace"][0]
    at = next((s["step"] for s in search["trace"] if s["text"] == search["text"]), None)
    final = "final answer" if at is None else f"final answer (step {at})"
    gold = record.get("gold")
    if not isinstance(gold, str):
        gold = "(none)" if gold is None else json.dumps(gold, ensure_ascii=False)
    outcomes = {"gold": gold, "first answer": _outcome(first), final: _outcome(search)}
    outcomes |= {k: search[k] for k in ("note", "failure") if search.get(k)}
    return EXAMPLE.format(
        question=record["question"],
        listed=joined(Markup("<dt>{}</dt><dd>{}</dd>").format(*pair) for pair in outcomes.items()),
        first=first["text"],
        final=final,
        last=search["text"],
        trace=_trace(search["trace"]),
    )


def _outcome(answer: dict[str, Any]) -> Markup:
    right = Markup('<span class="right">&#10003; right</span>') if answer["right"] else "wrong"
    return Markup('{} <span class="score">reward {}</span>').format(right, _reward(answer))


def _trace(trace: Sequence[dict[str, Any]]) -> Markup:
    parts = list(dict.fromkeys(part for step in trace for part in step.get("parts") or {}))
    rows = [
        [str(s["step"]), _reward(s)]
        + [f"{s['parts'][p]:g}" if p in (s.get("parts") or {}) else "" for p in parts]
        + [str(s["flipped"]), f"{s['tokens']:,}", "right" if s["right"] else "wrong"]
        for s in trace
    ]
    return html_table(("step", "reward", *parts, "tokens changed", "tokens", "answer"), rows)


def _reward(answer: dict[str, Any]) -> str:
    return "failed" if answer.get("reward") is None else f"{answer['reward']:.2f}"


def _failures(records: Sequence[dict[str, Any]]) -> Markup:
    """Counts the reasons for which searches failed."""
    reasons = Counter(r["arms"]["seek"].get("failure") for r in records)
    rows = [[str(reason), str(count)] for reason, count in reasons.most_common() if reason]
    if not rows:
        return Markup()
    return Markup("<h2>Failures</h2>") + html_table(("reason", "searches"), rows)
