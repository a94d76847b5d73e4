"""Answers to a batch of prompts that begin as told: all of them continue one shared prefill."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentwire.lm import FrozenLM, Greedy, Prompt, Sampled, Sampler, seeded_noise
from latentwire.tasks.base import Problem


def prompt_ids(lm: FrozenLM, problem: Problem) -> Int[Tensor, " n"]:
    """A problem as one user turn, up to where the answer begins."""
    frame = lm.frame
    return torch.cat([frame.prefix, lm.tokenize(problem.prompt), frame.suffix])


class Answers:
    """Prompts as one cache, up to their last token: the state over that one predicts the first
    answer token.

    temperature: 0 answers greedily; more samples, with noise that a seed and a token's place in the
    answer fix, so that an answer goes on the same way however much of it was given.
    """

    def __init__(
        self, lm: FrozenLM, prompts: Sequence[Int[Tensor, " _"]], temperature: float = 0.0
    ):
        self.lm, self.temperature = lm, temperature
        self.nothing = prompts[0][:0]
        """The head of an answer that has not begun."""
        self._last = [ids[-1:] for ids in prompts]
        with torch.no_grad():
            self._prefix = lm.prefill(Prompt.from_ids(lm, [ids[:-1] for ids in prompts]))

    def sampler(self, seeds: Sequence[int], starts: Sequence[int]) -> Sampler:
        """The sampler of rows that have `starts` tokens behind them."""
        if not self.temperature:
            return Greedy()
        return Sampled(seeded_noise(seeds, starts), self.temperature)

    @torch.no_grad()
    def finish(
        self,
        rows: Sequence[int],
        heads: Sequence[Int[Tensor, " _"]],
        budgets: Sequence[int],
        seeds: Sequence[int],
    ) -> list[Int[Tensor, " _"]]:
        """Each head with at most `budgets` tokens generated after it, its stop token included;
        rows: which prompt each head answers."""
        ids = list(heads)
        going = [i for i, budget in enumerate(budgets) if budget > 0]
        if not going:
            return ids
        prompt = self._prompt([rows[i] for i in going], [heads[i] for i in going])
        sampler = self.sampler([seeds[i] for i in going], [len(heads[i]) for i in going])
        out = self.lm.generate(prompt, sampler, [budgets[i] for i in going])
        for i, new, mask in zip(going, out.ids, out.mask, strict=True):
            ids[i] = torch.cat([heads[i], new[mask]])
        return ids

    @torch.no_grad()
    def states(
        self, rows: Sequence[int], heads: Sequence[Int[Tensor, " _"]]
    ) -> list[Float[Tensor, "_ d"]]:
        """For each head, the states after the last norm that predict its tokens [n, d]."""
        finals = self.lm.last_hidden(self._prompt(rows, [ids[:-1] for ids in heads]))
        return [final[-len(ids) :] for final, ids in zip(finals, heads, strict=True)]

    def _prompt(self, rows: Sequence[int], heads: Sequence[Tensor]) -> Prompt:
        given = [torch.cat([self._last[row], ids]) for row, ids in zip(rows, heads, strict=True)]
        index = torch.tensor(rows, device=self.lm.device)
        return Prompt.from_ids(self.lm, given, self._prefix.rows(index))
