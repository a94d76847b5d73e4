"""The first trained stage: attention to decoded keys, with no LM in the loop.

Nearly all that a linear decoder loses is lost in keys, so decoders are trained on what frozen
models gave (recording.py): the attention that recorded queries give to decoded keys is to be that
which they give to the reader's own, and what they read from decoded values what they read from its
own. A step costs a tenth of one through the LM.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from latentwire.lm.families import attention_softcap, capped, rotate, window_of
from latentwire.wire.codes.reader import CodeReader


def attention_losses(
    reader: CodeReader,
    keys: Float[Tensor, "l g n e"],
    values: Float[Tensor, "l g n e"],
    recorded: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """attention: KL in nats between the true attention and that on decoded keys; outputs: squared
    error of what is read from decoded values, in units of the true outputs' size. Means over
    queries and heads, layers weighed by their importance. keys are before rotation; g are KV
    heads."""
    lm, n, start = reader.lm, keys.shape[2], len(reader.lm.frame.prefix)
    of_slots = torch.arange(start, start + n, device=keys.device)
    of_queries = recorded["offsets"].long() + start + n
    kl, error = [], []
    for layer in range(len(keys)):
        queries = recorded["queries"][:, layer].transpose(0, 1)[None].to(keys)
        heads = queries.shape[1]
        rotated = rotate(lm.model, layer, queries, of_queries.expand(1, heads, -1))[0]
        slots = rotate(lm.model, layer, keys[layer][None], of_slots.expand(1, len(keys[0]), -1))
        slots, read = (x.repeat_interleave(heads // len(x), 0) for x in (slots[0], values[layer]))
        logits = capped(rotated @ slots.transpose(-1, -2), attention_softcap(lm.model.config))
        if (window := window_of(lm.model.config, layer)) is not None:
            far = of_queries[:, None] - of_slots >= window
            logits = logits.masked_fill(far, -torch.inf)
        others = recorded["others"][:, layer].T[..., None]
        log_shares = torch.cat([logits.float(), others], -1).log_softmax(-1)
        true = recorded["attention"][:, layer].transpose(0, 1).float()
        kl.append(_kl(true, log_shares))
        outputs = log_shares[..., :-1].exp().to(read.dtype) @ read
        wanted = recorded["outputs"][:, layer].transpose(0, 1).float()
        error.append((outputs - wanted).square().sum() / wanted.square().sum().clamp_min(1e-6))
    weights = reader.decoder.importance.unbind(1)
    found = zip(("attention", "outputs"), (kl, error), weights, strict=True)
    return {name: (weight * torch.stack(of)).sum() for name, of, weight in found}


def _kl(true: Float[Tensor, "*q n"], log_shares: Float[Tensor, "*q n"]) -> Float[Tensor, ""]:
    """Mean KL of distributions over the same slots. A slot that a window hides counts for nothing
    there: the reader's own token may have stood nearer, since it splits a text into fewer."""
    reached = torch.where((true > 0) & log_shares.isfinite(), true * log_shares, 0.0)
    return (torch.special.xlogy(true, true) - reached).sum(-1).mean()
