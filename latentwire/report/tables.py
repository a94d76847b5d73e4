"""Makes the rows of a wire's tables, the same for page and terminal.

rich.print(results_table(results))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from latentwire.reading import escaped
from latentwire.report.comparison import DIFFERENCES, difference, gap
from latentwire.report.folder import expect

NAMES = {
    "text": "full text",
    "wire": "wire",
    "evicted": "its slots without the residual: eviction alone",
    "truncated_tokens": "truncated to equal tokens",
    "pruned_tokens": "pruned to equal tokens",
    "truncated_bytes": "truncated to equal bytes",
    "truncated_zstd": "truncated to equal bytes after zstd -19",
    "closed_book": "closed book (no text)",
    "zero_latents": "zero latents (control)",
    "mean_slots": "the mean key and value in every slot (control)",
    "mismatched_latents": "another example's latents (control)",
}
"""Conditions as people call them, in the order in which they are shown."""

SHORT = {
    "evicted": "eviction alone",
    "truncated_tokens": "equal tokens",
    "pruned_tokens": "pruned",
    "truncated_bytes": "equal bytes",
    "truncated_zstd": "equal zstd",
    "closed_book": "closed book",
    "zero_latents": "zero latents",
    "mean_slots": "mean slots",
    "mismatched_latents": "mismatched latents",
}
"""Those that take too much of a terminal's 80 columns."""

CUTS = {
    "truncated_tokens": None,
    "pruned_tokens": None,
    "truncated_bytes": "text_bytes",
    "truncated_zstd": "zstd_bytes",
}
"""The text cut to the wire's size, and the bytes of all of it where bytes are the size."""

CONTROLS = ("closed_book", "zero_latents", "mismatched_latents")
"""The conditions that a wire which reads its latents must beat."""

COLUMNS = ("condition", "EM, %", "F1, %", "wire minus it", "NLL", "top 1, %", "top 5, %")
FIGURES = ("em", "em_low", "em_high", "f1", "f1_low", "f1_high", "nll", "first1", "first5")

RATIOS = ("retention", "kv_ratio", "ttft_ratio", "encode_ttft_ratio")
SIZES = ("tokens_in", "latents_out", "text_bytes", "zstd_bytes", "message_bytes")
CACHES = ("text_kv_bytes", "kv_bytes")
TIMES = ("text_ttft_seconds", "ttft_seconds", "encode_ttft_seconds")
RESULTS = {
    "n?": int,
    "answer_tokens?": int,
    "cut_answers?": float,
    "reader?": str,
    "rows?": {"*": dict.fromkeys(FIGURES, float)},
    "differences?": DIFFERENCES,
    **{f"{key}?": float for key in (*RATIOS, *SIZES, *CACHES, *TIMES, "embeds_vs_ids_difference")},
}
"""The shape of results.json, as `folder.expect` takes it."""
READERS = {"readers": {"*": RESULTS}, "joint?": {"*": float}}
"""The same of several readers."""


