"""The plots of a sweep: F1 against what a context costs, every baseline on the same axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from latentwire.report.drawing import ACCENT, CONTROL, INK, MUTED, STYLE, WIDTH, frame, svg_of
from latentwire.report.sweep import Scored
from latentwire.report.tables import name, shown

Unit = Literal["tokens", "bytes"]
MARKERS: dict[str, dict[str, Any]] = {
    "text": {"marker": "s", "color": INK},
    "text_zstd": {"marker": "s", "color": INK, "markerfacecolor": "none"},
    "evicted": {"marker": "o", "color": INK, "markerfacecolor": "none"},
    "truncated_tokens": {"marker": "v", "color": INK},
    "pruned_tokens": {"marker": "d", "color": INK},
    "truncated_bytes": {"marker": "v", "color": INK, "markerfacecolor": "none"},
    "truncated_zstd": {"marker": "^", "color": INK, "markerfacecolor": "none"},
    "zero_latents": {"marker": "x", "color": CONTROL},
    "mismatched_latents": {"marker": "+", "color": CONTROL},
}
"""Markers of the conditions that have a cost; no text costs nothing and is a level."""


def cost(one: dict[str, Any], condition: str, unit: Unit) -> float | None:
    """Tokens or bytes of a context under a condition, means over contexts; None where that was not
    measured. A text that was cut to tokens has as large a share of its bytes, and one that was cut
    to bytes, of UTF-8 or zstd, of its tokens."""
    tokens, text, latents, message, zipped = (
        one.get(k)
        for k in ("tokens_in", "text_bytes", "latents_out", "message_bytes", "zstd_bytes")
    )
    if condition == "text":
        return tokens if unit == "tokens" else text
    if condition == "text_zstd":
        return zipped if unit == "bytes" else None
    if condition in ("wire", "evicted", "zero_latents", "mismatched_latents"):
        return latents if unit == "tokens" else message
    whole = zipped if condition == "truncated_zstd" else text
    if not tokens or not whole or latents is None or message is None:
        return None
    cut_to_bytes = condition in ("truncated_bytes", "truncated_zstd")
    share = min(1.0, message / whole if cut_to_bytes else latents / tokens)
    return share * (tokens if unit == "tokens" else whole)


def cost_plot(rows: Sequence[Scored], unit: Unit, prefix: str) -> Markup:
    """Draws F1 against tokens or bytes of a context, on a logarithmic axis. Wires are named, of
    several at one place the highest; bars are their 95% intervals. prefix: begins the ids of this
    plot, which must be unique in a page."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        axes = figure.subplots()
        frame(axes, "y")
        axes.set_xscale("log")
        for key, style in MARKERS.items():
            _baseline(axes, [one.results for one in rows], key, unit, style)
        closed = [r for one in rows if (r := one.results["rows"].get("closed_book"))]
        if closed:
            level = 100 * sum(r["f1"] for r in closed) / len(closed)
            line = {"color": MUTED, "linewidth": 1, "linestyle": (0, (3, 3))}
            axes.axhline(level, label=name("closed_book"), **line)
        # By their place, the highest last: a name that others would hide is left out.
        highest = {cost(s.results, "wire", unit): s.short for s in sorted(rows, key=_f1)}
        for one in rows:
            _wire(axes, one, unit, named=one.short in highest.values())
        axes.margins(x=0.1)  # names are centred on the outermost wires
        axes.set_ylim(0, min(105.0, 1.05 * axes.get_ylim()[1]))
        low, high = axes.get_xlim()
        axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if high < 200 * low else (1,)))
        axes.xaxis.set_major_formatter(FuncFormatter(_short))
        axes.xaxis.set_minor_formatter(NullFormatter())
        units = "cached positions per attention head" if unit == "tokens" else "bytes"
        axes.set_xlabel(f"{units}, mean over contexts")
        axes.set_title(f"F1, %, against {unit}", loc="left", fontsize=9, weight="bold")
        narrow = {"fontsize": 7, "columnspacing": 1.0, "handlelength": 1.5, "handletextpad": 0.5}
        figure.legend(loc="outside lower center", ncols=2, frameon=False, **narrow)
        summary = "; ".join(f"{one.label} {100 * one.row['f1']:.1f}%" for one in rows)
        return svg_of(figure, prefix, f"F1 against {unit} of a context: {summary}")


def _baseline(
    axes: Axes, every: Sequence[dict[str, Any]], key: str, unit: Unit, style: dict[str, Any]
) -> None:
    row = "text" if key == "text_zstd" else key
    points = sorted(
        (x, 100 * one["rows"][row]["f1"])
        for one in every
        if row in shown(one) and (x := cost(one, key, unit))
    )
    if points:
        cut = key.startswith("truncated")
        label = "full text after zstd -19" if key == "text_zstd" else name(key)
        axes.plot(
            *zip(*points, strict=True),
            linestyle="-" if cut else "none",
            linewidth=0.8,
            markersize=5,
            label=label,
            **style,
        )


def _f1(one: Scored) -> float:
    return one.row["f1"]


def _wire(axes: Axes, one: Scored, unit: Unit, named: bool) -> None:
    x = cost(one.results, "wire", unit)
    if not x:
        return
    low, f1, high = (100 * one.row[k] for k in ("f1_low", "f1", "f1_high"))
    axes.plot([x, x], [low, high], color=ACCENT, linewidth=1.6, solid_capstyle="round", zorder=3)
    first: Any = {} if "wire" in axes.get_legend_handles_labels()[1] else {"label": "wire"}
    axes.plot([x], [f1], "o", color=ACCENT, markersize=6, zorder=3, **first)
    if named:
        above = {"textcoords": "offset points", "ha": "center", "zorder": 4}
        axes.annotate(one.short, (x, high), (0, 3), color=ACCENT, weight="bold", **above)


def _short(value: float, _place: Any = None) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
