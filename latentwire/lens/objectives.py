"""The objectives of a lens: small functions, each tested against a value worked by hand.

All are in nats or free of unit, smaller is better, and all means are over rows first, so that two
processes with half of the rows each give together what one gives with all of them.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from latentwire.lm import kl_divergence


def scaled_mse(
    made: Float[Tensor, "b d"], true: Float[Tensor, "b d"], scale: float
) -> Float[Tensor, " b"]:
    """Squared distance of two vectors that are both divided by `scale` first. With the usual norm
    as scale it does not depend on the layer; with the spread of the activations its mean is
    1 - FVE."""
    return ((made - true) / scale).square().sum(-1)


def next_token_kl(
    original: Float[Tensor, "b v"], swapped: Float[Tensor, "b v"]
) -> Float[Tensor, " b"]:
    """KL(original || swapped) of next-token distributions given as logits: what the model loses by
    the swap, weighed by what it believed without it. Gradients flow to `swapped` alone."""
    return kl_divergence(original.detach(), swapped)


def warm_start(log_probs: Float[Tensor, "b n"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, " b"]:
    """Cross-entropy of a given explanation, in nats per token."""
    return -_row_mean(log_probs, mask)


def group_advantages(rewards: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """The advantage of each of k samples over its group, in standard deviations of the group (GRPO:
    Shao et al. 2024, arXiv 2402.03300); all 0 where a group's rewards are equal."""
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / (rewards.std(1, correction=0, keepdim=True) + 1e-6)


def policy_gradient(
    log_probs: Float[Tensor, "b n"], advantages: Float[Tensor, " b"], mask: Bool[Tensor, "b n"]
) -> Float[Tensor, " b"]:
    """GRPO's objective for samples that are used once, right after they were drawn: the ratio to
    the policy that drew them is 1 in value and carries the gradient, so nothing is clipped."""
    ratio = (log_probs - log_probs.detach()).exp()
    return -_row_mean(ratio * advantages[:, None], mask)


def k3(
    log_probs: Float[Tensor, "b n"], reference: Float[Tensor, "b n"], mask: Bool[Tensor, "b n"]
) -> Float[Tensor, " b"]:
    """Estimate of KL(policy || reference) per token from samples of the policy: r - log r - 1 with
    r = reference / policy (Schulman 2020, "Approximating KL divergence"); never negative."""
    difference = reference.detach() - log_probs
    return _row_mean(difference.exp() - difference - 1, mask)


def _row_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over each row's real tokens; 0 for a row without any."""
    return (values * mask).sum(1) / mask.sum(1).clamp_min(1)
