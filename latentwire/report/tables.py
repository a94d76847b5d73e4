"""What a run's results say: the verdict in words, and the rows of the tables.

Page and terminal show the same rows because both are made here. The verdict is computed from
intervals, never from means alone, and it names what the wire fails to beat.

    print(*verdict(results), sep="\\n")
    rich.print(results_table(results))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from latentwire.report.folder import expect

NAMES = {
    "text": "full text",
    "wire": "wire",
    "truncated_tokens": "truncated to equal tokens",
    "pruned_tokens": "pruned to equal tokens",
    "truncated_bytes": "truncated to equal bytes",
    "truncated_zstd": "truncated to equal bytes after zstd -19",
    "closed_book": "closed book (no text)",
    "zero_latents": "zero latents (control)",
    "foreign_latents": "another example's latents (control)",
}
"""Conditions as people call them, in the order in which they are shown."""

SHORT = {
    "truncated_tokens": "equal tokens",
    "pruned_tokens": "pruned",
    "truncated_bytes": "equal bytes",
    "truncated_zstd": "equal zstd",
    "closed_book": "closed book",
    "zero_latents": "zero latents",
    "foreign_latents": "foreign latents",
}
"""Those that take too much of a terminal's 80 columns."""

CUTS = {
    "truncated_tokens": None,
    "pruned_tokens": None,
    "truncated_bytes": "text_bytes",
    "truncated_zstd": "zstd_bytes",
}
"""The text cut to the wire's size, and the bytes of all of it where bytes are the size."""

CONTROLS = ("closed_book", "zero_latents", "foreign_latents")
"""What a wire that reads its latents must beat."""

COLUMNS = ("condition", "EM, %", "F1, %", "NLL", "first token, %", "in top 5, %")
FIGURES = ("em", "em_low", "em_high", "f1", "f1_low", "f1_high", "nll", "first1", "first5")

RATIOS = ("retention", "kv_ratio", "ttft_ratio", "encode_ttft_ratio")
SIZES = ("tokens_in", "latents_out", "text_bytes", "zstd_bytes", "message_bytes")
RESULTS = {
    "rows?": {"*": dict.fromkeys(FIGURES, float)},
    **{f"{key}?": float for key in (*RATIOS, *SIZES, "replay_difference")},
}
"""What results.json must hold, as `folder.expect` takes it."""
READERS = {"readers": {"*": RESULTS}, "joint?": {"*": float}}
"""The same of several readers."""


