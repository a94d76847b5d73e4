"""Checks of a lens's training while it runs, on activations that it never sees: the figures that
train/alarms.py reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from latentwire.evals.metrics import bootstrap
from latentwire.lens.activations import Place, at
from latentwire.lens.lens import Lens
from latentwire.lens.objectives import scaled_mse
from latentwire.lm import Greedy
from latentwire.train.alarms import pairwise_cosine


@torch.no_grad()
def check_lens(lens: Lens, places: Sequence[Place]) -> dict[str, float]:
    """Check a lens: the error of what it rebuilds from its own greedy words (1 - FVE), what another
    document's words cost, and how much words and vectors differ between activations; nothing of
    fewer than two documents."""
    if len(places) < 2:
        return {}
    batch = at(lens.lm, lens.config.layer, places)
    said = lens.decoder.generate(batch.vectors, Greedy())
    made = lens.reconstruct(said.texts)
    documents = [text.number for text in batch.texts]
    n = len(batch)
    other = [
        next(j % n for j in range(i + 1, i + n) if documents[j % n] != documents[i])
        for i in range(n)
    ]
    errors, moved = (scaled_mse(m, batch.vectors, lens.spread) for m in (made, made[other]))
    gap = (moved - errors).tolist()
    low, high = bootstrap(errors.tolist(), documents)
    return {
        "held": errors.mean().item(),
        "held_low": low,
        "held_high": high,
        "held_n": float(len(places)),
        "distinct": float(len(set(said.ids[:, 0].tolist()))),
        "distinct_gold": float(len({int(ids) for ids in batch.up_to([1] * n)})),
        "gap": sum(gap) / n,
        "gap_low": bootstrap(gap, documents)[0],
        "cosine": pairwise_cosine(made),
        "cosine_text": pairwise_cosine(batch.vectors),
        "scale.reconstructions": (made.norm() / batch.vectors.norm()).item(),
    }
