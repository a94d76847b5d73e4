"""LatentSeek: improve one answer at test time by policy gradient on the LM's own hidden states.

    seek = Seek(lm, Exact(task.grade), SeekConfig(steps=10))
    for found in seek(task.problems[:8]):
        print(found.reward, found.text)

The states z after the last norm that predict the tokens of a span are the parameters of a policy,
softmax(head(z)). Each step moves z along -reward * sum log p(token | z) with Adam, reads the span's
tokens off the moved z, and lets the LM finish the answer (Li et al. 2025, arXiv 2505.13308). The LM
is never trained. A batch of problems runs together over one shared prefill, each with its own z and
its own optimizer, so a problem's search does not depend on its batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from latentwire.lm import FrozenLM, Sampled, seed_of, seeded_noise
from latentwire.seek.answers import Answers, prompt_ids
from latentwire.seek.found import Found, Step, best_of, no_room, threshold_of
from latentwire.seek.policy import Policy
from latentwire.seek.region import Fraction, Region, RegionError, Span
from latentwire.seek.rewards.base import Attempt, Rating, Reward, attempt_of, rate
from latentwire.tasks.base import Problem
from latentwire.texts import check_least


@dataclass(frozen=True)
class SeekConfig:
    """The settings of a search. The defaults are the published ones, but for what `compat`
    undoes."""

    region: Region = field(default_factory=Fraction)
    """The tokens of the answer that are searched."""
    steps: int = 10
    """Steps, at most."""
    lr: float = 0.03
    """Adam's step size on z."""
    threshold: float | None = None
    """Stop above this reward; four fifths of the way up the reward's range if None."""
    max_new_tokens: int = 1024
    """Answer budget in tokens, exact."""
    temperature: float = 0.0
    """Temperature of the answers and of the policy: 0 is greedy; more samples, with noise that a
    seed fixes."""
    samples: int = 0
    """Sampled spans per step, each with an answer of its own; 0: the span that z stands for."""
    baseline: bool = False
    """Weigh by the advantage over the first answer's reward; needs samples."""
    clip: float | None = None
    """Largest gradient norm of one problem's z."""
    tokens: int | None = None
    """Stop a problem that has spent so many positions."""
    update: Literal["reward", "random_sign"] = "reward"
    """random_sign is a control: the same steps with the reward's sign tossed each time."""
    compat: Literal["ours", "original"] = "ours"
    """original: as the published code behaves, for comparison. The last answer is returned, not the
    best; z has the model's type; their epsilons; a stop token inside the span ends nothing; after
    the span come up to max_new_tokens + 1 tokens."""
    seed: int = 0
    """Seed of everything sampled."""

    def __post_init__(self):
        check_least(self, steps=0, samples=0, max_new_tokens=1)
        if not 0 < self.lr < math.inf or (self.clip is not None and not self.clip > 0):
            raise ValueError(f"lr {self.lr}, clip {self.clip}; expected more than 0, and finite")
        if not self.temperature >= 0:
            raise ValueError(f"temperature is {self.temperature}; expected 0 (greedy) or more")
        if self.baseline and not self.samples:
            raise ValueError(
                "baseline with samples=0 never moves, since the first answer's advantage over "
                "itself is 0; set samples or leave the baseline off"
            )
        if self.compat == "original" and (self.samples or self.temperature):
            raise ValueError("compat='original' is greedy; leave samples and temperature at 0")


@dataclass(frozen=True)
class _Answer:
    """The answer that a span's tokens lead to, rated. tokens: what making it took."""

    action: Int[Tensor, " n"]
    attempt: Attempt
    rating: Rating
    tokens: int


@dataclass
class _Search:
    """One problem while its search runs. row: its place in the batch. seen: answers by their span's
    tokens, since the same span leads to the same answer again."""

    row: int
    problem: Problem
    seed: int
    prompt: Int[Tensor, " p"]
    first: Int[Tensor, " n"]
    policy: Policy
    seen: dict[tuple[int, ...], _Answer] = field(default_factory=dict)
    current: list[_Answer] = field(default_factory=list)
    trace: list[Step] = field(default_factory=list)
    ids: list[Tensor] = field(default_factory=list)
    failure: str | None = None


