"""What an explanation does: swap activations, edit words, and see what the model then predicts.

before, after = edited(lens, prefix_ids, "a river in Germany")
salience(lens, vector, "a river in France")      # [("a", 0.01), ("river", 0.4), ...]
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentwire.lens.checks import checked
from latentwire.lens.lens import Lens
from latentwire.lens.objectives import scaled_mse
from latentwire.lm import FrozenLM, Patch, Prompt


def swapped(
    lm: FrozenLM,
    layer: int,
    prefixes: Sequence[Int[Tensor, " _"]],
    vectors: Float[Tensor, "b d"] | None,
) -> Float[Tensor, "b v"]:
    """Next-token logits after each prefix, with `vectors` in place of the output of block `layer`
    at its last token; None changes nothing. Differentiable."""
    patches = []
    if vectors is not None:
        vectors = checked(vectors, lm)
        last = torch.tensor([[len(ids) - 1] for ids in prefixes], device=lm.device)
        patches = [Patch(layer, last, vectors[:, None])]
    prompt = Prompt.from_ids(lm, list(prefixes), patches=patches)
    return lm.head(lm.final(prompt)[:, -1])


@torch.no_grad()
def edited(
    lens: Lens, prefix: Int[Tensor, " n"], explanation: str, most: int = 5
) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """The most probable next tokens after `prefix`, as the model is and with the activation of its
    last token replaced by what the encoder makes of an explanation that somebody edited."""
    layer = lens.config.layer
    before = swapped(lens.lm, layer, [prefix], None)[0]
    after = swapped(lens.lm, layer, [prefix], lens.reconstruct([explanation]))[0]
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
