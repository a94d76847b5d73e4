"""Self-reward: the LM checks its own answer with four yes-or-no questions, as in LatentSeek.

The weights are the published ones (calculation 2, correct 1, completeness 2, understanding 1); the
questions are ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from latentwire.lm import FrozenLM, Greedy, Prompt
from latentwire.seek.rewards.base import Attempt, Rating, failed

CHECKS = {
    "calculation": (2, "Is every calculation in the solution right?"),
    "correct": (1, "Is the final answer of the solution right?"),
    "completeness": (
        2,
        "Does the solution answer all that the problem asks, with no step left out?",
    ),
    "understanding": (1, "Does the solution understand the problem as it was meant?"),
}
"""name -> (weight, question)."""

VERDICT_TOKENS = 8


@dataclass(frozen=True)
class SelfVerify:
    """-(weights of the checks that were not passed) / 6. Greedy, so it cannot be re-rolled.

    All four checks of all attempts run as one batch over one prefill of problem and solution. A
    verdict that is not plainly yes or no is an abstention: counted in `parts`, and never a pass.
    """

    lm: FrozenLM
    low: float = -1.0
    high: float = 0.0

    @torch.no_grad()
    def __call__(self, attempts: Sequence[Attempt]) -> list[Rating]:
        lm = self.lm
        laid = [layout(lm, a.problem.question, a.text) for a in attempts]
        rows, checks = [shown for shown, _ in laid], laid[0][1] if laid else []
        longest = max(map(len, checks), default=0) + VERDICT_TOKENS
        fit = [i for i, row in enumerate(rows) if len(row) + longest <= lm.context_length]
        ratings = [
            failed(
                f"problem and solution take {len(row)} tokens; {lm.name} has {lm.context_length}"
            )
            for row in rows
        ]
        if fit:
            prefix = lm.prefill(Prompt.from_ids(lm, [rows[i] for i in fit])).repeat(len(checks))
            prompt = Prompt.from_ids(lm, checks * len(fit), prefix)
            out = lm.generate(prompt, Greedy(), VERDICT_TOKENS)
            said = iter(zip(out.texts, out.mask.sum(1).tolist(), strict=True))
            for i in fit:
                replies = {name: next(said) for name in CHECKS}
                ran = len(rows[i]) + sum(map(len, checks)) + sum(n for _, n in replies.values())
                value, parts = weigh({name: text for name, (text, _) in replies.items()})
                ratings[i] = Rating(value, parts, ran)
        return ratings


def verdict(reply: str) -> bool | None:
    """True for a yes, False for a no, None for anything else."""
    found = re.match(r"\W*(yes|no)\b(.*)", reply.strip(), re.IGNORECASE | re.DOTALL)
    if found is None or re.search(r"\b(yes|no)\b", found[2], re.IGNORECASE):
        return None
    return found[1].lower() == "yes"


def layout(
    lm: FrozenLM, question: str, solution: str
) -> tuple[Int[Tensor, " n"], list[Int[Tensor, " _"]]]:
    """Ids of what all checks share, and of each check up to where its reply begins."""
    shown = f"Problem:\n{question}\n\nProposed solution:\n{solution}"
    checks = [
        torch.cat([lm.tokenize(f"\n\n{asked} Reply with Yes or No only."), lm.frame.suffix])
        for _, asked in CHECKS.values()
    ]
    return torch.cat([lm.frame.prefix, lm.tokenize(shown)]), checks


def weigh(replies: dict[str, str]) -> tuple[float, dict[str, float]]:
    """The reward of four replies, and its parts."""
    verdicts = {name: verdict(reply) for name, reply in replies.items()}
    lost = sum(CHECKS[name][0] for name, passed in verdicts.items() if not passed)
    parts = {name: float(passed is True) for name, passed in verdicts.items()}
    parts["abstained"] = float(sum(passed is None for passed in verdicts.values()))
    return -lost / sum(weight for weight, _ in CHECKS.values()), parts
