"""Draws what all plots share, and turns a figure into SVG text that stands inside an HTML page.

Colours are CSS variables of the page, so that one drawing serves light, dark and print. Text stays
text: it can be searched, and it is set in the reader's own font. Figures are narrow, because on a
telephone they are scaled down and their text with them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any, Literal

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 4.2
"""Inches, 72 SVG units each."""

# Matplotlib knows no CSS variables: it draws with these colours, and each is replaced afterwards.
INK, MUTED, ACCENT, LINE, CONTROL = (f"#00000{i}" for i in range(1, 6))
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    ACCENT: "--accent",
    LINE: "--line",
    CONTROL: "--control",
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar sign in a name is one
    "font.family": "sans-serif",
    "font.size": 8.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
}


def frame(axes: Axes, grid: Literal["x", "y"]) -> None:
    """Removes box and ticks, and draws grid lines that cross one axis."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    axes.grid(axis=grid, linewidth=0.6)


def end_label(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    """Writes a line's last value beside its end."""
    axes.annotate(
        text,
        (x, y),
        (4, 0),
        textcoords="offset points",
        va="center",
        color=colour,
        weight="bold",
        annotation_clip=False,
    )


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Moves ascending places as little as can be (least squares) until no two are closer than the
    gap: isotonic regression of what is left when the gaps are taken out."""
    blocks: list[tuple[float, int]] = []
    for i, place in enumerate(places):
        mean, count = place - i * gap, 1
        while blocks and blocks[-1][0] > mean:
            other, more = blocks.pop()
            mean, count = (mean * count + other * more) / (count + more), count + more
        blocks.append((mean, count))
    flat = [mean for mean, count in blocks for _ in range(count)]
    return [mean + i * gap for i, mean in enumerate(flat)]


def svg_of(figure: Figure, prefix: str, label: str) -> Markup:
    """The figure as one <svg> element: no prologue, no address, ids unique in the page."""
    drawn = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": prefix}):
        figure.savefig(drawn, format="svg", transparent=True, metadata=nothing)
    svg = drawn.getvalue()
    svg = svg[svg.index("<svg") :]
    # Inside HTML both namespaces are implied.
    svg = re.sub(r'\s(xmlns(:xlink)?|width|height|version)="[^"]*"', "", svg.partition(">")[0]) + (
        ">" + svg.partition(">")[2]
    )
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    begin = Markup('<svg role="img" aria-label="{}"').format(label)
    return begin + Markup(svg.removeprefix("<svg"))
