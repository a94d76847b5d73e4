"""Evaluating a lens: how much of an activation is in its words, beside the controls that would be
as good if the words said nothing.

    latentwire lens eval runs/lens-smollm2/lens --text held_out.txt --json result.json
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

from latentwire.evals.metrics import explained, ratio
from latentwire.lens.activations import (
    Activations,
    at,
    draw,
    read_documents,
    tokenized,
)
from latentwire.lens.checks import LensError
from latentwire.lens.decoder import Decoder
from latentwire.lens.interventions import swapping
from latentwire.lens.lens import Lens, several
from latentwire.lens.objectives import next_token_kl
from latentwire.lm import seed_of, token_log_probs
from latentwire.terminal import terminal
from latentwire.texts import check_least
from latentwire.train.batches import shuffled

BATCH = 16
"""Activations that are explained together."""
REFERENCES = ("true_text",)
"""Rows that are no controls: they see text that a lens has to recover from the activation."""
EXAMPLES = 10
FITTED = 100
"""Documents on which the untrained decoder's projections are fitted, as training begins."""


@dataclass(frozen=True)
class LensEvaluation:
    """The size of an evaluation."""

    documents: int = 200
    """Documents, chosen at random; all if there are fewer."""
    positions: int = 1
    """Random positions in each."""
    samples: int = 1
    """1 for the greedy explanation; else the best of it and of drawn ones, so many in all, for the
    untrained decoder and the other example's text too."""
    window: int = 128
    """Tokens of a document that are read."""
    skip: int = 4
    """First tokens, after BOS, whose activations are left out."""
    seed: int = 0
    """Seed of the choice of documents, positions, samples and shuffles."""

    def __post_init__(self) -> None:
        check_least(self, LensError, documents=2, positions=1, samples=1, window=2)


@torch.no_grad()
def evaluate_lens(lens: Lens, text: Sequence[Path], config: LensEvaluation | None = None) -> dict:
    """The lens and every control on random activations of a text; the whole result as one dict.

    Each row has fve (1 - SSE / SST against the training mean) with its 95% interval over documents,
    cosine, KL (in nats, of the next token, original || swapped) and loss recovered (0: no better
    than the mean activation, 1: as without a swap). Raises LensError for fewer than two documents.
    """
    config = config or LensEvaluation()
    texts = tokenized(lens.lm, read_documents(text), config.window, config.skip)
    texts = [t for t in texts if len(t.usable) > 1]  # the next token is needed for its loss
    if len(texts) < 2:
        raise LensError(
            f"the text has {len(texts)} usable documents; expected at least 2, with blank lines "
            "between them"
        )
    count = min(config.documents, len(texts))
    chosen = [texts[i] for i in sorted(shuffled(len(texts), config.seed, 0, count))]
    places = draw(chosen, config.positions, config.seed, followed=True)
    starts = range(0, len(places), BATCH)
    parts = [at(lens.lm, lens.config.layer, places[i : i + BATCH]) for i in starts]
    batch = Activations(
        torch.cat([p.vectors for p in parts]),
        tuple(t for p in parts for t in p.texts),
        tuple(i for p in parts for i in p.positions),
    )
    said = explanations(lens, lens.decoder, batch, config)
    plain = replace(lens.config.decoder, lora=0)
    untrained = Decoder(lens.lm, plain, lens.norm)
    untrained.fit(lens.config.layer, chosen[:FITTED])
    rows = reconstructions(lens, batch, said, explanations(lens, untrained, batch, config), config)
    scores = _scores(lens, batch, rows)
    controls = {k: v for k, v in scores.items() if k not in ("lens", *REFERENCES)}
    differences = _differences(lens, batch, {name: rows[name] for name in ("lens", *controls)})
    return {
        **scores["lens"],
        "controls": controls,
        "references": {name: scores[name] for name in REFERENCES},
        "differences": differences,
        "beats_every_control": all(d["low"] > 0 for d in differences.values()),
        "n": len(batch),
        "documents": count,
        "samples": config.samples,
        "seed": config.seed,
        "model": lens.config.model,
        "layer": lens.config.layer,
        "explanation_tokens": sum(len(lens.lm.tokenize(t)) for t in said) / len(said),
        "examples": _examples(lens, batch, said, rows["lens"], config.seed),
    }


