"""Says in words what the results of a wire show.

Comparisons rest on paired differences with their intervals, never on means alone, and name what the
wire fails to beat.

    print(*verdict(results), sep="\\n")
"""

from __future__ import annotations

from typing import Any

from latentwire.report.comparison import difference, gap, sign, unjudged
from latentwire.report.tables import (
    CONTROLS,
    CUTS,
    conditions,
    duration,
    interval,
    name,
    percent,
    share,
    shown,
)


def reads_latents(results: dict[str, Any]) -> bool | None:
    """True where the wire's F1 is above that of every control, by the interval of the paired
    difference; False where it is not; None where that is unknown because the wire or a control was
    not evaluated, on too few questions, or without paired differences."""
    rows = conditions(results)
    if "wire" not in rows or unjudged(results):
        return None
    if any(sign(gain) < 1 for gain in _gains(results).values()):
        return False
    return True if len(_gains(results)) == len(CONTROLS) else None


def verdict(results: dict[str, Any]) -> list[str]:
    """The results in words, one sentence or two an item: controls, text cut to the same size,
    retention, bytes, time and cache, replay of raw embeddings. An item whose figures are missing is
    left out, except the first; comparisons are left out where there are too few questions or no
    paired differences."""
    refused = unjudged(results)
    cuts = [c for c in CUTS if c in shown(results)]
    judged = [refused] if refused else [_controls(results), *(_against(results, c) for c in cuts)]
    items = (
        *judged,
        _retention(results),
        _bytes(results),
        _speed(results),
        _replay(results),
    )
    return [item for item in items if item]


def joint_verdict(scores: dict[str, Any]) -> str:
    """States what several readers of the same messages score together."""
    return (
        f"Together, every candidate scored by all readers: F1 {interval(scores, 'f1', '%')}. They "
        f"agree on {interval(scores, 'agreement', '%')} of the answers; an oracle that picks the "
        f"best of them has F1 {interval(scores, 'oracle_f1', '%')}."
    )


def _gains(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The wire's difference to each control that was evaluated beside it."""
    rows = conditions(results)
    return {c: gain for c in CONTROLS if c in rows and (gain := difference(results, c))}


def _controls(results: dict[str, Any]) -> str:
    rows, gains, reads = conditions(results), _gains(results), reads_latents(results)
    if reads is None:
        absent = ["wire"] * ("wire" not in rows) + [c for c in CONTROLS if c not in gains]
        absent = _and([name(key) for key in absent])
        return f"Whether this wire reads its latents is unknown: there are no results for {absent}."
    compared = {c: gain for c, gain in gains.items() if reads or sign(gain) < 1}
    gaps = _and([f"{name(c)} by {gap(gain, signed=not reads)}" for c, gain in compared.items()])
    f1 = interval(rows["wire"], "f1", "%")
    if reads:
        return f"This wire reads its latents: its F1 of {f1} is above {gaps}."
    return (
        f"This wire is not shown to read its latents: its F1 of {f1} differs from {gaps}; it must "
        "be above all controls."
    )


def _against(results: dict[str, Any], condition: str) -> str | None:
    rows, gain = conditions(results), difference(results, condition)
    if "wire" not in rows or gain is None:
        return None
    words = {1: "is better than", -1: "is worse than", 0: "is not shown to be better than"}
    wire, cut = (f"{percent(rows[key]['f1'])}%" for key in ("wire", condition))
    return (
        f"It {words[sign(gain)]} the text {name(condition)}: F1 {wire} against {cut}, {gap(gain)}."
    )


def _retention(results: dict[str, Any]) -> str | None:
    rows = conditions(results)
    if results.get("retention") is None:
        return None
    kept = f"It keeps {results['retention']:.0%} of the full text's F1"
    if gain := difference(results, "text"):
        kept += f", a difference of {gap(gain)}"
    if "text" not in rows or "closed_book" not in rows or not rows["text"]["f1"]:
        return f"{kept}."
    # Retention flatters where the reader knows the answers by itself.
    without = rows["closed_book"]["f1"] / rows["text"]["f1"]
    return f"{kept}; with no text at all, {without:.0%} remain."


def _bytes(results: dict[str, Any]) -> str | None:
    message, text = results.get("message_bytes"), results.get("text_bytes")
    if message is None or not text:
        return None
    times = message / text
    if times <= 1:
        than = "smaller than" if times < 1 else "as large as"
        zipped = results.get("zstd_bytes")
        after = "" if zipped is None else f" ({zipped:,.0f} after zstd -19)"
        return f"The message is {than} its text: {message:,.0f} bytes against {text:,.0f}{after}."
    # Only what was measured to shrink is called saved.
    saves = [
        what
        for what, key in (("cache", "kv_ratio"), ("prefill", "ttft_ratio"))
        if results.get(key) is not None and results[key] < 1
    ]
    but = f"this wire saves {_and(saves)}, not bytes" if saves else "this wire does not save bytes"
    return f"The message is {_times(times)} times larger than its text: {but}."


def _speed(results: dict[str, Any]) -> str | None:
    ttft, kv, encoded = (results.get(k) for k in ("ttft_ratio", "kv_ratio", "encode_ttft_ratio"))
    parts = []
    if ttft is not None:
        parts.append(f"the time to first token is {share(ttft)} of the full text's")
        wire, text = results.get("ttft_seconds"), results.get("text_ttft_seconds")
        if wire is not None and text is not None:
            parts[0] += f" ({duration(wire)} against {duration(text)})"
    if kv is not None:
        parts.append(f"the KV cache has {share(kv)} of its bytes")
    if not parts:
        return None
    given = f"With the message at hand, {_and(parts)}."
    if encoded is None:
        return given
    return f"{given} With encoding counted, the time to first token is {share(encoded)}."


def _replay(results: dict[str, Any]) -> str | None:
    nats = results.get("embeds_vs_ids_difference")
    if nats is None:
        return None
    if nats == 0:
        return "Raw embeddings replayed (must equal full text): equal."
    return (
        f"Raw embeddings replayed (must equal full text): log-probabilities differ by up to "
        f"{nats:.2g} nats, so the reader is fed latents in another way than text."
    )


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}" if ratio >= 1.1 else f"{ratio:.3f}"


def _and(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
