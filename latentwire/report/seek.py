"""What a run of seek shows: the verdict in words, and the rows of its table.

Better and worse are said of intervals of paired differences, never of means: where an interval
holds 0, nothing was shown.

    print(*verdict(results), sep="\\n")
    rich.print(seek_table(results))
"""

from __future__ import annotations

from typing import Any

from rich.table import Table

from latentwire.report.folder import expect
from latentwire.report.tables import percent, terminal_table

ARMS = ("greedy", "seek", "random_sign", "best_of_n", "pass_at_k")
"""The order in which arms are shown."""

COLUMNS = ("", "accuracy, %", "tokens", "seek minus it")

FEW = 300
"""Below so many problems the verdict ends with how little they can tell."""

EQUAL = 0.1
"""Token counts that differ by no more than this share are called equal."""

ARM = {
    **dict.fromkeys(("accuracy", "low", "high", "tokens"), float),
    "samples?": float,
    "finished?": float,
}
RESULTS = {
    **dict.fromkeys(("model", "task", "reward"), str),
    **dict.fromkeys(("n", "failures"), int),
    "arms": {"greedy": ARM, "seek": ARM, "*": ARM},
    "differences": {"*": dict.fromkeys(("mean", "low", "high"), float)},
    "reroll": {"changed": int, "of": int},
    "flips": [float],
    "curves": {"*": [{"tokens": float, "accuracy": float}]},
    "config?": {},
}
"""What results.json must hold, as `folder.expect` takes it."""


