"""What an explanation does: swap activations, edit words, and see what the model then predicts.

before, after = edited(lens, prefix_ids, "a river in Germany")
salience(lens, vector, "a river in France")      # [("a", 0.01), ("river", 0.4), ...]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentwire.lens.checks import checked
from latentwire.lens.lens import Lens
from latentwire.lens.objectives import scaled_mse
from latentwire.lm import FrozenLM, Patch, Prompt

Swap = Callable[[Tensor | None], Tensor]
"""vectors [b * k, d], or None for the model as it is -> next-token logits [b * k, v]."""


def swapping(lm: FrozenLM, layer: int, prefixes: Sequence[Int[Tensor, " _"]], k: int = 1) -> Swap:
    """What the LM predicts after each prefix when the output of block `layer` at its last token is
    replaced, k times each; all swaps share one pass over the tokens before. Differentiable."""
    tails, before = list(prefixes), None
    if min(len(ids) for ids in prefixes) > 1:
        with torch.no_grad():
            before = lm.prefill(Prompt.from_ids(lm, [ids[:-1] for ids in prefixes])).repeat(k)
        tails = [ids[-1:] for ids in prefixes]
    tails = [ids for ids in tails for _ in range(k)]
    last = torch.tensor([[len(ids) - 1] for ids in tails], device=lm.device)

    def logits(vectors: Tensor | None) -> Tensor:
        patches = []
        if vectors is not None:
            patches = [Patch(layer, last, checked(vectors, lm)[:, None])]
        prompt = Prompt.from_ids(lm, tails, before, patches)
        return lm.head(lm.final(prompt)[:, -1])

    return logits


@torch.no_grad()
def edited(
    lens: Lens, prefix: Int[Tensor, " n"], explanation: str, most: int = 5
) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """The most probable next tokens after `prefix`, as the model is and with the activation of its
    last token replaced by what the encoder makes of an explanation that somebody edited."""
    swap = swapping(lens.lm, lens.config.layer, [prefix])
    before, after = swap(None)[0], swap(lens.reconstruct([explanation]))[0]
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
        (lm.tokenizer.decode([i]), p)
        for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
