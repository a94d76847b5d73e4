"""The values that the port gives back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentwire.lm.prompt import KVPrefix


@dataclass(frozen=True)
class States:
    """One full pass. inputs [l, b, t, d]: what enters each block; final [b, t, d]: after the last
    norm; prefix: the cache of the prompt, its own prefix included."""

    inputs: Float[Tensor, "l b t d"]
    final: Float[Tensor, "b t d"]
    prefix: KVPrefix


def log_softmax(logits: Float[Tensor, "*n v"], temperature: float = 1.0) -> Float[Tensor, "*n v"]:
    """Log-probabilities of every token, in float32 or finer."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return (logits.to(dtype) / temperature).log_softmax(-1)


def token_log_probs(
    logits: Float[Tensor, "*n v"], ids: Int[Tensor, "*n"], temperature: float = 1.0
) -> Float[Tensor, "*n"]:
    """Log-probabilities of these tokens, in nats."""
    return log_softmax(logits, temperature).gather(-1, ids[..., None])[..., 0]


def kl_divergence(p: Float[Tensor, "*n v"], q: Float[Tensor, "*n v"]) -> Float[Tensor, "*n"]:
    """KL(p || q) in nats of two distributions that are given as logits."""
    log_p, log_q = log_softmax(p), log_softmax(q)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@dataclass(frozen=True)
class Generation:
    """Generated rows. ids [b, n] and mask [b, n], True up to and including the stop token;
    log_probs [b, n] of the chosen tokens (0 where masked), differentiable as the sampler is;
    texts: decoded, without stop token or stop string; embeds [b, n, d] as fed back."""

    ids: Int[Tensor, "b n"]
    mask: Bool[Tensor, "b n"]
    log_probs: Float[Tensor, "b n"]
    embeds: Float[Tensor, "b n d"]
    texts: list[str]
