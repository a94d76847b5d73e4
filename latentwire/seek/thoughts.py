"""A second strategy, LTPO's: search soft thoughts in the prompt instead of states in the answer.

    Thoughts(lm, reward, ThoughtsConfig(count=8, steps=20))(problems)

`count` soft tokens stand between the question and the answer. Each step tries them with Gaussian
noise, takes the LM's own confidence in what would follow each of them as reward, which costs one
pass and no generation, and moves them along the noise by that confidence: the policy gradient of a
Gaussian, with its 1 / sigma in the step size, so that steps do not grow while the noise decays (the
idea of LTPO, arXiv 2510.04182). One answer is generated from the thoughts that were tried best, and
given if it is rated higher than the greedy one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from latentwire.lm import FrozenLM, Greedy, Prompt, seed_of
from latentwire.seek.answers import prompt_ids
from latentwire.seek.found import Found, Step, best_of, no_room
from latentwire.seek.rewards.base import Reward, attempt_of, rate
from latentwire.seek.rewards.confidence import confidence
from latentwire.tasks.base import Problem
from latentwire.texts import check_least

PLACEHOLDER = "..."
"""Its embedding is where thoughts begin."""


@dataclass(frozen=True)
class ThoughtsConfig:
    """The settings of a search of thoughts."""

    count: int = 8
    """Soft tokens."""
    steps: int = 20
    """Noisy tries, each one pass over the prompt's end."""
    lr: float = 0.03
    """Step size, times the size of an embedding."""
    sigma: float = 0.1
    """Noise, relative to the size of an embedding (root mean square)."""
    decay: float = 0.95
    """Factor of sigma at each step."""
    k: int = 10
    """Top tokens whose probabilities make the confidence."""
    max_new_tokens: int = 1024
    """Answer budget in tokens, exact."""
    update: Literal["reward", "random_sign"] = "reward"
    """random_sign is a control: the same steps with the confidence's sign tossed each time."""
    seed: int = 0
    """Seed of the noise."""

    def __post_init__(self):
        check_least(self, count=1, steps=0, k=2, max_new_tokens=1)
        for name in ("lr", "sigma", "decay"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0")


class Thoughts:
    """Searches soft thoughts for problems; `reward` rates the first answer and the last."""

    def __init__(self, lm: FrozenLM, reward: Reward, config: ThoughtsConfig | None = None):
        self.lm, self.reward, self.config = lm, reward, config or ThoughtsConfig()
        self.start = lm.embed(lm.tokenize(PLACEHOLDER))[:1].float().expand(self.config.count, -1)
        self.scale = float(lm.embed(lm.tokenize(PLACEHOLDER)).float().pow(2).mean().sqrt())

    def __call__(self, problems: Sequence[Problem]) -> list[Found]:
        return [self._search(p) for p in problems]

    @torch.no_grad()
    def _search(self, problem: Problem) -> Found:
        began, config, lm = time.perf_counter(), self.config, self.lm
        prompt = prompt_ids(lm, problem)
        if len(prompt) + config.count + config.max_new_tokens > lm.context_length:
            return no_room(lm, problem, len(prompt), config.max_new_tokens)
        tail = lm.frame.suffix
        before = lm.prefill(Prompt.from_ids(lm, [prompt[: len(prompt) - len(tail)]]))
        generator = torch.Generator().manual_seed(seed_of(config.seed, problem.id))
        thoughts, best, sigma = self.start.clone(), (-2.0, self.start), config.sigma * self.scale
        for step in range(config.steps):
            noise = torch.randn(thoughts.shape, generator=generator).to(lm.device)
            tried = thoughts + sigma * noise
            states = lm.last_hidden(Prompt.of(lm, [[tried]], before))[0]
            value = float(confidence(lm.head(states), config.k).mean())
            best = max(best, (value, tried), key=lambda pair: pair[0])
            tossed = config.update == "random_sign" and seed_of(config.seed, problem.id, step) % 2
            along = config.lr * self.scale * (1 + value) * (-1 if tossed else 1)
            thoughts = thoughts + along * noise
            sigma *= config.decay
        rows = [[tail], [best[1], tail]]
        ids = [self._answer(row, before) for row in rows]
        attempts = [attempt_of(lm, problem, i) for i in ids]
        ratings = rate(self.reward, attempts)
        seconds, trace = (time.perf_counter() - began) / 2, []
        searched = [len(prompt), config.count * (config.steps + 1) + len(tail)]
        for step, (attempt, rating) in enumerate(zip(attempts, ratings, strict=True)):
            value = None if rating.failure else rating.value
            parts = rating.parts | ({"confidence": best[0]} if step and config.steps else {})
            cost = searched[step] + len(attempt.ids) + rating.tokens
            trace.append(Step(step, value, parts, 0, attempt.text, attempt.finished, seconds, cost))
        given = best_of(trace) or trace[0]
        failure = next((r.failure for r in ratings if r.failure), None)
        return Found(problem, given.text, given.reward, tuple(trace), None, "", failure, tuple(ids))

    def _answer(self, row: Sequence[Tensor], before) -> Tensor:
        out = self.lm.generate(
            Prompt.of(self.lm, [row], before), Greedy(), self.config.max_new_tokens
        )
        return out.ids[0][out.mask[0]]
