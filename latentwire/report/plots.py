"""The plots of a wire's report.

html = f1_plot(results) + training_plot(metrics)
"""

from __future__ import annotations

import textwrap
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
    STYLE,
    WIDTH,
    end_label,
    frame,
    spread,
    svg_of,
)
from latentwire.report.tables import CONTROLS, name, shown

LABEL_GAP = 0.14
"""Least distance of two labels at the right edge, as a share of the plot's height."""


def f1_plot(results: dict[str, Any]) -> Markup:
    """Draws F1 with its 95% interval, a line for each condition that is shown."""
    rows = shown(results)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.36 * len(rows) + 0.5), layout="constrained")
        axes = figure.subplots()
        frame(axes, "x")
        for place, (key, row) in enumerate(rows.items()):
            _f1_line(axes, place, key, {k: 100 * row[k] for k in ("f1", "f1_low", "f1_high")})
        # Numbers may stand beyond the axis, which ends at 100% at the latest.
        axes.set_xlim(0, min(100.0, max(1.0, *(102 * row["f1_high"] for row in rows.values()))))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), [textwrap.fill(name(key), 25) for key in rows])
        for label, key in zip(axes.get_yticklabels(), rows, strict=True):
            label.set_color(_text_colour(key))
            label.set_fontweight("bold" if key == "wire" else "normal")
        axes.set_xlabel("F1, % (line: 95% interval)")
        summary = "; ".join(f"{name(k)} {100 * row['f1']:.1f}%" for k, row in rows.items())
        return svg_of(figure, "f1", f"F1 by condition: {summary}")


def training_plot(metrics: Sequence[dict[str, Any]]) -> Markup:
    """Draws the loss of each stage: every step thin, the moving average thick, and the held-out
    loss, where checks measured one, as dots with their 95% intervals."""
    stages, checks = _losses(metrics), _held_out(metrics)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.55 * len(stages)), layout="constrained")
        panels = figure.subplots(len(stages), squeeze=False)[:, 0]
        for axes, (stage, losses) in zip(panels, stages.items(), strict=True):
            steps, values = list(losses), list(losses.values())
            smooth = smoothed(values)
            frame(axes, "y")
            held_out = checks.get(stage, {})
            axes.plot(steps, values, color=CONTROL, linewidth=0.5, label="training loss")
            axes.plot(steps, smooth, color=ACCENT, linewidth=1.8, label="moving average")
            if held_out:
                _checks(axes, held_out)
            ends = {ACCENT: smooth[-1], **({INK: held_out[max(held_out)][0]} if held_out else {})}
            ascending = sorted(ends, key=ends.__getitem__)
            low, high = axes.get_ylim()
            places = spread([ends[c] for c in ascending], LABEL_GAP * (high - low))
            for colour, place in zip(ascending, places, strict=True):
                end_label(axes, steps[-1], place, f"{ends[colour]:.2f}", colour)
            axes.set_title(stage, loc="left", fontsize=9, weight="bold")
            axes.set_xlim(0, steps[-1] * 1.02)
        panels[-1].set_xlabel("step")
        lines = {}
        for axes in panels:
            handles, labels = axes.get_legend_handles_labels()
            lines |= dict(zip(labels, handles, strict=True))
        where: Any = {"loc": "outside upper center", "ncols": 3, "frameon": False, "fontsize": 7.5}
        figure.legend(lines.values(), lines, **where)
        summary = "; ".join(
            f"{s} ends at {smoothed(list(v.values()))[-1]:.2f}" for s, v in stages.items()
        )
        return svg_of(figure, "training", f"Training loss: {summary}")


def smoothed(values: Sequence[float]) -> list[float]:
    """The exponential moving average over about a twentieth of the values, not biased to zero."""
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


def _held_out(
    metrics: Sequence[dict[str, Any]],
) -> dict[str, dict[int, tuple[float, float, float]]]:
    """Maps stage and step to the held-out loss with its 95% interval, where a check measured it."""
    stages: dict[str, dict[int, tuple[float, float, float]]] = {}
    for line in metrics:
        if (loss := line.get("held")) is not None:
            low, high = (line.get(key) for key in ("held_low", "held_high"))
            interval = (loss, loss if low is None else low, loss if high is None else high)
            stages.setdefault(line["stage"], {})[line["step"]] = interval
    return {stage: dict(sorted(checks.items())) for stage, checks in stages.items()}


def _checks(axes: Axes, checks: dict[int, tuple[float, float, float]]) -> None:
    for step, (_, low, high) in checks.items():
        axes.plot([step, step], [low, high], color=INK, linewidth=1)
    losses = [loss for loss, _, _ in checks.values()]
    dotted: Any = {"color": INK, "markersize": 4, "linewidth": 1, "label": "held-out loss"}
    axes.plot(list(checks), losses, "o:", **dotted)


def _f1_line(axes: Axes, place: int, key: str, row: dict[str, float]) -> None:
    wire = key == "wire"
    colour = ACCENT if wire else CONTROL if key in CONTROLS else INK
    text = _text_colour(key)
    weight = "bold" if wire else "normal"
    axes.plot(
        [row["f1_low"], row["f1_high"]],
        [place, place],
        color=colour,
        linewidth=3 if wire else 1.6,
        solid_capstyle="round",
    )
    axes.plot([row["f1"]], [place], "o", color=colour, markersize=7 if wire else 5)
    axes.annotate(
        f"{row['f1']:.1f}",
        (row["f1_high"], place),
        (7, 0),
        textcoords="offset points",
        va="center",
        color=text,
        weight=weight,
        annotation_clip=False,
    )


def _text_colour(key: str) -> str:
    return ACCENT if key == "wire" else MUTED if key in CONTROLS else INK
