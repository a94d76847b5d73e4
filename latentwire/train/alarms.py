"""Alarms: what goes wrong in a training without any error, seen while it runs.

A check is a dict of figures, measured on held-out examples and on the last step. Each rule reads
the figures that it knows and says in one line what it found, the likely cause and what to try.

    checked                       figures                                        alarm
    training against evaluation   held, evaluated: NLL of the same answers,
                                  mismatch: how far apart answer by answer       layout
                                  forced, free: share of answers that are right  exposure
    answers                       distinct, distinct_gold: first tokens          diversity
    latents                       cosine, cosine_text: between examples          sameness
                                  within, within_text: between those of one      repetition
                                  gap, gap_low: NLL that another's latents cost  reading
                                  scale.PART: size beside the reader's own       scale
    the last step                 grad.PART: gradient norm                       frozen
                                  grad_of.OBJECTIVE: gradient norm               balance
                                  waited, seconds: making the batch, of all      waiting

Where a figure is absent its rule is silent. Alarms stand in metrics.jsonl, in the rows of checks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from latentwire.lm.devices import precise

Figures = Mapping[str, float]
COLLAPSE = ("layout", "diversity", "sameness", "reading", "frozen")
"""Alarms of a run that more steps will not mend."""
PATIENCE = 3
"""Checks in a row that a collapse must stand in before it ends a run."""


class CollapseError(RuntimeError):
    """A run was ended because an alarm of COLLAPSE stood in PATIENCE checks."""


def alarms(figures: Figures) -> dict[str, str]:
    """Name and text of every alarm that one check gives."""
    found = {name: rule(figures) for name, rule in RULES.items()}
    return {name: text for name, text in found.items() if text is not None}


def collapsed(checks: Sequence[Mapping[str, str]]) -> str | None:
    """The text of a collapse that stands in all of the last PATIENCE checks, or None."""
    last = checks[-PATIENCE:]
    if len(last) < PATIENCE:
        return None
    return next((last[-1][n] for n in COLLAPSE if all(n in check for check in last)), None)


def standing(log: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The alarms of each stage's last check in the rows of metrics.jsonl, by "STAGE NAME"."""
    last = {row["stage"]: row["alarms"] for row in log if "alarms" in row}
    return {f"{stage} {name}": text for stage, of in last.items() for name, text in of.items()}


def pairwise_cosine(vectors: Float[Tensor, "n c"]) -> float:
    """Mean cosine of all pairs of rows, n >= 2; rows of zeros count as equal."""
    unit = torch.nn.functional.normalize(precise(vectors), dim=1)
    empty = (unit == 0).all(1)
    cosines = unit @ unit.T + (empty[:, None] & empty[None])
    n = len(vectors)
    return ((cosines.sum() - cosines.diagonal().sum()) / (n * (n - 1))).item()


def within_cosine(texts: Sequence[Float[Tensor, "_ c"]]) -> float:
    """Mean over texts of the cosine between the vectors of one; those of a single vector are left
    out, and the mean of none is 0."""
    cosines = [pairwise_cosine(vectors) for vectors in texts if len(vectors) > 1]
    return sum(cosines) / max(1, len(cosines))


def _layout(f: Figures) -> str | None:
    # Answer by answer: a model that is still bad gives a wrong layout nearly the same mean.
    if f.get("mismatch", 0.0) <= 0.02 + 0.005 * f.get("evaluated", 0.0):
        return None
    return (
        f"training and evaluation differ by {f['mismatch']:.2f} nats per token on the same answers "
        f"({f['held']:.2f}, {f['evaluated']:.2f} in the mean): labels shifted twice, labels on "
        "padding, or an anchor that differs by a space; build both with tasks/qa.py"
    )


