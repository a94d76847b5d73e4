"""Says in words what a run of seek shows, and makes the rows of its table.

Comparisons rest on intervals of paired differences (comparison.py), never on means.

    print(*verdict(results), sep="\\n")
    rich.print(seek_table(results))
"""

from __future__ import annotations

from typing import Any

from rich.table import Table

from latentwire.report.comparison import DIFFERENCES, gap, points, sign, too_few
from latentwire.report.folder import expect
from latentwire.report.tables import percent, terminal_table

ARMS = ("greedy", "seek", "random_sign", "best_of_n", "pass_at_k")
"""The order in which arms are shown."""

COLUMNS = ("method", "accuracy, %", "tokens", "seek minus it")

FEW = 300
"""On fewer problems the verdict ends with how wide the intervals are."""

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
    "differences": DIFFERENCES,
    "reroll": {"changed": int, "of": int},
    "flips": [float],
    "curves": {"*": [{"tokens": float, "accuracy": float}]},
    "config?": {},
}
"""The shape of results.json, as `folder.expect` takes it."""


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
    """True where the reward knows the gold answer."""
    return "exact" in results["reward"]


def helps(results: dict[str, Any]) -> bool | None:
    """True where seek is better than greedy, random sign and best of N, each by the interval of the
    difference, with no more tokens than the last two; False where it is not better than greedy;
    None between, where one was not run, or on too few problems."""
    if _too_few(results):
        return None
    better = {k: d["low"] > 0 for k, d in results["differences"].items()}
    if not better.get("greedy", True):
        return False
    needed = ("greedy", "random_sign", "best_of_n")
    if not all(better.get(k) and k in results["arms"] for k in needed):
        return None
    ours, *theirs = (results["arms"][k]["tokens"] for k in ("seek", "best_of_n", "random_sign"))
    return ours <= (1 + EQUAL) * min(theirs) or None


def verdict(results: dict[str, Any]) -> list[str]:
    """The results in words: greedy, oracle, best of N, random sign, repeated ratings, failures, and
    how wide the intervals are. What does not apply is left out, and on too few problems every
    comparison."""
    arms(results)
    judged = (_greedy, _oracle, _best_of_n, _random_sign)
    parts = (_cut_off, *((_too_few,) if _too_few(results) else judged), _reroll, _failures, _few)
    return [sentence for part in parts if (sentence := part(results))]


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
        [name(k, a), accuracy(a), f"{a['tokens']:,.0f}", gap(gaps[k], "") if k in gaps else ""]
        for k, a in arms(results).items()
    ]


def accuracy(arm: dict[str, Any], unit: str = "") -> str:
    """Accuracy as percent with its 95% interval: 8.0 (3.0 to 14.0)."""
    return f"{percent(arm['accuracy'])}{unit} ({percent(arm['low'])} to {percent(arm['high'])})"


def _against(results: dict[str, Any], key: str, other: str) -> tuple[int | None, str]:
    """Compares seek with an arm: 1, -1 or 0 where it is better, worse or neither, None where that
    is unknown, and the words for it, which follow "Seek" and lack their full stop."""
    found, gain = results["arms"], results["differences"].get(key)
    if gain is None or key not in found:
        return None, f"may or may not be better than {other}, which was not run"
    better = sign(gain)
    words = {1: "is better", -1: "is worse", 0: "is not shown to be better"}[better]
    return better, f"{words} than {other}, {accuracy(found[key], '%')}: a difference of {gap(gain)}"


def _too_few(results: dict[str, Any]) -> str | None:
    return too_few(results["n"], "problems")


def _cut_off(results: dict[str, Any]) -> str | None:
    finished = results["arms"]["seek"].get("finished", 1.0)
    if finished >= 0.5:
        return None
    return (
        f"Only {finished:.0%} of the answers are complete; the others were cut off at their token "
        "limit. Allow more tokens per answer before reading anything into these accuracies."
    )


def _greedy(results: dict[str, Any]) -> str:
    own = accuracy(results["arms"]["seek"], "%")
    return f"Seek, at {own}, {_against(results, 'greedy', 'the greedy answer')[1]}."


def _oracle(results: dict[str, Any]) -> str | None:
    if not is_oracle(results):
        return None
    oracle = (
        f"The reward {results['reward']} knows the gold answer. This run is therefore an oracle: "
        "it shows what a search can reach at most, and is to be compared with pass@K"
    )
    most = results["arms"].get("pass_at_k")
    if most is None:
        return f"{oracle}, which was not run."
    named = name("pass_at_k", most).removesuffix(" (oracle)")
    if "pass_at_k" not in results["differences"]:  # results of an earlier version
        return f"{oracle} (here {named}, {accuracy(most, '%')})."
    return f"{oracle}. Seek {_against(results, 'pass_at_k', named)[1]}."


def _best_of_n(results: dict[str, Any]) -> str:
    found = results["arms"]
    arm = found.get("best_of_n", {})
    named = f"the {name('best_of_n', arm)} samples by the same reward"
    better, words = _against(results, "best_of_n", named)
    if better is None:
        return f"Seek {words}."
    ours, theirs = found["seek"]["tokens"], arm["tokens"]
    if abs(ours - theirs) <= EQUAL * theirs:
        return f"Seek {words}. Both took about {ours:,.0f} tokens per problem."
    more = "more" if ours > theirs else "fewer"
    return f"Seek {words}. Seek took {more} tokens per problem: {ours:,.0f} against {theirs:,.0f}."


def _random_sign(results: dict[str, Any]) -> str:
    named = "the random-sign control (the same steps, each with the sign of the reward drawn)"
    better, words = _against(results, "random_sign", named)
    meaning = {
        1: "The direction of the reward's gradient helps",
        -1: "The direction of the reward's gradient does harm",
        0: "It is not shown that the direction of the reward's gradient matters",
        None: "Whether the direction of the reward's gradient matters is unknown",
    }[better]
    if better is None:
        return f"Seek {words}. {meaning}."
    ours, theirs = (results["arms"][k]["tokens"] for k in ("seek", "random_sign"))
    if ours > (1 + EQUAL) * theirs:
        return (
            f"Seek {words}. Seek took more tokens per problem, {ours:,.0f} against {theirs:,.0f}, "
            "and so tried more answers: this does not isolate the direction of the gradient."
        )
    return f"Seek {words}. {meaning}."


def _reroll(results: dict[str, Any]) -> str:
    changed, of = results["reroll"]["changed"], results["reroll"]["of"]
    if not of:
        return "No first answer was rated twice, so whether ratings are stable is unknown."
    if not changed:
        return (
            f"The reward is stable: rated a second time, all {of} first answers kept their rating."
        )
    return (
        f"The reward is not stable: rated a second time, {changed} of {of} first answers got "
        "another rating, so a part of any gain may come from rating more often."
    )


def _failures(results: dict[str, Any]) -> str | None:
    if not results["failures"]:
        return None
    return (
        f"{results['failures']} of {results['n']} searches failed. The best answer that each had "
        "until then counts as its answer."
    )


def _few(results: dict[str, Any]) -> str | None:
    n, seek = results["n"], results["arms"]["seek"]
    if n >= FEW:
        return None
    wide = f"With {n} problem{'s' * (n != 1)} the intervals are wide: seek's accuracy lies between "
    wide += f"{percent(seek['low'])}% and {percent(seek['high'])}%"
    if gain := results["differences"].get("greedy"):
        wide += f", its gain over greedy between {points(gain['low'])} and {points(gain['high'])}"
        wide += " points"
    return f"{wide}."
