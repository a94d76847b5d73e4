"""The attention that each token of a text gets from what a reader does with it next.

The most that any token of the text's repetition gives it is what KVzip keeps slots by (Kim et al.
2025, arXiv 2505.23416); the most that questions with their answers give it comes on top where there
are any. Scorers of wires are fitted to the sum of both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentwire.lm import FrozenLM, KVPrefix, Prompt
from latentwire.tasks.qa import Passage, answer_targets, in_parts, passages_prompt

ASKED = 32
"""Most questions of a passage whose attention is computed in one pass."""
REPEAT = "\n\nRepeat the text above word for word."


def attention_received(
    lm: FrozenLM,
    soft_prompt: Tensor | None,
    passage: Passage,
    ids: Int[Tensor, " m"],
    text: KVPrefix,
) -> Float[Tensor, "l h m"]:
    """The most attention that each token of a passage gets from any token of its repetition, plus
    the most from any of each question's, averaged over questions. ids: its tokens; text: the
    reader's cache of them behind its head."""
    asked = []
    for part in in_parts([passage], ASKED):
        targets, mask = answer_targets(lm, [part])
        prompt = passages_prompt(lm, soft_prompt, [part], text)
        asked.append(_most(lm, prompt.append(lm.embed(targets), mask), len(ids)))
    return (repetition_attention(lm, [ids], text) + torch.cat(asked)).mean(0)


def repetition_attention(
    lm: FrozenLM, rows: Sequence[Int[Tensor, " _"]], text: KVPrefix
) -> Float[Tensor, "b l h t"]:
    """The most attention that each token of each row's text gets when the reader repeats it. text:
    the reader's cache of the rows behind its head, padded on the left."""
    again = [torch.cat([lm.tokenize(REPEAT), lm.frame.suffix, ids]) for ids in rows]
    return _most(lm, Prompt.from_ids(lm, again, text), max(map(len, rows)))


def _most(lm: FrozenLM, prompt: Prompt, tokens: int) -> Float[Tensor, "b l h t"]:
    """The most attention that any real query of a row gives each of the `tokens` slots after the
    head, over the query heads that share a KV head."""
    start, heads = len(lm.frame.prefix), lm.kv_shape[0]

    def most(attention: Float[Tensor, "b q t k"]) -> Float[Tensor, "b h n"]:
        seen = attention[..., start : start + tokens].float() * prompt.mask[:, None, :, None]
        return seen.unflatten(1, (heads, -1)).amax((2, 3))

    return torch.stack(lm.attentions(prompt, most), 1)
