"""Checks of a shared wire while it trains: the figures that train/alarms.py reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from latentwire.evals.baselines import full_text
from latentwire.evals.harness import Answer, evaluate, summarise
from latentwire.evals.metrics import bootstrap, mean_ratio
from latentwire.lm import FrozenLM, KVPrefix
from latentwire.tasks.qa import Passage
from latentwire.train.alarms import pairwise_cosine, within_cosine
from latentwire.train.losses import cosine_distance
from latentwire.wire.evaluation import conditions
from latentwire.wire.learned.injectors.embeddings import Embeddings
from latentwire.wire.learned.objectives import aligned_embeds, taught, values_of
from latentwire.wire.learned.reader import Reader, Values
from latentwire.wire.training_checks import compared, forced_rows


@torch.no_grad()
def check_readers(
    readers: Sequence[Reader], passages: Sequence[Passage], rest: Sequence[str] = ()
) -> dict[str, float]:
    """Figures of each reader on held-out passages: F1 and NLL with its own latents, with another
    passage's, and under the rest of an evaluation's conditions that are named; over all readers,
    those that alarms.py reads."""
    if len(passages) < 2:
        return {}
    figures: dict[str, float] = {}
    gaps: list[float] = []
    answered: list[tuple[FrozenLM, list[Answer], Tensor]] = []
    scales: dict[str, float] = {}
    wire, texts = readers[0].wire, [p.context for p in passages]
    codes = wire(texts)
    contents = values_of(wire, texts, codes)
    for reader in readers:
        rows = conditions(reader, passages)
        some = {name: rows[name] for name in ("wire", "mismatched_latents", *rest)}
        done = [a for b in evaluate(reader.lm, reader.format, passages, some) for a in b]
        of: dict[str, list[Answer]] = {n: [a for a in done if a.condition == n] for n in some}
        for name, answers in of.items():
            row = summarise(answers)
            figures |= {f"{reader.reader}.{name}.{k}": row[k] for k in ("f1", "nll")}
        pairs = zip(of["mismatched_latents"], of["wire"], strict=True)
        gaps += [(other.nll - own.nll) / own.tokens for other, own in pairs]
        prefix, forced = taught(reader, passages, contents)
        answered.append((reader.lm, of["wire"], forced_rows(*forced)))
        if not prefix.memories:  # what acts beside the cache has no size of the reader's own
            whole = full_text(reader.lm)(texts)
            for kind in ("keys", "values"):
                scales[f"scale.{reader.reader} {kind}"] = _size(prefix, kind) / _size(whole, kind)
    owners = [p.context for p in passages for _ in p.questions]
    nll, tokens = ([rows[:, i].tolist() for *_, rows in answered] for i in (0, 1))
    held, low, high = mean_ratio(nll, tokens, owners)
    return {
        **figures,
        **compared(answered),
        **scales,
        **_cosines(readers, texts, codes, contents),
        "held": held,
        "held_low": low,
        "held_high": high,
        "held_n": float(len(passages)),
        "gap": sum(gaps) / len(gaps),
        "gap_low": bootstrap(gaps, owners * len(readers))[0],
    }


def _cosines(
    readers: Sequence[Reader],
    texts: Sequence[str],
    codes: Sequence[Tensor],
    contents: Sequence[Values],
) -> dict[str, float]:
    """Cosines between the messages and within one, beside those of their texts; and of the input
    embeddings that readers rebuild with what they should be, where readers have such."""
    source = readers[0].wire.encoder.lm
    embeds = [source.embed(source.tokenize(text)).float() for text in texts]
    rebuilt = [
        1 - cosine_distance(*aligned_embeds(reader, texts, contents)).item()
        for reader in readers
        if isinstance(reader.adapter.injector, Embeddings)
    ]
    return {
        "cosine": pairwise_cosine(torch.stack([c.float().mean(0) for c in codes])),
        "cosine_text": pairwise_cosine(torch.stack([rows.mean(0) for rows in embeds])),
        "within": within_cosine(codes),
        "within_text": within_cosine(embeds),
        **({"reconstruction_cosine": sum(rebuilt) / len(rebuilt)} if rebuilt else {}),
    }


def _size(prefix: KVPrefix, kind: Literal["keys", "values"]) -> float:
    """Root mean square of all that is seen of a cache."""
    seen = [layer.transpose(1, 2)[prefix.mask] for layer in getattr(prefix, kind)]
    return torch.stack([x.float().square().mean() for x in seen]).mean().sqrt().item()
