"""Losses: small functions, each tested against a value worked by hand."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentwire.lm import entropy, kl_divergence, log_softmax


def distillation(teacher: Float[Tensor, "k v"], student: Float[Tensor, "k v"]) -> Float[Tensor, ""]:
    """KL(teacher || student) of next-token distributions, in nats per token of logits without
    padding (Hinton et al. 2015, arXiv 1503.02531). Gradients flow to the student alone."""
    return kl_divergence(teacher.detach(), student).mean()


def token_loss(logits: Float[Tensor, "k v"], targets: Int[Tensor, " k"]) -> Float[Tensor, ""]:
    """Cross-entropy in nats per token of logits without padding."""
    return torch.nn.functional.cross_entropy(logits.float(), targets)


def leading(mask: Bool[Tensor, "b n"], tokens: int) -> Bool[Tensor, " k"]:
    """Which rows of packed logits, one for each True of the mask, predict one of the first `tokens`
    of an answer."""
    return (mask.cumsum(1) <= tokens)[mask]


def entropy_loss(logits: Float[Tensor, "k v"], floor: float | None) -> Float[Tensor, ""]:
    """Mean entropy of next-token distributions in nats, which makes them sure when minimised; or
    how far each is below `floor`, which keeps them from being too sure (Pereyra et al. 2017, arXiv
    1701.06548)."""
    entropies = entropy(log_softmax(logits))
    return entropies.mean() if floor is None else (floor - entropies).clamp_min(0.0).mean()


def scaled_error(
    made: Float[Tensor, "k d"],
    target: Float[Tensor, "k d"],
    among: Float[Tensor, "j d"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error in units of the target's variance over rows: 1 for a constant at its mean.
    Of hidden states, these are the hints of Romero et al. 2014 (FitNets, arXiv 1412.6550).
    Gradients flow to `made` alone. among: rows whose variance counts in place of the target's."""
    made, target = made.float(), target.detach().float()
    among = target if among is None else among.detach().float()
    return (made - target).square().mean() / _variance(among)


def cosine_distance(made: Float[Tensor, "k d"], target: Float[Tensor, "k d"]) -> Float[Tensor, ""]:
    """One minus the mean cosine of rows. Gradients flow to `made` alone."""
    return 1 - torch.cosine_similarity(made.float(), target.detach().float(), -1).mean()


def moment_error(made: Float[Tensor, "k d"], target: Float[Tensor, "j d"]) -> Float[Tensor, ""]:
    """Squared differences of each channel's mean and deviation over rows, in units of the target's
    variance: the matching of statistics of Li et al. 2017 (arXiv 1701.01036, section 4.2).
    Gradients flow to `made` alone."""
    made, target = made.float(), target.detach().float()
    means = made.mean(0) - target.mean(0)
    deviations = made.std(0, correction=0) - target.std(0, correction=0)
    return (means.square() + deviations.square()).mean() / _variance(target)


def info_nce(
    first: Float[Tensor, "b d"], second: Float[Tensor, "b d"], temperature: float
) -> Float[Tensor, ""]:
    """Cross-entropy in nats of finding each row's partner among all partners by its cosine
    (InfoNCE: van den Oord et al. 2018, arXiv 1807.03748; of two views of each text: SimCSE, Gao et
    al. 2021, arXiv 2104.08821)."""
    unit = torch.nn.functional.normalize
    cosines = unit(first.float(), dim=-1) @ unit(second.float(), dim=-1).T
    return token_loss(cosines / temperature, torch.arange(len(first), device=first.device))


def mean_cosine(vectors: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Mean cosine of all pairs of rows, 0 for one row: what the alarm "sameness" looks at
    (alarms.py), as an objective."""
    unit = torch.nn.functional.normalize(vectors.float(), dim=-1)
    n = len(unit)
    pairs = (unit @ unit.T).triu(1).sum()
    return pairs / max(1, n * (n - 1) // 2)


def _variance(rows: Tensor) -> Tensor:
    """Mean over channels of the variance over rows, at least 1e-6."""
    return rows.var(0, correction=0).mean().clamp_min(1e-6)
