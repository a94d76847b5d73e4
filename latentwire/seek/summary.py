"""Summarises the records of a run of seek: accuracies with intervals, tokens, flips, curves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from latentwire.evals.metrics import bootstrap, paired_difference


def rights_of(record: dict[str, Any]) -> dict[str, float]:
    """Each arm's answer as 1.0 where it is right, else 0.0."""
    arms = record["arms"]
    first = arms["seek"]["trace"][:1]
    right = {"greedy": bool(first and first[0]["right"])}
    right |= {name: arm["right"] for name, arm in arms.items()}
    right["pass_at_k"] = any(step["right"] for step in arms["best_of_n"]["trace"])
    return {name: float(value) for name, value in right.items()}


def summary_of(records: Sequence[dict[str, Any]], last: bool) -> dict[str, Any]:
    """Every arm's accuracy with its interval, what it cost, and how far seek is above it. last:
    whether the search gives its last answer, and not the best-rated one."""
    ids = [r["id"] for r in records]
    rights = [rights_of(r) for r in records]
    arms: dict[str, dict[str, float]] = {}
    for name in rights[0]:
        scores = [right[name] for right in rights]
        low, high = bootstrap(scores, ids)
        mean = statistics.fmean(scores)
        arms[name] = {"accuracy": mean, "low": low, "high": high}
        arms[name]["tokens"] = statistics.fmean(_tokens(r, name) for r in records)
        arms[name]["finished"] = statistics.fmean(_finished(r, name) for r in records)
    for name in ("best_of_n", "pass_at_k"):
        draws = [len(r["arms"]["best_of_n"]["trace"]) for r in records]
        arms[name]["samples"] = statistics.fmean(draws)
    found = [right["seek"] for right in rights]
    differences = {
        name: paired_difference(found, [right[name] for right in rights], ids)
        for name in arms
        if name != "seek"
    }
    rerolled = [r["reroll"] for r in records if r["reroll"]["first"] is not None]
    return {
        "n": len(records),
        "failures": sum(r["arms"]["seek"]["failure"] is not None for r in records),
        "arms": arms,
        "differences": differences,
        "reroll": {
            "changed": sum(r["first"] != r["again"] for r in rerolled),
            "of": len(rerolled),
        },
        "flips": _flips(records),
        "curves": {
            name: _curve(records, name, last and name != "best_of_n") for name in records[0]["arms"]
        },
    }


def _trace(record: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The answers behind an arm's result."""
    arms = record["arms"]
    if name == "greedy":
        return arms["seek"]["trace"][:1]
    return arms["best_of_n" if name == "pass_at_k" else name]["trace"]


def _finished(record: dict[str, Any], name: str) -> float:
    """Share of an arm's answers that ended by themselves."""
    trace = _trace(record, name)
    return sum(step["finished"] for step in trace) / max(1, len(trace))


def _tokens(record: dict[str, Any], name: str) -> int:
    return sum(step["tokens"] for step in _trace(record, name))


def _flips(records: Sequence[dict[str, Any]]) -> list[float]:
    """Mean share of the span's tokens that differ from the first answer's, by step."""
    shares: dict[int, list[float]] = {}
    for arm in (r["arms"]["seek"] for r in records):
        if arm["span"]:
            length = arm["span"][1] - arm["span"][0]
            for step in arm["trace"]:
                shares.setdefault(step["step"], []).append(step["flipped"] / length)
    return [statistics.fmean(shares[step]) for step in sorted(shares)]


def _curve(records: Sequence[dict[str, Any]], name: str, last: bool) -> list[dict[str, float]]:
    """Accuracy of the best-rated answer so far (or the last, where the search gives that) against
    mean tokens spent, step by step."""
    steps = max((s["step"] for r in records for s in r["arms"][name]["trace"]), default=0)
    points = []
    for step in range(steps + 1):
        rights, tokens = [], []
        for record in records:
            so_far = [s for s in record["arms"][name]["trace"] if s["step"] <= step]
            best = max(so_far, key=_reward, default=None)
            given = so_far[-1] if last and so_far else best
            rights.append(float(given is not None and given["right"]))
            tokens.append(sum(s["tokens"] for s in so_far))
        points.append({"tokens": statistics.fmean(tokens), "accuracy": statistics.fmean(rights)})
    return points


def _reward(step: dict[str, Any]) -> float:
    return -math.inf if step["reward"] is None else step["reward"]
