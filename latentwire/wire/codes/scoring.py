"""Predicts from codes which slots of a reader's cache stay at a ratio.

As in wire/scorer_fit.py, a ridge regression on log attention: how much questions with their
answers, and the text when the reader repeats it, look at each token. Here the features are codes,
since a reader has no states of its own of a text that it never runs over.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentwire.lm import KVPrefix
from latentwire.ridge import Ridge
from latentwire.tasks.qa import Passage
from latentwire.wire.codes.reader import CodeReader
from latentwire.wire.importance import attention_received
from latentwire.wire.scorer_fit import FLOOR


class ScoreFit:
    """Fits the scores of one reader's decoder."""

    def __init__(self, reader: CodeReader):
        self.reader = reader
        channels, outputs = reader.decoder.score_weight.shape
        self._ridge = Ridge(1, channels, outputs)

    @torch.no_grad()
    def add(
        self,
        codes: Float[Tensor, "n c"],
        passage: Passage,
        ids: Int[Tensor, " m"],
        owner: Int[Tensor, " m"],
        text: KVPrefix,
    ) -> None:
        """One passage: its codes, the reader's ids of its text with the source token that each
        belongs to, and the reader's cache of it."""
        lm = self.reader.lm
        received = attention_received(lm, self.reader.format, passage, ids, text)
        by_token = received.new_zeros(*received.shape[:2], len(codes))
        by_token = by_token.index_add(2, owner, received)
        self._ridge.add(codes[None], (by_token.double() + FLOOR).log().flatten(0, 1).T[None])

    @torch.no_grad()
    def solve(self) -> None:
        """Fill the decoder's scores."""
        weight, bias = self._ridge.solve()
        self.reader.decoder.score_weight.copy_(weight[0])
        self.reader.decoder.score_bias.copy_(bias[0])
