"""What a training disturbs on purpose: small functions of a seed, so that a resumed run draws the
same."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def dropped(latents: Float[Tensor, "m c"], share: float, seed: int) -> Float[Tensor, "m c"]:
    """Whole latents set to 0 with probability `share`, the others as they are (word dropout, Bowman
    et al. 2016, arXiv 1511.06349): an evaluation has no rescaled ones."""
    return latents * (_draws(len(latents), seed, latents) >= share)[:, None]


def halves(
    latents: Float[Tensor, "m c"], seed: int
) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
    """Means of two random halves of a text's latents: two views of it. Of an odd number both have
    the one in the middle."""
    order = _draws(len(latents), seed, latents).argsort()
    size = (len(latents) + 1) // 2
    return latents[order[:size]].mean(0), latents[order[-size:]].mean(0)


def scheduled_sampling(
    targets: Int[Tensor, "b n"],
    mask: Bool[Tensor, "b n"],
    logits: Float[Tensor, "k v"],
    share: float,
    seeds: Sequence[int],
) -> Int[Tensor, "b n"]:
    """Targets as they are fed back, each replaced by the model's own most likely token there with
    probability `share` (Bengio et al. 2015, arXiv 1506.03099; from one pass for all positions:
    Mihaylova and Martins 2019, arXiv 1906.07651). logits: of the real targets; seeds: one for each
    row, which then draws the same in any batch."""
    picks = targets.masked_scatter(mask, logits.argmax(-1))
    draws = torch.stack([_draws(targets.shape[1], seed, targets) for seed in seeds])
    return torch.where(draws < share, picks, targets)


def _draws(count: int, seed: int, like: Tensor) -> Float[Tensor, " n"]:
    """Uniform numbers in [0, 1), the same on every device."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed)).to(like.device)