def explanations(
    lens: Lens, decoder: Decoder, batch: Activations, config: LensEvaluation
) -> list[str]:
    """One explanation of each activation: the greedy one, or of several the one whose
    reconstruction is best."""
    chosen: list[str] = []
    for start in track(
        range(0, len(batch), BATCH), description="explaining", console=terminal(stderr=True)
    ):
        vectors, k = batch.vectors[start : start + BATCH], config.samples
        texts = several(decoder, vectors, k, 1.0, seed_of(config.seed, start))
        errors = (lens.reconstruct(texts) - vectors.repeat_interleave(k, 0)).square().sum(1)
        best = errors.view(-1, k).argmin(1).tolist()
        chosen += [texts[row * k + sample] for row, sample in enumerate(best)]
    return chosen


def reconstructions(
    lens: Lens,
    batch: Activations,
    said: Sequence[str],
    untrained: Sequence[str],
    config: LensEvaluation,
) -> dict[str, Tensor]:
    """The lens's vectors [n, d] and those of every control, in the order in which they are shown.

    said, untrained: explanations of the lens and of a decoder without training. Controls that are
    given tokens get as many as the example's own explanation has.
    """
    lm, n = lens.lm, len(batch)
    counts = [len(lm.tokenize(text)) for text in said]
    numbers = [t.number for t in batch.texts]
    others = [  # beginning with the next
        [j % n for j in range(i + 1, i + n) if numbers[j % n] != numbers[i]] for i in range(n)
    ]
    ranked = lm.logit_lens(batch.vectors).topk(max(1, *counts)).indices
    heard = partial(_encoded, lens)
    made = {
        "lens": heard([lm.tokenize(t) for t in said]),
        "mean": lens.mean.expand(n, -1),
        "zero": torch.zeros_like(batch.vectors),
        "other_text": _nearest(lens, said, others, batch, config.samples),
        "shuffled_words": heard(
            [lm.tokenize(_shuffled(t, 0, config.seed + i)) for i, t in enumerate(said)]
        ),
        "shuffled_but_last": heard(
            [lm.tokenize(_shuffled(t, 1, config.seed + i)) for i, t in enumerate(said)]
        ),
        "current_token": heard(batch.up_to([1] * n)),
        "previous_tokens": heard(batch.up_to(counts, own=0)),
        "untrained_decoder": heard([lm.tokenize(t) for t in untrained]),
        "logit_lens": heard([row[:c] for row, c in zip(ranked, counts, strict=True)]),
        "true_text": heard(batch.up_to(counts)),
    }
    return made


