"""Makes the table of kvpress and the wire side by side from the kept answers, and the plots.

    python table.py OUT     # OUT/inputs, OUT/kvpress.jsonl, OUT/latentwire.jsonl

Writes table.json, table.md, peers-light.svg and peers-dark.svg beside this file. F1 is SQuAD's, in
percent; a cell that OUT has not stays in table.json as it is. Intervals are of 95%, by bootstrap
over passages. A difference is the wire's F1 minus a row's on the same questions. A row is held
against the wire on the questions that both have answered.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib
from cells import CELLS, READERS, TUNE, passages_of, read_records

from latentwire.evals.metrics import bootstrap, f1, paired_difference

matplotlib.use("svg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
FIELDS = ("data", "reader", "soft", "ratio")
PACKAGES = ("kvpress", "latentwire")
NAMES = {
    "kvpress/none": "no compression",
    "latentwire/wire": "**wire**",
    "latentwire/scorer": "the wire's scorer alone",
    "latentwire/repetition": "repetition",
    "latentwire/attention": "attention (H2O)",
    "latentwire/key_norm": "key norm",
    "latentwire/random": "random",
    "latentwire/streaming": "streaming",
    "kvpress/kvzip": "KVzip",
    "kvpress/ada_expected_attention": "AdaKV over ExpectedAttention",
    "kvpress/ada_snapkv": "AdaKV over SnapKV",
    "kvpress/expected_attention": "ExpectedAttention",
    "kvpress/snapkv": "SnapKV",
    "kvpress/tova": "TOVA",
    "kvpress/keydiff": "KeyDiff",
    "kvpress/streaming_llm": "StreamingLLM",
    "kvpress/knorm": "Knorm",
    "kvpress/random": "Random",
}
"""Rows in the order of the table; latentwire/text is kvpress/none again, which `agreement` says."""
WIRE, SCORER = "latentwire/wire", "latentwire/scorer"
DRAWN = {  # row: colour on white, colour on black, marker
    "latentwire/wire": ("#0969da", "#58a6ff", "o"),
    "latentwire/scorer": ("#54aeff", "#79c0ff", "."),
    "kvpress/kvzip": ("#bc4c00", "#f0883e", "s"),
    "kvpress/ada_expected_attention": ("#8250df", "#d2a8ff", "D"),
    "kvpress/expected_attention": ("#a475f9", "#8957e5", "v"),
    "kvpress/ada_snapkv": ("#1a7f37", "#3fb950", "P"),
    "kvpress/snapkv": ("#4ac26b", "#238636", "^"),
    "kvpress/streaming_llm": ("#9a6700", "#d29922", "x"),
    "kvpress/tova": ("#6e7781", "#8b949e", "1"),
    "kvpress/keydiff": ("#6e7781", "#8b949e", "2"),
    "kvpress/knorm": ("#6e7781", "#8b949e", "3"),
}
THEMES = {"light": ("#1f2328", "#d0d7de", 0), "dark": ("#e6edf3", "#30363d", 1)}

Answered = dict[tuple[int, str], dict[str, Any]]
"""By passage and question id: F1 and what was held."""


def answered(out: Path) -> dict[tuple, Answered]:
    """All answers with their F1, by (data, reader, soft, ratio, package/row)."""
    questions = {}
    for cell in CELLS.values():
        for reader in READERS:
            for passage in passages_of(out, reader, cell):
                questions[cell.data, reader, passage["passage"]] = passage["questions"]
    rows: dict[tuple, Answered] = defaultdict(dict)
    for package in PACKAGES:
        for r in read_records(out / f"{package}.jsonl"):
            key = r["data"], r["reader"], r["soft"], r["ratio"], f"{package}/{r['row']}"
            asked = questions[r["data"], r["reader"], r["passage"]]
            for question, answer in zip(asked, r["answers"], strict=True):
                score = f1(answer, question["gold"])
                one = {"f1": score, "answer": answer, "slots": r["slots"], "bytes": r["bytes"]}
                rows[key][r["passage"], question["id"]] = one
    return rows


def agreement(text: Answered, none: Answered) -> dict[str, int]:
    """How many answers from the whole text are the same in both packages."""
    both = text.keys() & none.keys()
    return {"same": sum(text[q]["answer"] == none[q]["answer"] for q in both), "of": len(both)}


def summary(row: Answered, ours: dict[str, Answered]) -> dict[str, Any]:
    """F1 and what is held, and the F1 of rows of ours, by name, minus it."""
    asked = list(row)
    scores, passages = [row[q]["f1"] for q in asked], [q[0] for q in asked]
    low, high = bootstrap(scores, passages)
    held = {q[0]: row[q] for q in asked}.values()
    result = {
        "n": len(asked),
        "passages": len(held),
        "f1": sum(scores) / len(scores),
        "f1_low": low,
        "f1_high": high,
        "slots": sum(one["slots"] for one in held) / len(held),
        "bytes": sum(one["bytes"] for one in held) / len(held),
    }
    for name, other in ours.items():
        if row is not other and (both := [q for q in asked if q in other]):
            pair = ([of[q]["f1"] for q in both] for of in (other, row))
            result[f"{name}_minus"] = paired_difference(*pair, [q[0] for q in both])
    return result


def table(rows: dict[tuple, Answered]) -> list[dict[str, Any]]:
    """One block for each data set, reader, soft prompt and ratio."""
    blocks = []
    for data, reader, soft, ratio in dict.fromkeys(key[:4] for key in rows):
        if ratio == 1 or data == TUNE:
            continue
        begun = data, reader, soft
        of = {n: rows[*begun, ratio, n] for n in NAMES if (*begun, ratio, n) in rows}
        text, none = (rows.get((*begun, 1, n), {}) for n in ("latentwire/text", "kvpress/none"))
        wire = of.get(WIRE, {})
        of = {"kvpress/none": {q: a for q, a in none.items() if q in wire}, **of}
        ours = {name.split("/")[1]: of[name] for name in (WIRE, SCORER) if name in of}
        made = {name: summary(row, ours) for name, row in of.items() if row}
        block = dict(zip(FIELDS, (*begun, ratio), strict=True))
        blocks.append({**block, "agreement": agreement(text, none), "rows": made})
    return blocks


def beside_kept(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The blocks in order, with those of table.json whose answers are not in OUT."""
    path = HERE / "table.json"
    kept = json.loads(path.read_text()) if path.exists() else []
    blocks = list({tuple(b[f] for f in FIELDS): b for b in (*kept, *blocks)}.values())
    order = list(dict.fromkeys((cell.data, cell.soft) for cell in CELLS.values()))
    return sorted(blocks, key=lambda b: (order.index((b["data"], b["soft"])), b["ratio"]))


