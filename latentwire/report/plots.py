"""The plots of a wire's report.

html = f1_plot(results) + training_plot(metrics)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from latentwire.report.drawing import (
    ACCENT,
    CONTROL,
    INK,
    MUTED,
    SOFT,
    STYLE,
    WIDTH,
    end_label,
    frame,
    svg_of,
)
from latentwire.report.tables import CONTROLS, conditions, name


def f1_plot(results: dict[str, Any]) -> Markup:
    """F1 with its 95% interval, a line for each condition, each under its own name. The band is the
    wire's interval: a control that reaches into it is not beaten."""
    rows = conditions(results)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.42 * len(rows) + 0.5), layout="constrained")
        axes = figure.subplots()
        frame(axes, "x")
        if "wire" in rows:
            axes.axvspan(100 * rows["wire"]["f1_low"], 100 * rows["wire"]["f1_high"], color=SOFT)
        for place, (key, row) in enumerate(rows.items()):
            _f1_line(axes, place, key, {k: 100 * row[k] for k in ("f1", "f1_low", "f1_high")})
        # The highest interval leaves room for its number.
        axes.set_xlim(0, max(1.0, *(120 * row["f1_high"] for row in rows.values())))
        axes.set_ylim(len(rows) - 0.55, -0.75)
        axes.set_yticks([])
        axes.set_xlabel("F1, % (line: 95% interval; band: the wire's)")
        said = "; ".join(f"{name(k)} {100 * row['f1']:.1f}%" for k, row in rows.items())
        return svg_of(figure, "f1", f"F1 by condition: {said}")


def training_plot(metrics: Sequence[dict[str, Any]]) -> Markup:
    """The loss of each stage: every step thin, the smoothed course thick, its last value beside."""
    stages = _losses(metrics)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.55 * len(stages)), layout="constrained")
        panels = figure.subplots(len(stages), squeeze=False)[:, 0]
        for axes, (stage, losses) in zip(panels, stages.items(), strict=True):
            steps, values = list(losses), list(losses.values())
            smooth = smoothed(values)
            frame(axes, "y")
            axes.plot(steps, values, color=CONTROL, linewidth=0.5)
            axes.plot(steps, smooth, color=ACCENT, linewidth=1.8)
            end_label(axes, steps[-1], smooth[-1], f"{smooth[-1]:.2f}", ACCENT)
            axes.set_title(f"{stage}: loss", loc="left", fontsize=9, weight="bold")
            axes.set_xlim(0, steps[-1] * 1.1)
        panels[-1].set_xlabel("step")
        said = "; ".join(
            f"{s} ends at {smoothed(list(v.values()))[-1]:.2f}" for s, v in stages.items()
        )
        return svg_of(figure, "training", f"Training loss: {said}")


def smoothed(values: Sequence[float]) -> list[float]:
    """Exponential moving average over about a twentieth of the values, not biased to zero."""
    keep = 1 - 1 / max(1.0, len(values) / 20)
    total, weight, means = 0.0, 0.0, []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        means.append(total / weight)
    return means


def _losses(metrics: Sequence[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """stage -> step -> loss. A run that was stopped logs some steps twice: the later one counts."""
    stages: dict[str, dict[int, float]] = {}
    for line in metrics:
        stages.setdefault(line["stage"], {})[line["step"]] = line["loss"]
    return {stage: dict(sorted(losses.items())) for stage, losses in stages.items()}


def _f1_line(axes: Axes, place: int, key: str, row: dict[str, float]) -> None:
    wire = key == "wire"
    colour = ACCENT if wire else CONTROL if key in CONTROLS else INK
    text = MUTED if key in CONTROLS else colour
    weight = "bold" if wire else "normal"
    axes.plot(
        [row["f1_low"], row["f1_high"]],
        [place, place],
        color=colour,
        linewidth=3 if wire else 1.6,
        solid_capstyle="round",
    )
    axes.plot([row["f1"]], [place], "o", color=colour, markersize=7 if wire else 5)
    where = axes.get_yaxis_transform()
    axes.text(
        0.01, place - 0.42, name(key), color=text, weight=weight, va="center", transform=where
    )
    axes.annotate(
        f"{row['f1']:.1f}",
        (row["f1_high"], place),
        (7, 0),
        textcoords="offset points",
        va="center",
        color=text,
        weight=weight,
    )
