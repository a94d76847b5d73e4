"""Self-reward: the LM checks its own answer with four yes-or-no questions, as in LatentSeek.

The weights are the published ones (calculation 2, correct 1, completeness 2, understanding 1); the
questions are ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

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
        lm, frame = self.lm, self.lm.frame
        shown = [_shown(a) for a in attempts]
        rows = [torch.cat([frame.head, lm.ids(text)]) for text in shown]
        checks = [
            torch.cat([lm.ids(f"\n\n{question} Reply with Yes or No only."), frame.tail])
            for _, question in CHECKS.values()
        ]
        longest = max(map(len, checks)) + VERDICT_TOKENS
        fit = [i for i, row in enumerate(rows) if len(row) + longest <= lm.window]
        ratings = [
            failed(f"problem and solution take {len(row)} tokens; {lm.name} has {lm.window}")
            for row in rows
        ]
        if fit:
            prefix = lm.prefill(Prompt.from_ids(lm, [rows[i] for i in fit])).repeat(len(checks))
            prompt = Prompt.from_ids(lm, checks * len(fit), prefix)
            out = lm.decode(prompt, Greedy(), VERDICT_TOKENS)
            said = iter(zip(out.texts, out.mask.sum(1).tolist(), strict=True))
            for i in fit:
                replies = {name: next(said) for name in CHECKS}
                ran = len(rows[i]) + sum(map(len, checks)) + sum(n for _, n in replies.values())
                ratings[i] = _rating({name: text for name, (text, _) in replies.items()}, ran)
        return ratings


def verdict(reply: str) -> bool | None:
    """True for a yes, False for a no, None for anything else."""
    found = re.match(r"\W*(yes|no)\b(.*)", reply.strip(), re.IGNORECASE | re.DOTALL)
    if found is None or re.search(r"\b(yes|no)\b", found[2], re.IGNORECASE):
        return None
    return found[1].lower() == "yes"


def _shown(attempt: Attempt) -> str:
    return f"Problem:\n{attempt.problem.question}\n\nProposed solution:\n{attempt.text}"


def _rating(replies: dict[str, str], tokens: int) -> Rating:
    verdicts = {name: verdict(reply) for name, reply in replies.items()}
    lost = sum(CHECKS[name][0] for name, passed in verdicts.items() if not passed)
    parts = {name: float(passed is True) for name, passed in verdicts.items()}
    parts["abstained"] = float(sum(passed is None for passed in verdicts.values()))
    return Rating(-lost / sum(weight for weight, _ in CHECKS.values()), parts, tokens)
