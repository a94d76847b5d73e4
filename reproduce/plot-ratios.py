"""The plot of README: F1 against the compression ratio, beside baselines, from the kept results of
wire-shared/ratios.py and wire-shared/eval.sh.

python reproduce/plot-ratios.py        # writes docs/ratios-light.svg and docs/ratios-dark.svg
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
RATIOS = (1, 2, 4, 8, 16)
READERS = ("smollm2-135m", "gemma3-270m")
ROWS = {  # name, colour on white, colour on black, marker
    "wire": ("wire", "#0969da", "#58a6ff", "o"),
    "evicted": ("eviction alone", "#bc4c00", "#f0883e", "s"),
    "truncated_tokens": ("truncated to equal tokens", "#6e7781", "#8b949e", "^"),
}
THEMES = {"light": ("#1f2328", "#d0d7de", 1), "dark": ("#e6edf3", "#30363d", 2)}


def draw(axes, reader: str, ratios: dict, whole: dict, theme: str) -> None:
    """One reader: a line with 95% intervals for each condition, and the text it is held against."""
    ink, grid, colour = THEMES[theme]
    for row, style in ROWS.items():
        points = [(r, ratios[f"{r}x"][reader]["rows"].get(row)) for r in RATIOS]
        points = [(r, p) for r, p in points if p]
        x, mean = [r for r, _ in points], [100 * p["f1"] for _, p in points]
        below = [100 * (p["f1"] - p["f1_low"]) for _, p in points]
        above = [100 * (p["f1_high"] - p["f1"]) for _, p in points]
        axes.errorbar(
            x, mean, [below, above], label=style[0], color=style[colour], marker=style[3],
            markersize=4, linewidth=2 if row == "wire" else 1.2, elinewidth=0.8, capsize=2,
        )  # fmt: skip
    for row, name, dashes in (("text", "full text", "-"), ("closed_book", "no text", ":")):
        f1 = 100 * whole["readers"][reader]["rows"][row]["f1"]
        axes.axhline(f1, color=ink, linewidth=1, linestyle=dashes, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(RATIOS, [f"{r}x" for r in RATIOS])
    axes.set(title=reader, ylim=(0, 75), xlabel="tokens in per latent out")
    axes.grid(color=grid, linewidth=0.6)
    axes.tick_params(colors=ink, which="both")
    axes.spines[:].set_color(grid)
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
        text.set_color(ink)


def main() -> None:
    ratios = json.loads((HERE / "wire-shared" / "ratios.json").read_text())
    whole = json.loads((HERE / "wire-shared" / "squad_dev-4x.json").read_text())
    # The same bytes each time: no date, no random ids.
    plt.rcParams |= {"svg.hashsalt": "latentwire", "svg.fonttype": "none", "font.size": 10}
    plt.rcParams |= {"font.family": "sans-serif", "font.sans-serif": ["Arial", "DejaVu Sans"]}
    for theme, (ink, _, _) in THEMES.items():
        figure, both = plt.subplots(1, 2, figsize=(8.4, 3.5), sharey=True, facecolor="none")
        for axes, reader in zip(both, READERS, strict=True):
            axes.set_facecolor("none")
            draw(axes, reader, ratios, whole, theme)
        both[0].set_ylabel("F1, % (95% interval)", color=ink)
        figure.legend(
            *both[0].get_legend_handles_labels(), loc="lower center", ncols=5, frameon=False,
            labelcolor=ink, columnspacing=1.2, handlelength=1.6,
        )  # fmt: skip
        figure.tight_layout(rect=(0, 0.08, 1, 1))
        path = HERE.parent / "docs" / f"ratios-{theme}.svg"
        figure.savefig(path, metadata={"Date": None}, transparent=True)
        plt.close(figure)
        print(path.relative_to(HERE.parent))


if __name__ == "__main__":
    main()
