"""One optimizer step: a loss in one or several parts, its gradient over all processes, AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from latentwire.lm import gradient_checkpointing
from latentwire.train import parallel
from latentwire.train.settings import LoopConfig, Session

Loss = Callable[[int], tuple[Tensor, Mapping[str, Tensor | float]]]
"""loss(step) -> (scalar to minimise, figures to log). A figure with a gradient is an objective.
Parts of a step are weighted by the figure "count" if there is one, else by "tokens", how many
targets there are, else alike; "waited" is the seconds that making the batch took."""
ADDED = ("tokens", "waited")
"""Figures that are sums over the parts of a step; all others are means."""


def update(
    step: int,
    parameters: Mapping[str, Tensor],
    loss: Loss,
    optimizer: Optimizer,
    config: LoopConfig,
    session: Session,
    checking: bool,
) -> dict[str, float]:
    """One step; its figures, with gradient norms by part and by objective where it is checked.
    Raises FloatingPointError, before the update, where loss or gradient is not finite."""
    tensors = list(parameters.values())
    for group in optimizer.param_groups:
        group["lr"] = config.lr * group["rate"] * _schedule(step, config)
    optimizer.zero_grad()
    sums, norms = _backward(step, loss, tensors, session, checking)
    sums = parallel.mean(sums)
    count = sums.pop("count")
    figures = {n: v if n in ADDED else v / count for n, v in sums.items()}
    if "tokens" in figures:
        figures["tokens"] *= parallel.world()
    if not math.isfinite(figures["loss"]):
        wrong = [name for name, v in figures.items() if name != "loss" and not math.isfinite(v)]
        of = f" ({', '.join(wrong)})" if wrong else ""
        raise FloatingPointError(f"loss is {figures['loss']} at step {step}{of}")
    parallel.average_gradients(tensors)
    for tensor in tensors:
        assert tensor.grad is not None
        tensor.grad /= count
    norms |= _part_norms(parameters) if checking else {}
    norm = torch.nn.utils.clip_grad_norm_(tensors, config.clip)
    if not torch.isfinite(norm):
        wrong = [name for name, of in _part_norms(parameters).items() if not math.isfinite(of)]
        parts = ", ".join(name.removeprefix("grad.") for name in wrong)
        raise FloatingPointError(f"gradient of {parts} is {norm} at step {step}")
    optimizer.step()
    return {"loss": figures.pop("loss"), "grad_norm": norm.item(), **figures, **norms}


def _backward(
    step: int, loss: Loss, tensors: list[Tensor], session: Session, checking: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """Leave in the tensors the gradient of all parts, each counted by its tokens; figures, counted
    so too, with the count itself, and the norms of the objectives of the first part."""
    sums: dict[str, float] = {"count": 0.0}
    norms: dict[str, float] = {}
    parts, bf16 = session.gradient_accumulation, session.mixed_precision == "bf16"
    for index in range(parts):
        precision = torch.autocast(tensors[0].device.type, torch.bfloat16, enabled=bf16)
        recompute = gradient_checkpointing(session.gradient_checkpointing)
        with parallel.part(index, parts), precision, recompute:
            value, found = loss(step)
        if not value.requires_grad:
            raise ValueError(
                "the loss reaches none of the trained parameters; check what is detached"
            )
        if checking and index == 0:
            norms = _objective_norms(found, tensors)
        found = dict(found)
        count = float(found.pop("count", found.get("tokens", 1.0)))
        (value * count).backward()
        sums["count"] += count
        for name, figure in {"loss": value, **found}.items():
            plain = figure.item() if isinstance(figure, Tensor) else float(figure)
            sums[name] = sums.get(name, 0.0) + plain * (1.0 if name in ADDED else count)
    return sums, norms


def _objective_norms(
    figures: Mapping[str, Tensor | float], tensors: list[Tensor]
) -> dict[str, float]:
    """Gradient norm of each objective alone, before its weight; leaves no gradient behind."""
    found = {}
    for name, value in figures.items():
        if isinstance(value, Tensor) and value.requires_grad:
            of = torch.autograd.grad(value, tensors, retain_graph=True, allow_unused=True)
            found[f"grad_of.{name}"] = _norm([g for g in of if g is not None])
    return found


def _part_norms(parameters: Mapping[str, Tensor]) -> dict[str, float]:
    """Gradient norm of each part."""
    gradients = {n: t.grad for n, t in parameters.items() if t.grad is not None}
    return {f"grad.{part}": _norm(list(own.values())) for part, own in by_part(gradients).items()}


def by_part(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Tensors by the part that they belong to: the first two words of their names."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parts.setdefault(".".join(name.split(".")[:2]), {})[name] = tensor
    return parts


def _norm(gradients: list[Tensor]) -> float:
    return torch.nn.utils.get_total_norm(gradients).item() if gradients else 0.0


def _schedule(step: int, config: LoopConfig) -> float:
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))
