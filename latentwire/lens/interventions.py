"""Tests what an explanation does: swap activations, edit words, and see what the model then
predicts.

before, after = edited(lens, text, 12, "a river in Germany")
salience(lens, vector, "a river in France")      # [("a", 0.01), ("river", 0.4), ...]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from latentwire.lens.activations import Text, check_place
from latentwire.lens.checks import checked
from latentwire.lens.lens import Lens
from latentwire.lens.objectives import scaled_mse
from latentwire.lm import FrozenLM, KVPrefix, Patch, Prompt

Swap = Callable[[Tensor | None], Tensor]
"""vectors [b * k, d], or None for the model as it is -> next-token logits [b * k, v]."""
Caches = tuple[dict[int, int], KVPrefix]
"""The row of each text, by its number, and the texts' keys and values."""


@torch.no_grad()
def read(lm: FrozenLM, texts: Sequence[Text]) -> Caches:
    """The keys and values of some texts, each once."""
    distinct = {text.number: text for text in texts}
    cache = lm.prefill(Prompt.from_ids(lm, [text.ids for text in distinct.values()]))
    return {number: row for row, number in enumerate(distinct)}, cache


def swapping(
    lm: FrozenLM,
    layer: int,
    texts: Sequence[Text],
    positions: Sequence[int],
    k: int = 1,
    caches: Caches | None = None,
) -> Swap:
    """The LM's predictions after the token at each text's position when the output of block `layer`
    there is replaced, k times each. Differentiable.

    Each text is read once, however many of its tokens are swapped, and each row sees what stands
    before its own. caches: of `read`, where the texts were read before.
    """
    order, cache = caches or read(lm, texts)
    rows = torch.tensor([order[text.number] for text in texts], device=lm.device)
    before = cache.rows(rows.repeat_interleave(k))
    own = torch.tensor(positions, device=lm.device).repeat_interleave(k)
    seen = before.mask & (before.positions < own[:, None])
    before = replace(before, mask=seen, next_position=own)
    tokens = [t.ids[p : p + 1] for t, p in zip(texts, positions, strict=True) for _ in range(k)]

    def logits(vectors: Tensor | None) -> Tensor:
        patches = []
        if vectors is not None:
            here = torch.zeros_like(own)[:, None]
            patches = [Patch(layer, here, checked(vectors, lm)[:, None])]
        prompt = Prompt.from_ids(lm, tokens, before, patches)
        return lm.head(lm.last_hidden(prompt)[:, -1])

    return logits


@torch.no_grad()
def edited(
    lens: Lens, text: Text, position: int, explanation: str, most: int = 5
) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """The most probable tokens after a text's position, as the model is and with the activation
    there replaced by what the encoder makes of an explanation that somebody edited. Raises
    LensError for a first position, which no lens is trained on."""
    check_place(position)
    swap = swapping(lens.lm, lens.config.layer, [text], [position])
    made = lens.reconstruct([explanation])
    before, after = swap(None)[0], swap(made)[0]
    return _top(lens.lm, before, most), _top(lens.lm, after, most)


@torch.no_grad()
def salience(lens: Lens, vector: Float[Tensor, " d"], explanation: str) -> list[tuple[str, float]]:
    """Each word of an explanation, and how much worse the reconstruction is without it (in units of
    the activations' variance; negative where the word misleads)."""
    words = explanation.split()
    texts = [explanation, *(" ".join(words[:i] + words[i + 1 :]) for i in range(len(words)))]
    true = checked(vector[None], lens.lm).expand(len(texts), -1)
    whole, *without = scaled_mse(lens.reconstruct(texts), true, lens.spread).tolist()
    return [(word, error - whole) for word, error in zip(words, without, strict=True)]


def _top(lm: FrozenLM, logits: Tensor, most: int) -> list[tuple[str, float]]:
    best = logits.float().softmax(-1).topk(most)
    return [
        (lm.spelled([i]), p)
        for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