def conditions(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows of the results in the order of NAMES, then any others. Raises ReportError where a row
    lacks a figure."""
    rows = expect(results, RESULTS, "results").get("rows") or {}
    order = [*(k for k in NAMES if k in rows), *(k for k in rows if k not in NAMES)]
    return {k: rows[k] for k in order}


def name(condition: str) -> str:
    """The human name of a condition."""
    return NAMES.get(condition, condition.replace("_", " "))


def reads_latents(results: dict[str, Any]) -> bool | None:
    """Whether the wire's F1 interval lies above that of every control; None where that is unknown
    because the wire or a control was not evaluated."""
    rows = conditions(results)
    if "wire" not in rows:
        return None
    if _unbeaten(rows):
        return False
    return True if all(c in rows for c in CONTROLS) else None


def verdict(results: dict[str, Any]) -> list[str]:
    """The results in words, one sentence or two an item: controls, text cut to the same size,
    retention, bytes, time and cache, replay of raw embeddings. An item whose figures are missing is
    left out, except the first."""
    rows = conditions(results)
    said = (
        _controls(results, rows),
        *(_against(rows, cut) for cut in CUTS if _cuts(results, cut)),
        _retention(results, rows),
        _bytes(results),
        _speed(results),
        _replay(results),
    )
    return [item for item in said if item]


def joint_verdict(scores: dict[str, Any]) -> str:
    """What several readers of the same messages come to together, in words."""
    return (
        f"Together, every candidate scored by all readers: F1 {interval(scores, 'f1', '%')}. They "
        f"agree on {interval(scores, 'agreement', '%')} of the answers; an oracle that picks the "
        f"best of them has F1 {interval(scores, 'oracle_f1', '%')}."
    )


def results_table(results: dict[str, Any]) -> Table:
    """The rows for a terminal of 80 columns."""
    rows = conditions(results)
    table = terminal_table(
        ("condition", "EM, %", "F1, %", "NLL", "first", "top 5"),
        "Brackets: 95% interval. NLL in nats. first, top 5: first token, %\n"
        "equal: the text cut to as many as the wire takes, bytes as they are\n"
        "or after zstd -19; pruned: its most surprising tokens, as many",
    )
    for key, (_, *cells) in zip(rows, result_rows(results), strict=True):
        style = "bold" if key == "wire" else "dim" if key in CONTROLS else None
        table.add_row(SHORT.get(key, name(key)), *cells, style=style)
    return table


class TextTable(Table):
    """A table whose cells are texts, whatever console prints it."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*(Text(str(cell)) for cell in cells), **options)


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
    """Cells under COLUMNS, one row a condition."""
    return [
        [name(key), interval(row, "em"), interval(row, "f1"), f"{row['nll']:.2f}"]
        + [percent(row[f]) for f in ("first1", "first5")]
        for key, row in conditions(results).items()
    ]


def size_rows(results: dict[str, Any]) -> list[list[str]]:
    """What a context costs: quantity, full text, wire, wire / full text. Blank where a quantity is
    only known as a ratio."""
    get = results.get
    measured = [
        ("positions a head attends to, on average", get("tokens_in"), get("latents_out"), ",.1f"),
        ("bytes sent", get("text_bytes"), get("message_bytes"), ",.0f"),
        ("the same, text after zstd -19", get("zstd_bytes"), get("message_bytes"), ",.0f"),
    ]
    rows = []
    for label, text, wire, form in measured:
        cells = ["not measured" if v is None else format(v, form) for v in (text, wire)]
        rows.append([label, *cells, _share(wire / text) if text and wire is not None else ""])
    for label, key in (
        ("KV-cache bytes", "kv_ratio"),
        ("time to first token, message given", "ttft_ratio"),
        ("time to first token, encoding counted", "encode_ttft_ratio"),
    ):
        ratio = get(key)
        rows.append([label, "", "", "not measured" if ratio is None else _share(ratio)])
    return rows


def percent(share: float | int) -> str:
    """A share as percent: 48.1, and 100 for all."""
    return f"{100 * share:.1f}".replace("100.0", "100")


def interval(row: dict[str, Any], figure: str, unit: str = "") -> str:
    """A share as percent with its 95% interval: 48.1 (44.0 to 52.3)."""
    mean, low, high = (percent(row[figure + end]) for end in ("", "_low", "_high"))
    return f"{mean}{unit} ({low} to {high})"


def _unbeaten(rows: dict[str, dict[str, Any]]) -> list[str]:
    low = rows["wire"]["f1_low"]
    return [c for c in CONTROLS if c in rows and low <= rows[c]["f1_high"]]


def _controls(results: dict[str, Any], rows: dict[str, dict[str, Any]]) -> str:
    reads = reads_latents(results)
    if reads is None:
        absent = _and([name(c) for c in ("wire", *CONTROLS) if c not in rows])
        return f"Whether this wire reads its latents is unknown: there are no results for {absent}."
    own = f"its F1 of {interval(rows['wire'], 'f1', '%')}"
    if reads:
        beaten = _and([name(c) for c in CONTROLS])
        return f"This wire reads its latents: {own} lies above the intervals of {beaten}."
    unbeaten = _and(
        [f"{name(c)}, {interval(rows[c], 'f1', '%')}" for c in _unbeaten(rows)], "; and "
    )
    return f"This wire is not reading its latents: {own} does not lie above {unbeaten}."


def _against(rows: dict[str, dict[str, Any]], condition: str) -> str | None:
    if "wire" not in rows or condition not in rows:
        return None
    wire, cut = rows["wire"], rows[condition]
    figures = f"F1 {interval(wire, 'f1', '%')} against {interval(cut, 'f1', '%')}"
    than = f"the text {name(condition)}"
    if wire["f1_low"] > cut["f1_high"]:
        return f"It is better than {than}: {figures}."
    if wire["f1_high"] < cut["f1_low"]:
        return f"It is worse than {than}: {figures}."
    return f"It is not better than {than}: {figures}; they overlap."


def _cuts(results: dict[str, Any], condition: str) -> bool:
    """Whether a text is cut at all: where the message is the larger, equal bytes cut nothing."""
    whole = CUTS[condition]
    if whole is None:
        return True
    message, text = results.get("message_bytes"), results.get(whole)
    return message is not None and text is not None and message < text


def _retention(results: dict[str, Any], rows: dict[str, dict[str, Any]]) -> str | None:
    if results.get("retention") is None:
        return None
    said = f"It keeps {results['retention']:.0%} of the full text's F1"
    if "text" not in rows or "closed_book" not in rows or not rows["text"]["f1"]:
        return f"{said}."
    # Retention flatters where the reader knows the answers by itself.
    return (
        f"{said}; with no text at all, {rows['closed_book']['f1'] / rows['text']['f1']:.0%} remain."
    )


def _bytes(results: dict[str, Any]) -> str | None:
    message, text = results.get("message_bytes"), results.get("text_bytes")
    if message is None or not text:
        return None
    times = message / text
    if times <= 1:
        than = "smaller than" if times < 1 else "as large as"
        zipped = results.get("zstd_bytes")
        after = "" if zipped is None else f" ({zipped:,.0f} after zstd -19)"
        return f"The message is {than} its text: {message:,.0f} bytes against {text:,.0f}{after}."
    # Only what was measured to shrink is called saved.
    saves = [
        what
        for what, key in (("cache", "kv_ratio"), ("prefill", "ttft_ratio"))
        if results.get(key) is not None and results[key] < 1
    ]
    but = f"this wire saves {_and(saves)}, not bytes" if saves else "this wire does not save bytes"
    return f"The message is {_times(times)} times larger than its text: {but}."


def _speed(results: dict[str, Any]) -> str | None:
    ttft, kv, encoded = (results.get(k) for k in ("ttft_ratio", "kv_ratio", "encode_ttft_ratio"))
    parts = [f"{ttft:.0%} of the time to first token"] if ttft is not None else []
    parts += [f"{kv:.0%} of the KV-cache bytes"] if kv is not None else []
    if not parts:
        return None
    said = f"Given the message, it reads in {', '.join(parts)} of full text."
    if encoded is None:
        return said
    return f"{said} With encoding counted, the time to first token is {encoded:.0%} of it."


def _replay(results: dict[str, Any]) -> str | None:
    difference = results.get("replay_difference")
    if difference is None:
        return None
    if difference == 0:
        return "Raw embeddings replayed (must equal full text): equal."
    return (
        f"Raw embeddings replayed (must equal full text): log-probabilities differ by up to "
        f"{difference:.2g} nats, so the reader is fed latents in another way than text."
    )


def _share(ratio: float | int) -> str:
    return f"{ratio:.0%}" if ratio < 10 else f"{ratio:,.0f} times"


def _times(ratio: float | int) -> str:
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}" if ratio >= 1.1 else f"{ratio:.3f}"


def _and(words: list[str], last: str = " and ") -> str:
    return last.join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def pace(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Throughput of each stage of a training, and how much of its time it waited for data."""
    said = []
    for stage in dict.fromkeys(row["stage"] for row in metrics):
        timed = [row for row in metrics if row["stage"] == stage and "seconds" in row]
        seconds = sum(row["seconds"] for row in timed)
        figures = [f"{seconds / len(timed):.2g} s a step"] if timed else []
        if all("tokens" in row for row in timed) and seconds:
            figures.append(f"{sum(row['tokens'] for row in timed) / seconds:.3g} target tokens/s")
        if all("waited" in row for row in timed) and seconds:
            figures.append(f"{sum(row['waited'] for row in timed) / seconds:.1%} waiting for data")
        said += [f"{stage}: {', '.join(figures)}."] if figures else []
    return said
