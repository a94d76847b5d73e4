"""Choose the next token from logits.

A sampler is called once per step as sampler(logits [b, v], step) and returns a Choice. It holds all
its randomness as explicit noise, so that the same noise gives the same tokens through every path
(cached, uncached, checkpointed, one row or a batch).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Noise = Callable[[int, Tensor], Tensor]
"""noise(step, logits [b, v]) -> Gumbel noise [b, v] in float32."""


@dataclass(frozen=True)
class Choice:
    """Token ids [b]; of a differentiable sampler also weights [b, v], one-hot in value and soft in
    gradient."""

    ids: Int[Tensor, " b"]
    weights: Float[Tensor, "b v"] | None = None


@runtime_checkable
class Sampler(Protocol):
    """The protocol that `generate` asks of a sampler: a call, and the temperature of its
    log-probabilities."""

    @property
    def temperature(self) -> float: ...

    def __call__(self, logits: Float[Tensor, "b v"], step: int) -> Choice: ...


@dataclass(frozen=True)
class Greedy:
    """The most probable token."""

    temperature: float = 1.0
    """Temperature of the reported log-probabilities; it does not change the choice."""

    def __call__(self, logits: Float[Tensor, "b v"], step: int) -> Choice:
        return Choice(logits.argmax(-1))


@dataclass(frozen=True)
class Sampled:
    """A sample of softmax(logits / temperature), drawn by the Gumbel-max rule from given noise."""

    noise: Noise
    temperature: float = 1.0

    def __call__(self, logits: Float[Tensor, "b v"], step: int) -> Choice:
        return Choice((logits.float() / self.temperature + self.noise(step, logits)).argmax(-1))


@dataclass(frozen=True)
class StraightThroughGumbel:
    """Gumbel-softmax whose forward value is the hard token and whose gradient is the soft one
    (Jang et al. 2017, arXiv 1611.01144): softmax((logits / temperature + noise) / tau)."""

    noise: Noise
    tau: float = 1.0
    """Sharpness of the relaxation; apart from the sampling temperature."""
    temperature: float = 1.0

    def __call__(self, logits: Float[Tensor, "b v"], step: int) -> Choice:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        noisy = logits.to(dtype) / self.temperature + self.noise(step, logits).to(dtype)
        soft = (noisy / self.tau).softmax(-1)
        ids = noisy.argmax(-1)
        hard = torch.nn.functional.one_hot(ids, soft.shape[-1]).to(dtype)
        return Choice(ids, hard + soft - soft.detach())


def seeded_noise(seeds: Sequence[int], starts: Sequence[int] | None = None) -> Noise:
    """Gumbel noise that depends on (row's seed, step) alone: a row draws the same noise whether it
    stands alone or in a batch, and however its steps are computed. It is drawn where the logits
    are, so that a CPU and each kind of GPU have noise of their own.

    starts: how many steps each row has behind it already, when it goes on from the middle.
    """
    starts = [0] * len(seeds) if starts is None else starts

    def noise(step: int, logits: Tensor) -> Tensor:
        if len(seeds) != len(logits):
            raise ValueError(f"noise was made for {len(seeds)} rows, the batch has {len(logits)}")
        drawn = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
        for row, seed, start in zip(drawn, seeds, starts, strict=True):
            generator = torch.Generator(logits.device).manual_seed((seed << 20) + start + step)
            row.uniform_(generator=generator)
        return drawn.clamp_(1e-20, 1 - 1e-7).log_().neg_().log_().neg_()

    return noise


def sampler_of(temperature: float, seeds: Sequence[int]) -> Sampler:
    """Samples at a temperature, each row by a seed of its own. Below 0.01, where a sample is hardly
    ever another, the most probable token."""
    return Greedy() if temperature < 0.01 else Sampled(seeded_noise(seeds), temperature)


def seed_of(*parts: object) -> int:
    """A seed from what it is for, the same in every process: 32 bits, as `seeded_noise` takes."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=4).digest(), "big")
