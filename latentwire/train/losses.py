"""Losses: small functions, each tested against a value worked by hand."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentwire.lm import kl_divergence


def answer_loss(log_probs: Float[Tensor, "b n"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, ""]:
    """Cross-entropy in nats per real target token."""
    return -(log_probs * mask).sum() / mask.sum()


def distillation(
    teacher: Float[Tensor, "b n v"], student: Float[Tensor, "b n v"], mask: Bool[Tensor, "b n"]
) -> Float[Tensor, ""]:
    """KL(teacher || student) of next-token distributions, in nats per real target token
    (Hinton et al. 2015, arXiv 1503.02531). Gradients flow to the student alone."""
    divergence = kl_divergence(teacher.detach(), student)
    return (divergence * mask).sum() / mask.sum()


def token_loss(logits: Float[Tensor, "k v"], targets: Int[Tensor, " k"]) -> Float[Tensor, ""]:
    """Cross-entropy in nats per token of logits without padding."""
    return torch.nn.functional.cross_entropy(logits.float(), targets)
