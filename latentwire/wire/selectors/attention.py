"""Tokens stay that the text itself looks at while it is read (H2O, Zhang et al. 2023, arXiv
2306.14048): a second pass over the text, whose attention is read off."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from latentwire.lm import FrozenLM
from latentwire.wire.selectors.base import Reading, Selector


class Attention(Selector):
    """Scores by the mean attention that a token gets from itself and the tokens after it, over the
    query heads that share a KV head."""

    def scores(self, lm: FrozenLM, reading: Reading) -> Float[Tensor, "l b h t"]:
        mask, heads = reading.mask, lm.kv_shape[0]
        looking = mask.flip(-1).cumsum(-1).flip(-1).clamp(min=1)

        def mean(attention: Float[Tensor, "b q t k"]) -> Float[Tensor, "b h t"]:
            own = attention[..., -mask.shape[1] :].float() * mask[:, None, :, None]
            return (own.sum(2) / looking[:, None]).unflatten(1, (heads, -1)).mean(2)

        return torch.stack(lm.attentions(reading.prompt, mean))
