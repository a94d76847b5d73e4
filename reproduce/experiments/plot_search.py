"""The table and the plot of search.py's result: by how much seek is above each of its controls.

python reproduce/experiments/plot_search.py     # prints Markdown, writes docs/search.svg
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from latentwire.report.comparison import gap
from latentwire.report.tables import percent

HERE = Path(__file__).parent
INK, GRID = "#768390", "#76839055"
"""Readable on white and on black."""
CONTROLS = {
    "greedy": ("greedy", "#768390", "o"),
    "random_sign": ("sign tossed", "#bc4c00", "s"),
    "best_of_n": ("best of N, equal tokens", "#2f81f7", "D"),
}
OFFSETS = (0.22, 0, -0.22)
ARMS = ("greedy", "seek", "random_sign", "best_of_n", "pass_at_k")


def table(cells: dict[str, dict]) -> str:
    """Accuracies, paired differences with 95% intervals, and the share of seek's gain over greedy
    that the search with tossed signs has as well."""
    head = ["greedy", "seek", "sign tossed", "best of N", "pass@K", "tokens: seek, tossed, N"]
    head += [f"seek minus {label.split(',')[0]}" for label, *_ in CONTROLS.values()]
    lines = [["model, task, reward", "n", *head, "share of the gain that tossed signs have"]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for name, cell in cells.items():
        arms, gains = cell["arms"], cell["differences"]
        tokens = ", ".join(f"{arms[k]['tokens']:.0f}" for k in ARMS[1:4])
        gain, tossed = gains["greedy"]["mean"], cell["random_sign minus greedy"]["mean"]
        row = [name, str(cell["n"]), *(percent(arms[arm]["accuracy"]) for arm in ARMS), tokens]
        row += [gap(gains[control], "") for control in CONTROLS]
        lines.append([*row, f"{tossed / gain:.0%}" if gain > 0 else "no gain"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(axes, title: str, cells: dict[str, dict]) -> None:
    """One model and task: for each reward seek minus each control, with 95% intervals."""
    for offset, (control, (label, colour, marker)) in zip(OFFSETS, CONTROLS.items(), strict=True):
        gains = [cell["differences"][control] for cell in cells.values()]
        means = [100 * gain["mean"] for gain in gains]
        sides = [[100 * abs(g[end] - g["mean"]) for g in gains] for end in ("low", "high")]
        heights = [offset - row for row in range(len(gains))]
        axes.errorbar(
            means, heights, xerr=sides, fmt=marker, color=colour, label=f"seek minus {label}",
            markersize=4, elinewidth=1, capsize=2,
        )  # fmt: skip
    n = min(cell["n"] for cell in cells.values())
    axes.set_yticks([-row for row in range(len(cells))], list(cells))
    axes.set_title(f"{title}, {n} problems", fontsize=10, color=INK)
    axes.set_xlabel("points of accuracy (95% interval)", color=INK)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.tick_params(colors=INK)
    axes.spines[:].set_color(GRID)
    axes.set_facecolor("none")


def main() -> None:
    panels: dict[str, dict[str, dict]] = {}
    found = json.loads((HERE / "search.json").read_text())["cells"]
    print(table(found))
    for name, cell in found.items():
        title, _, reward = name.rpartition(", ")
        panels.setdefault(title, {})[reward] = cell
    plt.rcParams |= {"svg.hashsalt": "latentwire", "svg.fonttype": "none", "font.size": 9}
    figure, rows = plt.subplots(1, len(panels), figsize=(8.4, 3.2), sharex=True, squeeze=False)
    for axes, (title, cells) in zip(rows[0], panels.items(), strict=True):
        draw(axes, title, cells)
    handles = rows[0][0].get_legend_handles_labels()
    figure.legend(*handles, loc="lower center", ncols=3, frameon=False, labelcolor=INK)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    out = HERE.parent.parent / "docs" / "search.svg"
    figure.savefig(out, metadata={"Date": None}, transparent=True)


if __name__ == "__main__":
    main()