def _exposure(f: Figures) -> str | None:
    if not {"forced", "free"} <= set(f) or abs(f["forced"] - f["free"]) <= 0.1:
        return None
    return (
        f"{f['forced']:.0%} of answers are right when teacher-forced, {f['free']:.0%} when "
        "generated: an end of answer that is not learnt, or another prompt at generation; compare "
        "the targets with what decode is given"
    )


def _diversity(f: Figures) -> str | None:
    expected = f.get("distinct_gold", 0)
    if expected < 4 or f.get("distinct", expected) >= expected / 4:
        return None
    return (
        f"answers begin with {f['distinct']:.0f} different tokens where {expected:.0f} are "
        "expected: the same answer for every input; try a lower lr, more warmup, or a lower ratio"
    )


def _sameness(f: Figures) -> str | None:
    if "cosine" not in f or 1 - f["cosine"] >= 0.1 * (1 - f["cosine_text"]):
        return None
    return (
        f"latents of different examples have cosine {f['cosine']:.3f}, their texts "
        f"{f['cosine_text']:.3f}: the latents became one vector; try a lower lr, or a higher rank"
    )


def _repetition(f: Figures) -> str | None:
    if "within" not in f or 1 - f["within"] >= 0.1 * (1 - f["within_text"]):
        return None
    return (
        f"latents of one message have cosine {f['within']:.3f}, the vectors of its text "
        f"{f['within_text']:.3f}: a message repeats one latent; try a lower lr, or more weight on "
        "reconstruction"
    )


def _reading(f: Figures) -> str | None:
    if f.get("gap_low", 1.0) > 0:
        return None
    return (
        f"another example's latents, or words in a lens, cost {f['gap']:.3f} (95% interval from "
        f"{f['gap_low']:.3f}): its own are not read; try more steps, in a wire also a lower ratio "
        "or more weight on distillation"
    )


def _scale(f: Figures) -> str | None:
    wrong = {n: v for n, v in _under(f, "scale.").items() if not 0.5 <= v <= 2}
    if not wrong:
        return None
    name, ratio = max(wrong.items(), key=lambda item: abs(item[1] - 1))
    return (
        f"{name} are {ratio:.2f} times the size of the reader's own: they left the range that it "
        "knows; try a lower lr or a smaller clip"
    )


def _frozen(f: Figures) -> str | None:
    still = [name for name, norm in _under(f, "grad.").items() if norm == 0]
    # LoRA and residuals begin with one factor at zero, which gives the other no gradient at first.
    if not still or f.get("step") == 1:
        return None
    return (
        f"{', '.join(still)} gets no gradient: frozen, detached, or outside of the loss; check "
        "requires_grad and the weights of the objectives"
    )


def _balance(f: Figures) -> str | None:
    norms = {name: norm for name, norm in _under(f, "grad_of.").items() if norm > 0}
    if not norms:
        return None
    (small, least), (large, most) = min(norms.items(), key=_norm), max(norms.items(), key=_norm)
    if most <= 100 * least:
        return None
    return (
        f"the gradient of {large} is {most / least:.0f} times that of {small}, before weights: "
        f"{small} teaches nothing; try a smaller weight on {large}"
    )


def _waiting(f: Figures) -> str | None:
    if f.get("waited", 0.0) <= 0.3 * f["seconds"]:
        return None
    return (
        f"{f['waited'] / f['seconds']:.0%} of the step went into making its batch: data, not the "
        "model, sets the pace; try more rows a step, or a machine with a free core"
    )


RULES: dict[str, Callable[[Figures], str | None]] = {
    "layout": _layout,
    "exposure": _exposure,
    "diversity": _diversity,
    "sameness": _sameness,
    "repetition": _repetition,
    "reading": _reading,
    "scale": _scale,
    "frozen": _frozen,
    "balance": _balance,
    "waiting": _waiting,
}


def _under(figures: Figures, prefix: str) -> dict[str, float]:
    return {n.removeprefix(prefix): v for n, v in figures.items() if n.startswith(prefix)}


def _norm(item: tuple[str, float]) -> float:
    return item[1]