def conditions(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows of the results in the order of NAMES, then any others. Raises ReportError where a row
    lacks a figure."""
    rows = expect(results, RESULTS, "results").get("rows") or {}
    order = [*(k for k in NAMES if k in rows), *(k for k in rows if k not in NAMES)]
    return {k: rows[k] for k in order}


def uncut(results: dict[str, Any]) -> list[str]:
    """The conditions that repeat the full text: those of texts cut to as many bytes as the message
    has, where it has as many as the whole text or more."""
    message = results.get("message_bytes")
    return [
        condition
        for condition, key in CUTS.items()
        if key and message is not None and message >= (results.get(key) or float("inf"))
    ]


def shown(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The conditions without those that repeat the full text."""
    repeated = uncut(results)
    return {key: row for key, row in conditions(results).items() if key not in repeated}


def name(condition: str) -> str:
    """The human name of a condition."""
    return NAMES.get(condition, condition.replace("_", " "))


def results_table(results: dict[str, Any]) -> Table:
    """The rows for a terminal of 80 columns."""
    rows = shown(results)
    caption = (
        "Brackets: 95% interval. NLL in nats. first, top 5: first token, %\n"
        "equal: the text cut to as many as the wire takes, bytes as they are\n"
        "or after zstd -19; pruned: its most surprising tokens, as many"
    )
    if told := answer_budget(results):
        caption += f"\n{told}"
    if left_out := [SHORT[key] for key in conditions(results) if key not in rows]:
        caption += f"\nnot shown: {', '.join(left_out)}, which cut nothing from these texts"
    table = terminal_table(("condition", "EM, %", "F1, %", "NLL", "first", "top 5"), caption)
    for key, (_, em, f1, _, *cells) in zip(rows, result_rows(results), strict=True):
        style = "bold" if key == "wire" else "dim" if key in CONTROLS else None
        table.add_row(SHORT.get(key, name(key)), em, f1, *cells, style=style)
    return table


def answer_budget(results: dict[str, Any]) -> str:
    """States the longest answer and how many gold answers are longer; nothing of results that do
    not know it."""
    if results.get("answer_tokens") is None or results.get("cut_answers") is None:
        return ""
    cut = percent(results["cut_answers"])
    return f"Answers: up to {results['answer_tokens']} tokens; {cut}% of gold answers are longer."


class TextTable(Table):
    """A table whose cells are texts, whatever console prints it."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*(Text(escaped(str(cell))) for cell in cells), **options)


def terminal_table(columns: Sequence[str], caption: str) -> Table:
    """An empty table of names and numbers, each row on one line."""
    table = TextTable(
        caption=caption,
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        caption_justify="left",
    )
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    return table


def result_rows(results: dict[str, Any]) -> list[list[str]]:
    """Cells under COLUMNS, one row for each condition that is shown."""
    rows = shown(results)

    def minus(key: str) -> str:
        gain = difference(results, key)
        return "" if gain is None else gap(gain, "")

    return [
        [name(key), interval(row, "em"), interval(row, "f1"), minus(key), f"{row['nll']:.2f}"]
        + [percent(row[f]) for f in ("first1", "first5")]
        for key, row in rows.items()
    ]


def size_rows(results: dict[str, Any]) -> list[list[str]]:
    """Lists what a context costs: quantity, full text, wire, wire / full text. Cells are blank
    where results of an earlier version have only the ratio."""
    get = results.get
    measured = [
        ("cached positions per attention head", get("tokens_in"), get("latents_out"), ",.1f"),
        ("bytes sent", get("text_bytes"), get("message_bytes"), ",.0f"),
        ("the same, text after zstd -19", get("zstd_bytes"), get("message_bytes"), ",.0f"),
    ]
    rows = []
    for label, text, wire, form in measured:
        cells = ["not measured" if v is None else format(v, form) for v in (text, wire)]
        rows.append([label, *cells, share(wire / text) if text and wire is not None else ""])
    text, wire, encode = TIMES
    for label, key, measures, form in (
        ("KV-cache bytes", "kv_ratio", CACHES, "{:,.0f}".format),
        ("time to first token, message given", "ttft_ratio", (text, wire), duration),
        ("time to first token, encoding counted", "encode_ttft_ratio", (text, encode), duration),
    ):
        ratio = get(key)
        cells = ["" if (value := get(m)) is None else form(value) for m in measures]
        rows.append([label, *cells, "not measured" if ratio is None else share(ratio)])
    return rows


def duration(seconds: float) -> str:
    """A time in milliseconds, or in seconds from one on: 83 ms."""
    if seconds >= 1:
        return f"{seconds:,.1f} s"
    milliseconds = 1e3 * seconds
    return f"{milliseconds:,.0f} ms" if milliseconds >= 10 else f"{milliseconds:.2g} ms"


def percent(share: float) -> str:
    """A share as percent: 48.1, and 100 for all."""
    return f"{100 * share:.1f}".replace("100.0", "100")


def interval(row: dict[str, Any], figure: str, unit: str = "") -> str:
    """A share as percent with its 95% interval: 48.1 (44.0 to 52.3)."""
    mean, low, high = (percent(row[figure + end]) for end in ("", "_low", "_high"))
    return f"{mean}{unit} ({low} to {high})"


def share(ratio: float) -> str:
    """A ratio as percent, from ten on as a factor: 34%, 1,281 times."""
    return f"{ratio:.0%}" if ratio < 10 else f"{ratio:,.0f} times"


def pace(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """States the throughput of each stage of a training, and the share of its time that it waited
    for data."""
    sentences = []
    for stage in dict.fromkeys(row["stage"] for row in metrics):
        timed = [row for row in metrics if row["stage"] == stage and "seconds" in row]
        seconds = sum(row["seconds"] for row in timed)
        figures = [f"{seconds / len(timed):.2g} s a step"] if timed else []
        if all("tokens" in row for row in timed) and seconds:
            figures.append(f"{sum(row['tokens'] for row in timed) / seconds:.3g} target tokens/s")
        if all("waited" in row for row in timed) and seconds:
            figures.append(f"{sum(row['waited'] for row in timed) / seconds:.1%} waiting for data")
        sentences += [f"{stage}: {', '.join(figures)}."] if figures else []
    return sentences
