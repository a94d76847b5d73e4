"""The plots of a run of seek.

html = accuracy_plot(results) + flips_plot(results)
"""

from __future__ import annotations

from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from latentwire.report.drawing import (
    ACCENT,
    CONTROL,
    INK,
    MUTED,
    STYLE,
    WIDTH,
    end_label,
    frame,
    spread,
    svg_of,
)
from latentwire.report.seek import arms, name
from latentwire.report.tables import percent

COLOURS = {"seek": ACCENT, "random_sign": CONTROL, "best_of_n": INK, "pass_at_k": MUTED}
"""Colours of the arms that are named at the right edge."""

LINE_GAP = 0.085
"""Least distance of two names, as a share of the plot's height."""


def accuracy_plot(results: dict[str, Any]) -> Markup:
    """Accuracy of the best-rated answer so far against tokens spent. At the right edge, each arm's
    last value with its 95% interval; pass@K is a level, greedy a point."""
    rows = arms(results)
    lines = {k: v for k, v in results["curves"].items() if k in rows and k in COLOURS and v}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        axes = figure.subplots()
        frame(axes, "y")
        top = max(1.0, *(108 * row["high"] for row in rows.values()))
        ends = [row["tokens"] for row in rows.values()]
        ends += [point["tokens"] for line in lines.values() for point in line]
        axes.set_ylim(-0.02 * top, top)
        axes.set_xlim(0, 1.02 * max(1.0, *ends))
        for key, line in lines.items():
            axes.plot(
                [point["tokens"] for point in line],
                [100 * point["accuracy"] for point in line],
                "o-",
                markevery=[-1],
                markersize=5 if key == "seek" else 3.5,
                color=COLOURS[key],
                linewidth=2.4 if key == "seek" else 1.4,
                solid_capstyle="round",
                zorder=3 if key == "seek" else 2,
            )
        if "pass_at_k" in rows:
            level = 100 * rows["pass_at_k"]["accuracy"]
            # Not from the left edge, where greedy's name stands.
            axes.axhline(level, 0.3, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        _greedy_point(axes, rows["greedy"])
        _right_edge(axes, {k: row for k, row in rows.items() if k in COLOURS}, top)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.set_xlabel("tokens per problem, mean")
        axes.set_title("accuracy, %", loc="left", fontsize=9, weight="bold")
        summary = "; ".join(
            f"{name(k, row)} {percent(row['accuracy'])}% at {row['tokens']:,.0f} tokens"
            for k, row in rows.items()
        )
        return svg_of(figure, "accuracy", f"Accuracy against tokens: {summary}")


def flips_plot(results: dict[str, Any]) -> Markup:
    """Draws how far each step is from the first answer, in tokens of the span; empty where no span
    was searched."""
    flips = [100 * share for share in results["flips"]]
    if not flips:
        return Markup()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.5), layout="constrained")
        axes = figure.subplots()
        frame(axes, "y")
        axes.plot(flips, "o-", color=ACCENT, linewidth=1.8, markersize=3.5, clip_on=False)
        end_label(axes, len(flips) - 1, flips[-1], f"{flips[-1]:.0f}", ACCENT)
        axes.set_ylim(0, max(10.0, 1.1 * max(flips)))
        axes.set_xlim(0, 1.05 * max(1, len(flips) - 1))
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel("step")
        axes.set_title("tokens of the span changed, %", loc="left", fontsize=9, weight="bold")
        return svg_of(
            figure, "flips", f"Tokens of the span changed: {flips[-1]:.0f}% at the last step"
        )


def _greedy_point(axes: Axes, arm: dict[str, float]) -> None:
    x, y = arm["tokens"], 100 * arm["accuracy"]
    axes.plot([x, x], [100 * arm["low"], 100 * arm["high"]], color=INK, linewidth=1.2)
    axes.plot([x], [y], "o", color=INK, markersize=5, zorder=4)
    axes.annotate(
        f"greedy\n{percent(arm['accuracy'])}",
        (x, 100 * arm["high"]),
        (0, 4),
        textcoords="offset points",
        ha="center",
        color=INK,
    )


def _right_edge(axes: Axes, rows: dict[str, dict[str, float]], top: float) -> None:
    """Intervals side by side beyond the axes, and the names beside them."""
    where = axes.get_yaxis_transform()
    ascending = sorted(rows, key=lambda k: rows[k]["accuracy"])
    labels = spread([100 * rows[k]["accuracy"] for k in ascending], LINE_GAP * top)
    for place, (key, height) in enumerate(zip(ascending, labels, strict=True)):
        row, x, bold = rows[key], 1.03 + 0.03 * place, key == "seek"
        style: dict[str, Any] = {"color": COLOURS[key], "transform": where, "clip_on": False}
        axes.plot(
            [x, x],
            [100 * row["low"], 100 * row["high"]],
            linewidth=2.4 if bold else 1.4,
            solid_capstyle="round",
            **style,
        )
        axes.plot([x], [100 * row["accuracy"]], "o", markersize=5 if bold else 4, **style)
        axes.text(
            1.04 + 0.03 * len(rows),
            height,
            f"{name(key, row)} {percent(row['accuracy'])}",
            va="center",
            weight="bold" if bold else "normal",
            **style,
        )