def markdown(blocks: list[dict[str, Any]]) -> str:
    """The blocks of one data set and ratio as one table, a column pair for each reader."""
    parts = []
    for key in dict.fromkeys((b["data"], b["soft"], b["ratio"]) for b in blocks):
        some = [b for b in blocks if (b["data"], b["soft"], b["ratio"]) == key]
        some.sort(key=lambda b: READERS.index(b["reader"]))
        prompt = "with the soft prompt" if key[1] else "without the soft prompt"
        parts.append(f"### {key[0]}, {key[2]}x, {prompt}\n\n{one_table(some)}")
    return "\n\n".join(parts) + "\n"


def one_table(blocks: list[dict[str, Any]]) -> str:
    """Rows by name; F1, the wire minus it, and the kilobytes that are held, for each reader."""
    head = "".join(f" {b['reader']}: F1 | wire minus it | kB held |" for b in blocks)
    lines = [f"| |{head}", "|---|" + "---:|---:|---:|" * len(blocks)]
    for row, name in NAMES.items():
        cells = []
        for b in blocks:
            if (s := b["rows"].get(row)) is None:
                cells += ["", "", ""]
                continue
            gain = s.get("wire_minus")
            cells += [
                f"{100 * s['f1']:.1f} ({100 * s['f1_low']:.1f} to {100 * s['f1_high']:.1f})",
                "{:+.1f} ({:+.1f} to {:+.1f})".format(
                    *(100 * gain[k] for k in ("mean", "low", "high"))
                )
                if gain
                else "",
                f"{s['bytes'] / 1000:,.0f}",
            ]
        if any(cells):
            package = "" if row in (WIRE, "kvpress/none") else f" ({row.split('/')[0]})"
            lines.append(f"| {name}{package} | " + " | ".join(cells) + " |")
    counts = [
        "{}: {} questions on {} passages; from the whole text both packages give the same answer "
        "to {same} of {of}".format(
            b["reader"],
            b["rows"].get(WIRE, {}).get("n", 0),
            b["rows"].get(WIRE, {}).get("passages", 0),
            **b["agreement"],
        )
        for b in blocks
    ]
    return "\n".join(lines) + "\n\n" + ". ".join(counts) + "."


