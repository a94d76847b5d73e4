"""The only generation loop: what `FrozenLM.generate` runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from latentwire.lm.checkpointing import gradient_checkpointing
from latentwire.lm.finite import check_finite
from latentwire.lm.outputs import Generation, token_log_probs
from latentwire.lm.prompt import LAST, KVPrefix, Prompt
from latentwire.lm.samplers import Sampler

if TYPE_CHECKING:
    from latentwire.lm.frozen import FrozenLM

Caching = Literal["kv", "none", "checkpoint"]


def generated(
    lm: FrozenLM,
    prompt: Prompt,
    sampler: Sampler,
    most: Int[Tensor, " b"],
    stops: Sequence[int],
    stop_strings: Sequence[str],
    caching: Caching,
    samples: int,
) -> Generation:
    """Continuations of a prompt, as `FrozenLM.generate` says; most: tokens of each row."""
    alive = torch.ones(len(prompt.mask) * samples, dtype=torch.bool, device=lm.device)
    ids, masks, log_probs, embeds = [], [], [], []
    most = most.repeat_interleave(samples)
    ends = torch.tensor(stops, device=lm.device)
    wanted = torch.is_grad_enabled()
    for step in range(int(most.max())):
        with torch.set_grad_enabled(wanted):
            final, prefix = _step(lm, prompt, caching)
        check_finite({f"the state that {lm.name} ends at": final}, FloatingPointError)
        wanted = final.requires_grad  # else the cache need not be copied at each step
        if step == 0 and samples > 1:
            final, prompt = final.repeat_interleave(samples, 0), prompt.repeat(samples)
            prefix = None if prefix is None else prefix.repeat(samples)
        logits = lm.head(final)
        choice = sampler(logits, step)
        chosen = torch.where(alive, choice.ids, stops[0] if stops else 0)
        chosen_log_probs = token_log_probs(logits, chosen, sampler.temperature)
        soft = choice.weights
        embed = lm.embed(chosen) if soft is None else lm.embed_soft(soft)
        ids.append(chosen)
        masks.append(alive)
        log_probs.append(chosen_log_probs.masked_fill(~alive, 0.0))
        embeds.append(embed)
        fed = prompt.append(embed[:, None], alive[:, None])
        prompt = replace(fed.columns(LAST), prefix=prefix) if prefix is not None else fed
        alive = alive & ~torch.isin(chosen, ends) & (step + 1 < most)
        if stop_strings:
            texts = lm._texts(torch.stack(ids, 1), torch.stack(masks, 1), stops)
            ended = [any(s in t for s in stop_strings) for t in texts]
            alive = alive & ~torch.tensor(ended, device=lm.device)
        if not alive.any():
            break
    all_ids, mask = torch.stack(ids, 1), torch.stack(masks, 1)
    texts = [_cut(t, stop_strings) for t in lm._texts(all_ids, mask, stops)]
    return Generation(all_ids, mask, torch.stack(log_probs, 1), torch.stack(embeds, 1), texts)


def advance(lm: FrozenLM, prompt: Prompt) -> tuple[Float[Tensor, "b v"], KVPrefix]:
    """Logits of what follows each row, and the cache to go on with: one step of a generation whose
    rows come and go (serve/decoding.py)."""
    final, prefix = _step(lm, prompt, "kv")
    assert prefix is not None
    return lm.head(final), prefix


def _step(
    lm: FrozenLM, prompt: Prompt, caching: Caching
) -> tuple[Float[Tensor, "b d"], KVPrefix | None]:
    """The state that predicts the next token, and the cache to go on with."""
    if caching == "kv":
        final, prefix = lm._forward(prompt, keep_cache=True)
        return final[:, -1], prefix
    if caching == "none":
        return lm.last_hidden(prompt)[:, -1], None

    def last(embeds: Tensor) -> Tensor:
        with gradient_checkpointing(False):  # of the whole, and not of each block as well
            return lm.last_hidden(replace(prompt, embeds=embeds))[:, -1]

    return checkpoint(last, prompt.embeds, use_reentrant=False), None  # pyright: ignore


def _cut(text: str, stop_strings: Sequence[str]) -> str:
    found = [text.index(s) for s in stop_strings if s in text]
    return text[: min(found)] if found else text
