"""Judges one condition against another by the paired difference of their scores.

Both answer the same questions, so the interval of the difference tells whether one is better;
whether two intervals overlap does not. An interval that holds 0 shows no difference.

    gain = {"mean": 0.28, "low": 0.22, "high": 0.34}
    sign(gain), gap(gain)       # 1, "+28.0 points (+22.0 to +34.0)"
"""

from __future__ import annotations

from typing import Any

FEWEST = 30
"""The fewest questions that a verdict rests on; a bootstrap of fewer is too narrow."""

DIFFERENCES = {"*": dict.fromkeys(("mean", "low", "high"), float)}
"""The shape of "differences" of results, as `folder.expect` takes it."""


def too_few(n: int | None, what: str) -> str | None:
    """The sentence that refuses a verdict on fewer than FEWEST; None where there are enough."""
    if n is None or n >= FEWEST:
        return None
    counted = what.removesuffix("s") if n == 1 else what
    return f"Too few for a verdict: {n} {counted}, and at least {FEWEST} are needed."


def unjudged(results: dict[str, Any]) -> str | None:
    """The sentence that refuses a verdict on a wire: on too few questions, or where results of an
    earlier version hold no paired differences; None where there is one."""
    if few := too_few(results.get("n"), "questions"):
        return few
    if len(results.get("rows") or {}) < 2 or results.get("differences"):
        return None
    return (
        "No verdict: these results are of an earlier version and hold no paired differences. "
        "Repeat the evaluation in its run folder for them."
    )


def difference(results: dict[str, Any], condition: str) -> dict[str, float] | None:
    """The wire's F1 minus that of a condition, as {"mean", "low", "high"}; None where the results
    hold no such difference, since their two intervals do not tell it."""
    return (results.get("differences") or {}).get(condition)


def sign(gain: dict[str, float]) -> int:
    """1 where a difference is above 0, -1 where it is below, 0 where its interval holds 0."""
    return (gain["low"] > 0) - (gain["high"] < 0)


def points(share: float) -> str:
    """A difference in points with its sign, zero without: +28.0."""
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def gap(gain: dict[str, float], unit: str = " points", signed: bool = True) -> str:
    """A difference in points with its 95% interval: +28.0 points (+22.0 to +34.0)."""
    words = f"{points(gain['mean'])}{unit} ({points(gain['low'])} to {points(gain['high'])})"
    return words if signed else words.replace("+", "")


def lens_verdict(result: dict[str, Any]) -> str:
    """States whether a lens explains more variance than every control does."""
    if few := too_few(result["n"], "activations"):
        return few
    unbeaten = [name for name, gain in result["differences"].items() if sign(gain) < 1]
    if unbeaten:
        names = ", ".join(name.replace("_", " ") for name in unbeaten)
        return (
            f"The lens's FVE is not shown to be above that of {names} ({result['n']} activations)."
        )
    return (
        "The lens's FVE is above that of every control, by the 95% interval of the paired "
        f"difference ({result['n']} activations)."
    )
