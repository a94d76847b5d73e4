"""Best of N, the control of a search: as many tokens, spent on samples."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from latentwire.lm import FrozenLM, seed_of
from latentwire.seek.answers import Answers, prompt_ids
from latentwire.seek.found import Found, Step, best_of, threshold_of, value_of
from latentwire.seek.recipe import SeekRecipe
from latentwire.seek.rewards.base import Reward, attempt_of, rate


def best_of_n(
    lm: FrozenLM, reward: Reward, recipe: SeekRecipe, searched: Sequence[Found]
) -> list[Found]:
    """The same problems answered by samples, until the batch has spent what its search spent.

    A problem begins with its greedy answer and stops drawing above the search's threshold. The
    answer given is the first of those with the highest reward.
    """
    threshold = threshold_of(reward)
    drawn = {i: list(f.trace[:1]) for i, f in enumerate(searched)}
    going = [i for i, f in enumerate(searched) if f.first_reward is not None]
    if not going:
        return list(searched)
    answers = Answers(lm, [prompt_ids(lm, searched[i].problem) for i in going], recipe.temperature)
    row = {i: place for place, i in enumerate(going)}
    left = sum(f.tokens for f in searched) - sum(
        s.tokens for steps in drawn.values() for s in steps
    )
    while left > 0:
        live = [i for i in going if max(map(value_of, drawn[i])) <= threshold]
        if not live:
            break
        # Those with the fewest answers first; in the last round only as many as tokens are left.
        live.sort(key=lambda i: len(drawn[i]))
        typical = statistics.fmean(s.tokens for i in live for s in drawn[i])
        live = live[: math.ceil(left / typical)]
        seeds = [seed_of(recipe.seed, searched[i].problem.id, "n", len(drawn[i])) for i in live]
        nothing, budgets = [answers.nothing] * len(live), [recipe.max_new_tokens] * len(live)
        ids = answers.finish([row[i] for i in live], nothing, budgets, seeds)
        attempts = [
            attempt_of(lm, searched[i].problem, new) for i, new in zip(live, ids, strict=True)
        ]
        for i, attempt, rating in zip(live, attempts, rate(reward, attempts), strict=True):
            cost = len(attempt.ids) + rating.tokens
            left -= cost
            value = None if rating.failure else rating.value
            step = Step(
                len(drawn[i]), value, rating.parts, 0, attempt.text, attempt.finished, 0.0, cost
            )
            drawn[i].append(step)
    return [_best(searched[i], drawn[i]) for i in range(len(searched))]


def _best(searched: Found, drawn: Sequence[Step]) -> Found:
    best = best_of(drawn)
    return (
        searched if best is None else Found(searched.problem, best.text, best.reward, tuple(drawn))
    )
