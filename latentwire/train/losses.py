"""Losses: small functions, each tested against a value worked by hand."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentwire.lm import kl_divergence


def distillation(teacher: Float[Tensor, "k v"], student: Float[Tensor, "k v"]) -> Float[Tensor, ""]:
    """KL(teacher || student) of next-token distributions, in nats per token of logits without
    padding (Hinton et al. 2015, arXiv 1503.02531). Gradients flow to the student alone."""
    return kl_divergence(teacher.detach(), student).mean()


def token_loss(logits: Float[Tensor, "k v"], targets: Int[Tensor, " k"]) -> Float[Tensor, ""]:
    """Cross-entropy in nats per token of logits without padding."""
    return torch.nn.functional.cross_entropy(logits.float(), targets)


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
    variance = target.var(0, correction=0).mean().clamp_min(1e-6)
    return (means.square() + deviations.square()).mean() / variance
