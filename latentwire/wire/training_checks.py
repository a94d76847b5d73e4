"""Checks of a wire's training while it runs, on examples that it never sees: the figures that
train/alarms.py reads.

The answers are scored twice, by training's own prompts and targets and by the code of an
evaluation. The two must give the same numbers; where they do not, training works on another task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from latentwire.evals.baselines import Condition
from latentwire.evals.harness import BATCH, Answer, evaluate
from latentwire.evals.metrics import bootstrap, ratio
from latentwire.lm import FrozenLM, KVPrefix, token_log_probs
from latentwire.tasks.qa import Passage
from latentwire.train.alarms import pairwise_cosine, within_cosine
from latentwire.wire.compressed_kv import CompressedKV
from latentwire.wire.evaluation import conditions
from latentwire.wire.selectors import Reading
from latentwire.wire.wire import Wire

Forced = Callable[[Sequence[Passage], KVPrefix], tuple[Tensor, Tensor, Tensor]]
"""(passages, their contexts) -> training's logits [b, n, v], targets [b, n] and mask [b, n]."""
Read = Callable[[Sequence[Passage]], Reading]
"""Training's own pass over the texts."""


@torch.no_grad()
def check_text(
    wire: Wire, passages: Sequence[Passage], read: Read, forced: Forced
) -> dict[str, float]:
    """Check the soft prompt, with the full text as context; {} for fewer than two passages."""
    if len(passages) < 2:
        return {}
    rows = [forced_rows(*forced(b, read(b).states.prefix)) for b in _batches(passages)]
    return _scores(wire, passages, torch.cat(rows), conditions(wire, passages)["text"])


@torch.no_grad()
def check_latents(
    wire: Wire, passages: Sequence[Passage], read: Read, forced: Forced
) -> dict[str, float]:
    """Check the latents: the same, what another passage's latents cost, how much they differ
    between passages, and their size beside the reader's own keys and values."""
    if len(passages) < 2:
        return {}

    def compressed(batch: Sequence[Passage]) -> tuple[list[CompressedKV], list[_Sums]]:
        reading = read(batch)
        return wire.compress(reading), [_sums(z) for z in _whole(reading)]

    made = [compressed(batch) for batch in _batches(passages)]
    latents, texts = [z for row, _ in made for z in row], [z for _, row in made for z in row]
    sent = [_sums(z) for z in latents]
    own, other = (
        torch.cat(
            [
                forced_rows(*forced(part, wire.prefix(z)))
                for part, z in zip(_batches(passages), _batches(row), strict=True)
            ]
        )
        for row in (latents, latents[1:] + latents[:1])
    )
    gap = ((other[:, 0] - own[:, 0]) / own[:, 1]).tolist()
    return {
        **_scores(wire, passages, own, conditions(wire, passages)["wire"]),
        "gap": sum(gap) / len(gap),
        "gap_low": bootstrap(gap, _owners(passages))[0],
        "cosine": pairwise_cosine(torch.stack([z.mean for z in sent])),
        "cosine_text": pairwise_cosine(torch.stack([z.mean for z in texts])),
        "within": sum(z.within for z in sent) / len(sent),
        "within_text": sum(z.within for z in texts) / len(texts),
        "scale.keys": _size(sent, "keys") / _size(texts, "keys"),
        "scale.values": _size(sent, "values") / _size(texts, "values"),
    }


def _scores(
    wire: Wire, passages: Sequence[Passage], forced: Tensor, condition: Condition
) -> dict[str, float]:
    """The answers under training's code (`forced`, of `forced_rows`) and under evaluation's."""
    answers = [a for b in evaluate(wire.lm, wire.format, passages, {"": condition}) for a in b]
    nll, tokens, _ = forced.T.tolist()
    held, low, high = ratio(nll, tokens, _owners(passages))
    return {
        "held": held,
        "held_low": low,
        "held_high": high,
        "held_n": float(len(passages)),
        **compared([(wire.lm, answers, forced)]),
    }


def compared(told: Sequence[tuple[FrozenLM, Sequence[Answer], Tensor]]) -> dict[str, float]:
    """Compares what readers answered with the rows of `forced_rows` of the same questions."""
    both = [
        (a, *row)
        for _, answers, rows in told
        for a, row in zip(answers, rows.tolist(), strict=True)
    ]
    said = {(lm.name, _first(lm, a.answer)) for lm, answers, _ in told for a in answers}
    wanted = {(lm.name, _first(lm, a.gold[0])) for lm, answers, _ in told for a in answers}
    tokens = sum(a.tokens for a, *_ in both)
    return {
        "evaluated": sum(a.nll for a, *_ in both) / tokens,
        "mismatch": sum(abs(a.nll - nll) for a, nll, *_ in both) / tokens,
        "forced": sum(right for *_, right in both) / len(both),
        "free": sum(a.answer == a.gold[0].strip() for a, *_ in both) / len(both),
        "distinct": float(len(said)),
        "distinct_gold": float(len(wanted)),
    }


def forced_rows(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """[b, 3] of each answer under training's code, which gave the logits [b, n, v]: its NLL, its
    tokens, and whether the most likely token is right everywhere."""
    log_probs = token_log_probs(logits, targets)
    right = ((logits.argmax(-1) == targets) | ~mask).all(1)
    return torch.stack([-(log_probs * mask).sum(1), mask.sum(1), right], 1).cpu().double()


def _first(lm: FrozenLM, answer: str) -> int | None:
    """The first token of an answer as it is generated; None of an empty one."""
    return int(lm.tokenize(lm.frame.answer_prefix + answer)[0]) if answer else None


class _Sums(NamedTuple):
    """The sums that a check needs of one text's keys and values, which themselves take
    gigabytes."""

    mean: Float[Tensor, " c"]
    """Its mean value vectors. Keys are left out, since they turn with their positions."""
    keys: float
    """Sum of their squares."""
    values: float
    entries: int
    within: float
    """Mean cosine between the value vectors of one head."""


def _sums(z: CompressedKV) -> _Sums:
    keys, values = (kv.float().square().sum().item() for kv in (z.keys, z.values))
    heads = z.values.float().split(z.lengths.flatten().tolist())
    means = torch.cat([slots.mean(0) for slots in heads])
    return _Sums(means, keys, values, z.keys.numel(), within_cosine(heads))


def _whole(reading: Reading) -> Iterator[CompressedKV]:
    """The uncompressed keys and values of each row's text, one after another."""
    for row, n in enumerate(reading.mask.sum(1).tolist()):
        kept = (reading.keys, reading.values)
        keys, values = (torch.stack([layer[row, :, -n:] for layer in kv]) for kv in kept)
        lengths = torch.full(keys.shape[:2], n, device=keys.device)
        places = torch.arange(n, device=keys.device).repeat(lengths.numel())
        yield CompressedKV(keys.flatten(0, 2), values.flatten(0, 2), places, lengths, n)


def _size(rows: Sequence[_Sums], kind: Literal["keys", "values"]) -> float:
    """Root mean square over everything."""
    return math.sqrt(sum(getattr(row, kind) for row in rows) / sum(row.entries for row in rows))


def _owners(passages: Sequence[Passage]) -> list[str]:
    return [p.context for p in passages for _ in p.questions]


def _batches(rows: Sequence) -> list:
    return [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