class Seek:
    """Searches answers to problems with one LM, one reward and one configuration."""

    def __init__(
        self,
        lm: FrozenLM,
        reward: Reward,
        config: SeekConfig | None = None,
        watch: Callable[[Found], None] | None = None,
    ):
        """watch: called with what a problem's search has come to after each of its steps; what it
        raises ends the search."""
        self.lm, self.reward, self.config = lm, reward, config or SeekConfig()
        self._watch = watch
        self.threshold = threshold_of(reward, self.config.threshold)
        self._original = self.config.compat == "original"
        self._stops = torch.tensor(lm.stop_ids, device=lm.device)

    def __call__(self, problems: Sequence[Problem]) -> list[Found]:
        """Search all problems as one batch. What goes wrong with one of them (a prompt that leaves
        no room, an empty answer, a reward that fails) is recorded in its Found."""
        prompts = [prompt_ids(self.lm, p) for p in problems]
        longest = self.config.max_new_tokens * (2 if self._original else 1) + self._original
        fit = [i for i, ids in enumerate(prompts) if len(ids) + longest <= self.lm.context_length]
        found = self._run([problems[i] for i in fit], [prompts[i] for i in fit]) if fit else []
        done = dict(zip(fit, found, strict=True))
        for i in set(range(len(problems))) - set(fit):
            new = self.config.max_new_tokens
            done[i] = no_room(self.lm, problems[i], len(prompts[i]), new)
        return [done[i] for i in range(len(problems))]

    def _run(self, problems: Sequence[Problem], prompts: Sequence[Tensor]) -> list[Found]:
        began, config = time.perf_counter(), self.config
        answers = Answers(self.lm, prompts, config.temperature)
        seeds = [seed_of(config.seed, p.id) for p in problems]
        rows, budgets = range(len(problems)), [config.max_new_tokens] * len(problems)
        firsts = answers.finish(rows, [answers.nothing] * len(problems), budgets, seeds)
        spans = {row: self._span(firsts[row]) for row in rows}
        placed = {row: span for row, span in spans.items() if isinstance(span, Span)}
        heads = [firsts[row][: span.stop] for row, span in placed.items()]
        states = answers.states(list(placed), heads) if placed else []
        searches = {}
        for (row, span), head, final in zip(placed.items(), heads, states, strict=True):
            tokens = head[span.start :]
            policy = Policy(
                self.lm,
                final[span.start :],
                span,
                tokens,
                config.lr,
                config.temperature or 1.0,
                config.clip,
                self._original,
            )
            searches[row] = _Search(
                row, problems[row], seeds[row], prompts[row], firsts[row], policy
            )
        live, step = list(searches.values()), 0
        actions = {s.row: [s.policy.tokens] for s in live}
        while live:
            self._try(answers, live, actions, step, began)
            live = [s for s in live if step < config.steps and self._goes_on(s)]
            began, step = time.perf_counter(), step + 1
            actions = {s.row: self._move(answers, s, step) for s in live}
        found = []
        for row, problem in enumerate(problems):
            if row in searches:
                found.append(self._found(searches[row]))
            else:
                given = attempt_of(self.lm, problem, firsts[row])
                ran = len(prompts[row]) - 1 + len(given.ids)
                first = Step(0, None, {}, 0, given.text, given.finished, 0.0, ran)
                found.append(Found(problem, given.text, None, (first,), failure=str(spans[row])))
        return found

    def _span(self, ids: Tensor) -> Span | RegionError:
        if not self.lm.detokenize(ids).strip():
            return RegionError("the first answer is empty; there is nothing to search")
        try:
            return self.config.region(self.lm, ids)
        except RegionError as error:
            return error

    def _goes_on(self, s: _Search) -> bool:
        spent, limit = sum(step.tokens for step in s.trace), self.config.tokens
        if s.failure is not None or (limit is not None and spent >= limit):
            return False
        return max(a.rating.value for a in s.current) <= self.threshold

    def _move(self, answers: Answers, s: _Search, step: int) -> list[Int[Tensor, " n"]]:
        """One step on z by the current answers; the spans to try next."""
        config, first = self.config, next(iter(s.seen.values())).rating.value
        tossed = config.update == "random_sign" and seed_of(s.seed, "sign", step) % 2
        advantages = [
            (a.rating.value - (first if config.baseline else 0.0)) * (-1 if tossed else 1)
            for a in s.current
        ]
        s.policy.update([a.action for a in s.current], advantages)
        if not config.samples:
            return [s.policy.choose(answers.sampler([s.seed], [s.policy.span.start]))]
        noises = [seeded_noise([seed_of(s.seed, "sample", step, i)]) for i in range(config.samples)]
        return [s.policy.choose(Sampled(noise, s.policy.temperature)) for noise in noises]

    def _try(
        self,
        answers: Answers,
        live: Sequence[_Search],
        actions: dict[int, list[Tensor]],
        step: int,
        began: float,
    ) -> None:
        """Answer from each span that is new, rate the answers, and write the traces."""
        fresh = {
            (s.row, *action.tolist()): (s, action)
            for s in live
            for action in actions[s.row]
            # The published code answers again from a span that it had before.
            if self._original or tuple(action.tolist()) not in s.seen
        }
        wanted = list(fresh.values())
        ids = self._finish(answers, wanted) if step else [s.first for s, _ in wanted]
        attempts = [
            attempt_of(self.lm, s.problem, row) for (s, _), row in zip(wanted, ids, strict=True)
        ]
        ratings = rate(self.reward, attempts)
        for (s, action), attempt, rating in zip(wanted, attempts, ratings, strict=True):
            # The prompt's last token and all answer tokens but the last are run over; the first
            # answer also takes the rest of its prompt, and the states of its span.
            ran = len(attempt.ids)
            if step == 0:
                ran += len(s.prompt) - 1 + s.policy.span.stop
            elif ran <= s.policy.span.stop:
                ran = 0  # ended inside of its span: nothing was generated
            cost = ran + rating.tokens
            answer = _Answer(action, attempt, rating, cost)
            s.seen[tuple(action.tolist())] = answer
            s.failure = s.failure or rating.failure
        seconds = (time.perf_counter() - began) / len(live)
        for s in live:
            s.current = [s.seen[tuple(action.tolist())] for action in actions[s.row]]
            for answer in s.current:
                cost = answer.tokens if fresh.pop((s.row, *answer.action.tolist()), None) else 0
                flipped = int((answer.action != s.policy.tokens).sum())
                value = None if answer.rating.failure else answer.rating.value
                share = seconds / len(s.current)
                parts = answer.rating.parts
                text, finished = answer.attempt.text, answer.attempt.finished
                s.ids.append(answer.attempt.ids)
                s.trace.append(Step(step, value, parts, flipped, text, finished, share, cost))
                if self._watch is not None:
                    self._watch(self._found(s))

    def _finish(
        self, answers: Answers, wanted: Sequence[tuple[_Search, Tensor]]
    ) -> list[Int[Tensor, " _"]]:
        """Whole answers from spans: everything before the span as it was, everything after it
        generated."""
        new = self.config.max_new_tokens
        heads, budgets = [], []
        for s, action in wanted:
            head = torch.cat([s.first[: s.policy.span.start], action])
            stops = torch.isin(head, self._stops).nonzero()
            if self._original:
                budget = new + 1
            elif len(stops):
                head, budget = head[: int(stops[0]) + 1], 0
            else:
                budget = new - len(head)
            heads.append(head)
            budgets.append(budget)
        rows, seeds = [s.row for s, _ in wanted], [s.seed for s, _ in wanted]
        return answers.finish(rows, heads, budgets, seeds)

    def _found(self, s: _Search) -> Found:
        span, chosen = s.policy.span, best_of(s.trace)
        if self._original and s.trace[-1].reward is not None:
            chosen = s.trace[-1]
        text, reward = (chosen.text, chosen.reward) if chosen else (s.trace[0].text, None)
        return Found(
            s.problem,
            text,
            reward,
            tuple(s.trace),
            (span.start, span.stop),
            span.note,
            s.failure,
            tuple(s.ids),
        )