def arms(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The arms in the order of ARMS, then any others. Raises ReportError where something that a
    report needs is missing from the results."""
    found = expect(results, RESULTS, "results")["arms"]
    order = [*(k for k in ARMS if k in found), *(k for k in found if k not in ARMS)]
    return {k: found[k] for k in order}


def name(key: str, arm: dict[str, Any]) -> str:
    """The human name of an arm, with its mean number of samples."""
    samples = f"{arm['samples']:.1f}".removesuffix(".0") if arm.get("samples") else None
    if key == "best_of_n":
        return f"best of {samples or 'N'}"
    if key == "pass_at_k":
        return f"pass@{samples or 'K'} (oracle)"
    return key.replace("_", " ")


def is_oracle(results: dict[str, Any]) -> bool:
    """Whether the reward knows the gold answer."""
    return "exact" in results["reward"]


def helps(results: dict[str, Any]) -> bool | None:
    """True where seek is better than greedy, random sign and best of N, each by the interval of the
    difference, with no more tokens than the last two; False where it is not better than greedy;
    None between, or where one was not run."""
    better = {k: d["low"] > 0 for k, d in results["differences"].items()}
    if not better.get("greedy", True):
        return False
    needed = ("greedy", "random_sign", "best_of_n")
    if not all(better.get(k) and k in results["arms"] for k in needed):
        return None
    ours, *theirs = (results["arms"][k]["tokens"] for k in ("seek", "best_of_n", "random_sign"))
    return ours <= (1 + EQUAL) * min(theirs) or None


def verdict(results: dict[str, Any]) -> list[str]:
    """The results in words: greedy, oracle, best of N, random sign, re-roll, failures, and how much
    so many problems can tell. What does not apply is left out."""
    arms(results)
    of = (_cut_off, _greedy, _oracle, _best_of_n, _random_sign, _reroll, _failures, _few)
    return [said for part in of if (said := part(results))]


def seek_table(results: dict[str, Any]) -> Table:
    """The rows for a terminal of 80 columns."""
    caption = "Brackets: 95% interval. Tokens: mean. Differences in points."
    table = terminal_table(COLUMNS, caption)
    for key, cells in zip(arms(results), arm_rows(results), strict=True):
        table.add_row(*cells, style="bold" if key == "seek" else None)
    return table


def arm_rows(results: dict[str, Any]) -> list[list[str]]:
    """Cells under COLUMNS, one row an arm."""
    gaps = results["differences"]
    return [
        [name(k, a), accuracy(a), f"{a['tokens']:,.0f}", _gap(gaps[k]) if k in gaps else ""]
        for k, a in arms(results).items()
    ]


def accuracy(arm: dict[str, Any], unit: str = "") -> str:
    """Accuracy as percent with its 95% interval: 8.0 (3.0 to 14.0)."""
    return f"{percent(arm['accuracy'])}{unit} ({percent(arm['low'])} to {percent(arm['high'])})"


def _points(share: float) -> str:
    """A difference in points with its sign, zero without."""
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def _gap(difference: dict[str, Any]) -> str:
    mean, low, high = (_points(difference[k]) for k in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def _against(results: dict[str, Any], key: str, other: str) -> tuple[int | None, str]:
    """1, -1 or 0 where seek is better, worse or neither, None where that is unknown; and the
    words that say so, to stand between "Seek" and a full stop."""
    found, gap = results["arms"], results["differences"].get(key)
    if gap is None or key not in found:
        return None, f"may or may not be better than {other}, which was not run"
    sign = (gap["low"] > 0) - (gap["high"] < 0)
    word = {1: "better", -1: "worse", 0: "not shown to be better"}[sign]
    theirs, zero = accuracy(found[key], "%"), "" if sign else ", which holds 0"
    mean, low, high = (_points(gap[k]) for k in ("mean", "low", "high"))
    said = f"is {word} than {other}, {theirs}: {mean} points ({low} to {high}{zero})"
    return sign, said


def _cut_off(results: dict[str, Any]) -> str | None:
    finished = results["arms"]["seek"].get("finished", 1.0)
    if finished >= 0.5:
        return None
    return (
        f"Only {finished:.0%} of the answers ended by themselves; the others were cut off by their "
        "budget. Give more tokens, or read the accuracies as those of cut answers."
    )


def _greedy(results: dict[str, Any]) -> str:
    own = accuracy(results["arms"]["seek"], "%")
    return f"Seek, {own}, {_against(results, 'greedy', 'the greedy answer')[1]}."


def _oracle(results: dict[str, Any]) -> str | None:
    if not is_oracle(results):
        return None
    said = (
        f"The reward, {results['reward']}, knows the gold answer: it is an oracle, and only tells "
        "what a search could reach. To be compared with "
    )
    seek, most = results["arms"]["seek"], results["arms"].get("pass_at_k")
    if most is None:
        return f"{said}pass@K, which was not run."
    where = "overlaps it"
    if seek["low"] > most["high"]:
        where = "lies above it"
    elif seek["high"] < most["low"]:
        where = "lies below it"
    named = name("pass_at_k", most).removesuffix(" (oracle)")
    return f"{said}{named}, {accuracy(most, '%')}: seek's interval {where}."


def _best_of_n(results: dict[str, Any]) -> str:
    found = results["arms"]
    arm = found.get("best_of_n", {})
    named = f"{name('best_of_n', arm)} samples by the same reward"
    sign, said = _against(results, "best_of_n", named)
    if sign is None:
        return f"Seek {said}."
    ours, theirs = found["seek"]["tokens"], arm["tokens"]
    if abs(ours - theirs) <= EQUAL * theirs:
        return f"Seek {said}. Both took about {ours:,.0f} tokens a problem."
    more = "more" if ours > theirs else "fewer"
    return f"Seek {said}. Seek spent {more} tokens: {ours:,.0f} a problem against {theirs:,.0f}."


def _random_sign(results: dict[str, Any]) -> str:
    named = "the random sign (the same steps, the reward's sign tossed)"
    sign, said = _against(results, "random_sign", named)
    so = {
        1: ". The reward's direction helps",
        -1: ". The reward's direction does harm",
        0: ". As far as that can tell, the random sign does as well: it is not shown that the "
        "reward's direction is what helps",
        None: ". Whether the reward's direction is what helps is unknown",
    }
    if sign is None:
        return f"Seek {said}{so[sign]}."
    ours, theirs = (results["arms"][k]["tokens"] for k in ("seek", "random_sign"))
    if ours > (1 + EQUAL) * theirs:
        return (
            f"Seek {said}. But it spent {ours:,.0f} tokens a problem against {theirs:,.0f}, so it "
            "tried more answers, and this does not tell what the reward's direction does."
        )
    return f"Seek {said}{so[sign]}."


def _reroll(results: dict[str, Any]) -> str:
    changed, of = results["reroll"]["changed"], results["reroll"]["of"]
    if not of:
        return "No first answer was rated twice, so whether ratings are stable is unknown."
    if not changed:
        return f"Rated once more without an update, none of {of} first answers changed its rating."
    return (
        f"Rated once more without an update, {changed} of {of} first answers changed their rating: "
        "part of a gain can come from asking again."
    )


def _failures(results: dict[str, Any]) -> str | None:
    if not results["failures"]:
        return None
    return (
        f"{results['failures']} of {results['n']} searches failed; what they had until then counts."
    )


def _few(results: dict[str, Any]) -> str | None:
    n, seek = results["n"], results["arms"]["seek"]
    if n >= FEW:
        return None
    said = f"With {n} problem{'s' * (n != 1)} the intervals are wide: seek's accuracy may be "
    said += f"anything from {percent(seek['low'])}% to {percent(seek['high'])}%"
    if gap := results["differences"].get("greedy"):
        said += f", its gain over greedy {_points(gap['low'])} to {_points(gap['high'])} points"
    return f"{said}."
