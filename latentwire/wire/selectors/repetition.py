"""Tokens stay that the reader looks at when it repeats the text (KVzip, Kim et al. 2025, arXiv
2505.23416): the most telling of those that need no training, for a second pass over the text."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from latentwire.lm import FrozenLM
from latentwire.wire.importance import repetition_attention
from latentwire.wire.selectors.base import Reading, Selector


class Repetition(Selector):
    """Scores by the most attention that any token of the repetition gives. The repetition stands
    behind the text: where both do not fit the reader's context, it raises ValueError."""

    def scores(self, lm: FrozenLM, reading: Reading) -> Float[Tensor, "l b h t"]:
        received = repetition_attention(lm, reading.ids, reading.states.prefix)
        return received.transpose(0, 1)