def _scores(lens: Lens, batch: Activations, rows: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    groups = [t.number for t in batch.texts]
    distances = (batch.vectors - lens.mean).square().sum(1).tolist()
    effects = _effects(lens, batch, rows)
    scores: dict[str, dict[str, float]] = {}
    for name, vectors in rows.items():
        errors = (vectors - batch.vectors).square().sum(1).tolist()
        fve, low, high = explained(errors, distances, groups)
        cosine = torch.cosine_similarity(vectors, batch.vectors).mean().item()
        kl, loss = effects[name]
        unharmed, harmed = effects["original"][1], effects["mean"][1]
        recovered = (harmed - loss) / (harmed - unharmed) if harmed != unharmed else 0.0
        scores[name] = {
            "fve": fve,
            "fve_low": low,
            "fve_high": high,
            "cosine": cosine,
            "kl": kl,
            "loss_recovered": recovered,
        }
    return scores


def _differences(
    lens: Lens, batch: Activations, rows: dict[str, Tensor]
) -> dict[str, dict[str, float]]:
    """The lens's FVE minus that of every other row on the same activations, each with its 95%
    interval over texts."""
    groups = [t.number for t in batch.texts]
    distances = (batch.vectors - lens.mean).square().sum(1).tolist()
    errors = {name: (v - batch.vectors).square().sum(1) for name, v in rows.items()}
    own = errors.pop("lens")
    intervals = {n: ratio((e - own).tolist(), distances, groups) for n, e in errors.items()}
    return {n: dict(zip(("mean", "low", "high"), i, strict=True)) for n, i in intervals.items()}


def _effects(
    lens: Lens, batch: Activations, rows: dict[str, Tensor]
) -> dict[str, tuple[float, float]]:
    """For each row, and the original: mean KL after the swap, and mean loss on the true next
    token."""
    kls: dict[str, list[Tensor]] = {name: [] for name in ("original", *rows)}
    losses: dict[str, list[Tensor]] = {name: [] for name in kls}
    for start in track(
        range(0, len(batch), BATCH), description="swapping", console=terminal(stderr=True)
    ):
        index = range(start, min(start + BATCH, len(batch)))
        part = batch.pick(index)
        swap = swapping(lens.lm, lens.config.layer, part.texts, part.positions)
        original = swap(None)
        targets = torch.cat(part.after(1))
        for name in kls:
            logits = original if name == "original" else swap(rows[name][list(index)])
            kls[name].append(next_token_kl(original, logits))
            losses[name].append(-token_log_probs(logits, targets))
    return {
        n: (torch.cat(k).mean().item(), torch.cat(losses[n]).mean().item()) for n, k in kls.items()
    }


def _encoded(lens: Lens, texts: Sequence[Tensor]) -> Tensor:
    return torch.cat([lens.encoder(texts[i : i + BATCH]) for i in range(0, len(texts), BATCH)])


def _nearest(
    lens: Lens,
    said: Sequence[str],
    others: Sequence[Sequence[int]],
    batch: Activations,
    samples: int,
) -> Tensor:
    """The nearest vector to each activation, made of as many other examples' words as the lens has
    tries."""
    tried = [(i, j) for i, rows in enumerate(others) for j in rows[:samples]]
    ids = [lens.lm.tokenize(text) for text in said]
    made = _encoded(lens, [ids[j] for _, j in tried])
    groups = made.split([len(rows[:samples]) for rows in others])
    nearest = [(g - v).square().sum(1).argmin() for g, v in zip(groups, batch.vectors, strict=True)]
    return torch.stack([g[i] for g, i in zip(groups, nearest, strict=True)])


def _shuffled(text: str, kept: int, seed: int) -> str:
    """Another order of a text's words, the last `kept` of them where they were; the space that the
    text begins with stays."""
    words = text.split()
    moving, still = words[: len(words) - kept], words[len(words) - kept :]
    order = torch.randperm(len(moving), generator=torch.Generator().manual_seed(seed)).tolist()
    if order == sorted(order):  # that would be no control
        order = order[1:] + order[:1]
    moving = [moving[i] for i in order]
    return text[: len(text) - len(text.lstrip())] + " ".join(moving + still)


def _examples(
    lens: Lens, batch: Activations, said: Sequence[str], made: Tensor, seed: int
) -> list[dict[str, object]]:
    """Ten explanations, chosen at random; with the text that each token stands in, and the error in
    units of the activations' variance."""
    errors = ((made - batch.vectors) / lens.spread).square().sum(1).tolist()
    order = shuffled(len(batch), seed, 0, min(EXAMPLES, len(batch)))
    decode = lens.lm.spelled
    context, after = batch.up_to([24] * len(batch)), batch.after(8)
    return [
        {
            "text": decode(context[i][:-1]),
            "token": decode(context[i][-1:]),
            "after": decode(after[i]),
            "explanation": said[i],
            "error": errors[i],
        }
        for i in order
    ]
