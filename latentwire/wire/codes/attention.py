"""The first trained stage: the wide layers' attention to decoded keys, with no LM in the loop.

Nearly all that a linear decoder loses is lost in the keys of the layers that see the whole text,
so these are trained on what frozen models gave (recording.py): the attention that recorded queries
give to decoded keys is to be that which they give to the reader's own, and what they read from
decoded values what they read from its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from latentwire.lm import FrozenLM
from latentwire.lm.families import rotate


def attention_losses(
    reader: FrozenLM,
    layers: Sequence[int],
    keys: Float[Tensor, "l g n e"],
    values: Float[Tensor, "l g n e"],
    recorded: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """attention: KL in nats between the true attention and that on decoded keys; outputs: squared
    error of what is read from decoded values, in units of the true outputs' mean square. Means over
    queries, heads and layers. keys are before rotation; g are KV heads."""
    n, start = keys.shape[2], len(reader.frame.prefix)
    of_slots = torch.arange(start, start + n, device=keys.device)
    of_queries = recorded["offsets"].long() + start + n
    kl, error = [], []
    for i, layer in enumerate(layers):
        queries = recorded["queries"][:, i].transpose(0, 1)[None].to(keys)
        heads = queries.shape[1]
        rotated = rotate(reader.model, layer, queries, of_queries.expand(1, heads, -1))[0]
        slots = rotate(reader.model, layer, keys[layer][None], of_slots.expand(1, len(keys[0]), -1))
        slots, read = (x.repeat_interleave(heads // len(x), 0) for x in (slots[0], values[layer]))
        logits = rotated @ slots.transpose(-1, -2)
        others = recorded["others"][:, i].T[..., None]
        log_shares = torch.cat([logits.float(), others], -1).log_softmax(-1)
        true = recorded["attention"][:, i].transpose(0, 1).float()
        kl.append((torch.special.xlogy(true, true) - true * log_shares).sum(-1).mean())
        outputs = log_shares[..., :-1].exp().to(read.dtype) @ read
        wanted = recorded["outputs"][:, i].transpose(0, 1).float()
        error.append((outputs - wanted).square().mean() / wanted.square().mean())
    return {"attention": torch.stack(kl).mean(), "outputs": torch.stack(error).mean()}
