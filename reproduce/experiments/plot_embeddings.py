"""The table and plot of embeddings.py's results: F1 after each change of a passage's embeddings.

python reproduce/experiments/plot_embeddings.py     # prints Markdown, writes docs/embeddings.svg
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
INK, GRID = "#768390", "#76839055"
"""Readable on white and on black."""
READERS = {"smollm2-135m": ("#bc4c00", "s", 0.18), "gemma3-270m": ("#2f81f7", "o", -0.18)}


def percent(row: dict[str, float], *fields: str) -> str:
    """A mean with its 95% interval, in percent."""
    mean, low, high = (f"{100 * row[field]:.0f}" for field in fields)
    return f"{mean} ({low} to {high})"


def table(found: dict[str, dict]) -> str:
    """F1, unchanged minus it on the same questions, the share of first tokens that are right, and
    the cosine to the nearest token with the share of tokens that are the nearest to themselves."""
    columns = ("F1", "unchanged minus it", "first token", "cosine, itself")
    lines = [["", *(f"{name}: {column}" for name in found for column in columns)]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for change in next(iter(found.values()))["rows"]:
        line = [change]
        for result in found.values():
            row, lost = result["rows"][change], result["unchanged minus"].get(change)
            near = f"{row['cosine']:.2f}, {100 * row['token']:.0f}" if "cosine" in row else ""
            line += [percent(row, "f1", "f1_low", "f1_high")]
            line += [percent(lost, "mean", "low", "high") if lost else ""]
            line += [f"{100 * row['first1']:.0f}", near]
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    found = {n: json.loads((HERE / f"embeddings-{n}.json").read_text()) for n in READERS}
    print(table(found))
    plt.rcParams |= {"svg.hashsalt": "latentwire", "svg.fonttype": "none", "font.size": 9}
    figure, axes = plt.subplots(figsize=(8.4, 5.6))
    for name, (colour, marker, offset) in READERS.items():
        rows = found[name]["rows"]
        mean = [100 * row["f1"] for row in rows.values()]
        ends = ("f1_low", "f1_high")
        sides = [[100 * abs(r["f1"] - r[end]) for r in rows.values()] for end in ends]
        places = [offset - place for place in range(len(rows))]
        axes.errorbar(
            mean, places, xerr=sides, fmt=marker, color=colour, label=name,
            markersize=4, elinewidth=1, capsize=2,
        )  # fmt: skip
        axes.axvline(mean[0], color=colour, linewidth=0.8)
        axes.axvline(mean[-1], color=colour, linewidth=0.8, linestyle=":")
        axes.set_yticks([-place for place in range(len(rows))], list(rows))
    axes.set_xlabel("F1, % (95% interval); lines: unchanged, dotted: no text", color=INK)
    axes.grid(color=GRID, linewidth=0.6)
    axes.tick_params(colors=INK)
    axes.spines[:].set_color(GRID)
    axes.set_facecolor("none")
    figure.legend(loc="lower left", frameon=False, labelcolor=INK)
    figure.tight_layout()
    path = HERE.parent.parent / "docs" / "embeddings.svg"
    figure.savefig(path, metadata={"Date": None}, transparent=True)


if __name__ == "__main__":
    main()