def draw(axes, reader: str, blocks: list[dict[str, Any]], theme: str) -> None:
    """One reader: F1 on SQuAD against the ratio, a line for each row, the wire's with intervals."""
    ink, grid, colour = THEMES[theme]
    of = {b["ratio"]: b["rows"] for b in blocks if b["reader"] == reader}
    for row, style in DRAWN.items():
        points = [(ratio, rows[row]) for ratio, rows in sorted(of.items()) if row in rows]
        if not points:
            continue
        x, mean = [r for r, _ in points], [100 * p["f1"] for _, p in points]
        below = [100 * (p["f1"] - p["f1_low"]) for _, p in points]
        above = [100 * (p["f1_high"] - p["f1"]) for _, p in points]
        axes.errorbar(
            x, mean, [below, above] if row == WIRE else None, label=NAMES[row].strip("*"),
            color=style[colour], marker=style[2], markersize=4,
            linewidth=2 if row == WIRE else 1.1, elinewidth=0.8, capsize=2,
        )  # fmt: skip
    whole = next((rows["kvpress/none"] for rows in of.values() if "kvpress/none" in rows), None)
    if whole:
        axes.axhline(100 * whole["f1"], color=ink, linewidth=1, label="full text")
    axes.set_xscale("log", base=2)
    axes.set_xticks((2, 4, 8, 16), [f"{r}x" for r in (2, 4, 8, 16)])
    axes.set(title=reader, ylim=(0, 75), xlabel="tokens in per slot out")
    axes.grid(color=grid, linewidth=0.6)
    axes.tick_params(colors=ink, which="both")
    axes.spines[:].set_color(grid)
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
        text.set_color(ink)


def plot(blocks: list[dict[str, Any]]) -> None:
    """SQuAD with the soft prompt, the readers that were asked."""
    some = [b for b in blocks if b["data"] == "squad_dev" and b["soft"]]
    readers = [r for r in READERS if r in {b["reader"] for b in some}]
    # The same bytes each time: no date, no random ids.
    plt.rcParams |= {"svg.hashsalt": "latentwire", "svg.fonttype": "none", "font.size": 10}
    plt.rcParams |= {"font.family": "sans-serif", "font.sans-serif": ["Arial", "DejaVu Sans"]}
    for theme, (ink, _, _) in THEMES.items():
        figure, (row,) = plt.subplots(
            1, len(readers), figsize=(8.4, 4.2), sharey=True, squeeze=False, facecolor="none"
        )
        for axes, reader in zip(row, readers, strict=True):
            axes.set_facecolor("none")
            draw(axes, reader, some, theme)
        row[0].set_ylabel("F1, %", color=ink)
        figure.legend(
            *row[0].get_legend_handles_labels(), loc="lower center", ncols=4, frameon=False,
            labelcolor=ink, columnspacing=1.2, handlelength=1.6, fontsize=9,
        )  # fmt: skip
        figure.tight_layout(rect=(0, 0.17, 1, 1))
        path = HERE / f"peers-{theme}.svg"
        figure.savefig(path, metadata={"Date": None}, transparent=True)
        plt.close(figure)


def main() -> None:
    """Write the table in both forms, and the plots."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    blocks = beside_kept(table(answered(out)))
    (HERE / "table.json").write_text(json.dumps(blocks, indent=1) + "\n")
    (HERE / "table.md").write_text(markdown(blocks))
    plot(blocks)
    print(markdown(blocks))


if __name__ == "__main__":
    main()
