"""The policy that a search moves: softmax(head(z)), one token for each state of a span."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentwire.lm import FrozenLM, Sampler, log_softmax
from latentwire.seek.region import Span

ORIGINAL_EPSILONS = (1e-8, 1e-10)
"""Numbers that LatentSeek's published code adds to probabilities, and again inside their
logarithm."""


class Policy:
    """States z [n, d] after the last norm, their optimizer, and the tokens they stand for.

    z and log-probabilities are float32 whatever the model's type: in bfloat16 a step of 0.03
    vanishes beside |z| >= 8, and the gradient dies where p > 0.998. `original` keeps the model's
    type and the published epsilons instead.
    """

    def __init__(
        self,
        lm: FrozenLM,
        z: Float[Tensor, "n d"],
        span: Span,
        tokens: Int[Tensor, " n"],
        lr: float,
        temperature: float = 1.0,
        clip: float | None = None,
        original: bool = False,
    ):
        self.lm, self.span, self.tokens = lm, span, tokens
        self.temperature, self.clip, self.original = temperature, clip, original
        self.z = z.detach().to(lm.dtype if original else torch.float32, copy=True).requires_grad_()
        self._adam = torch.optim.Adam([self.z], lr=lr)

    def logits(self) -> Float[Tensor, "n v"]:
        logits = self.lm.head(self.z.to(self.lm.dtype))
        return logits if self.original else logits.float()

    def loss(
        self, actions: Sequence[Int[Tensor, " n"]], advantages: Sequence[float]
    ) -> Float[Tensor, ""]:
        """-mean over actions of advantage * sum of log p(token | z) over the free tokens."""
        logits = self.logits()
        if self.original:
            to_probs, to_log = ORIGINAL_EPSILONS
            log_probs = (logits.softmax(-1) + to_probs + to_log).log()
        else:
            log_probs = log_softmax(logits, self.temperature)
        total = torch.zeros((), device=logits.device)
        for action, advantage in zip(actions, advantages, strict=True):
            chosen = log_probs.gather(-1, action[:, None])[:, 0]
            total = total - advantage * chosen[self.span.free].sum()
        return total / len(actions)

    def update(self, actions: Sequence[Int[Tensor, " n"]], advantages: Sequence[float]) -> None:
        """One Adam step on z."""
        self._adam.zero_grad()
        self.loss(actions, advantages).backward()
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_([self.z], self.clip)
        self._adam.step()

    @torch.no_grad()
    def choose(self, sampler: Sampler) -> Int[Tensor, " n"]:
        """Sample the span's tokens from z, position by position; fixed ones stay."""
        rows = self.logits().split(1)
        chosen = torch.cat([sampler(row, i).ids for i, row in enumerate(rows)])
        return torch.where(self.span.free, chosen, self.tokens)
