"""Which slots of a reader's cache stay at a ratio, predicted from codes.

As in wire/scorer.py, a ridge regression on log attention: how much questions with their answers,
and the text when the reader repeats it, look at each token. Here the features are codes, since a
reader has no states of its own of a text that it never runs over.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentwire.lm import FrozenLM, KVPrefix, Prompt
from latentwire.ridge import Ridge
from latentwire.tasks.qa import Passage, answer_targets, passages_prompt
from latentwire.wire.codes.reader import CodeReader
from latentwire.wire.scorer import FLOOR


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


def attention_received(
    lm: FrozenLM, format_tokens: Tensor, passage: Passage, ids: Tensor, text: KVPrefix
) -> Float[Tensor, "l h m"]:
    """The most attention that each token gets from any token of its repetition, plus the most from
    any of each question's, averaged over questions."""
    start = len(lm.frame.prefix)

    def most(maps: Sequence[Tensor], real: Tensor | None = None) -> Tensor:
        seen = torch.stack([m[..., start : start + len(ids)] for m in maps], 1).float()
        if real is not None:
            seen = seen * real[:, None, None, :, None]
        heads = lm.kv_shape[0]
        return seen.unflatten(2, (heads, seen.shape[2] // heads)).amax((3, 4))

    again = torch.cat(
        [lm.tokenize("\n\nRepeat the text above word for word."), lm.frame.suffix, ids]
    )
    repeated = most(lm.attentions(Prompt.from_ids(lm, [again], text)))
    targets, mask = answer_targets(lm, [passage])
    asked = passages_prompt(lm, format_tokens, [passage], text).append(lm.embed(targets), mask)
    return (repeated + most(lm.attentions(asked), asked.mask)).mean(0)
