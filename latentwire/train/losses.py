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
