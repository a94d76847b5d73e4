"""Seek against a plain implementation of the published loop, at several answer lengths.

    latentwire bench seek --lengths 64 256 --json bench.json

The plain loop is what the paper's code does: no cache, so every new token runs the whole sequence
again; one problem at a time; four verifiers one after another. Both run the same model, problems,
span, steps and token counts, and in `compat="original"` they must find the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from latentwire.bench.measure import measured
from latentwire.lm import FrozenLM
from latentwire.seek.answers import prompt_ids
from latentwire.seek.policy import ORIGINAL_EPSILONS
from latentwire.seek.region import Fraction
from latentwire.seek.rewards.self_verify import CHECKS, VERDICT_TOKENS, SelfVerify, layout, weigh
from latentwire.seek.search import Seek, SeekConfig
from latentwire.tasks.base import Problem
from latentwire.tasks.qa import load_questions
from latentwire.wire.evaluation import ALMANAC


def bench_seek(
    lm: FrozenLM, problems: Sequence[Problem], lengths: Sequence[int], steps: int
) -> dict[str, Any]:
    """Ratios plain / ours for each answer length: {"lengths": {"256": {"time_ratio",
    "forwards_ratio", "memory_ratio", "same_tokens"}}}, with the seconds they come from."""
    endless = FrozenLM(lm.model, lm.tokenizer, lm.name)
    endless.stop_ids = ()  # every answer is as long as asked
    rows = {}
    for length in lengths:
        config = SeekConfig(Fraction(0.2), steps, threshold=0.0, max_new_tokens=length)
        config = replace(config, compat="original")
        seek = Seek(endless, SelfVerify(lm), config)
        seek(problems[:1])  # what is made on first use is made before the clock starts
        with measured(lm) as ours:
            found = seek(problems)
        if failed := [f.failure for f in found if f.failure]:
            raise ValueError(f"{length} tokens cannot be timed: {failed[0]}")
        with measured(lm) as plain:
            answers = [plain_search(endless, lm, problem, config) for problem in problems]
        same = [
            len(f.ids) == len(theirs) and all(map(torch.equal, f.ids, theirs))
            for f, theirs in zip(found, answers, strict=True)
        ]
        rows[str(length)] = {
            "time_ratio": plain.seconds / ours.seconds,
            "forwards_ratio": plain.forwards / ours.forwards,
            "memory_ratio": plain.memory / ours.memory if plain.memory and ours.memory else None,
            "same_tokens": all(same),
            "seconds": {"plain": plain.seconds, "ours": ours.seconds},
            "forwards": {"plain": plain.forwards, "ours": ours.forwards},
        }
    return {"model": lm.name, "problems": len(problems), "steps": steps, "lengths": rows}


def almanac_problems(n: int) -> list[Problem]:
    """Questions of the shipped almanac, with their paragraphs."""
    rows = load_questions(ALMANAC)[: 5 * n : 5]
    return [Problem(r.id, q, q) for r in rows for q in [f"{r.context}\n\n{r.question}"]]


@torch.no_grad()
def _generate(lm: FrozenLM, ids: Tensor, new: int, stops: Sequence[int]) -> Tensor:
    """ids and up to `new` greedy tokens after them, the whole sequence run for each."""
    for _ in range(new):
        state = lm.body(input_ids=ids[None], use_cache=False).last_hidden_state[0, -1]
        ids = torch.cat([ids, lm.head(state).argmax(-1, keepdim=True)])
        if int(ids[-1]) in stops:
            break
    return ids


def plain_search(
    lm: FrozenLM, verifier: FrozenLM, problem: Problem, config: SeekConfig
) -> list[Tensor]:
    """Every answer of the published loop, first to last; `lm` never stops, the verifier does."""
    prompt = prompt_ids(lm, problem)
    answer = _generate(lm, prompt, config.max_new_tokens, ())[len(prompt) :]
    length = len(config.region(lm, answer))
    with torch.no_grad():
        whole = torch.cat([prompt, answer])
        finals = lm.body(input_ids=whole[None], use_cache=False).last_hidden_state[0]
    z = finals[len(prompt) - 1 :][:length].clone().requires_grad_()
    adam, answers = torch.optim.Adam([z], lr=config.lr), [answer]
    reward = _verify(verifier, problem, lm.detokenize(answer))
    to_probs, to_log = ORIGINAL_EPSILONS
    for _ in range(config.steps):
        adam.zero_grad()
        probs = lm.head(z).softmax(-1) + to_probs
        (-reward * (probs.amax(-1) + to_log).log().sum()).backward()
        adam.step()
        with torch.no_grad():
            span = lm.head(z).argmax(-1)
        whole = _generate(lm, torch.cat([prompt, span]), config.max_new_tokens + 1, ())
        answers.append(whole[len(prompt) :])
        reward = _verify(verifier, problem, lm.detokenize(answers[-1]))
    return answers


def _verify(lm: FrozenLM, problem: Problem, text: str) -> float:
    """The self-reward, one check after another."""
    shown, checks = layout(lm, problem.question, text)
    replies = {}
    for name, check in zip(CHECKS, checks, strict=True):
        whole = torch.cat([shown, check])
        reply = _generate(lm, whole, VERDICT_TOKENS, lm.stop_ids)[len(whole) :]
        replies[name] = lm.detokenize(reply)
    return weigh(replies)[0]
