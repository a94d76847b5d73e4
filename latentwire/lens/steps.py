"""The steps of a lens's training: which activations one sees, and what it is trained for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from latentwire.lens.activations import SINK, Activations, Place, Text, at, draw
from latentwire.lens.config import LensRecipe
from latentwire.lens.decoder import Decoder, words
from latentwire.lens.interventions import swapping
from latentwire.lens.lens import Lens
from latentwire.lens.objectives import (
    group_advantages,
    k3,
    next_token_kl,
    policy_gradient,
    scaled_mse,
    warm_start,
)
from latentwire.lm import (
    FrozenLM,
    Generation,
    Sampled,
    StraightThroughGumbel,
    pad_right,
    seed_of,
    seeded_noise,
)
from latentwire.lm.samplers import Noise
from latentwire.tasks.base import DataError, read_jsonl
from latentwire.train import parallel
from latentwire.train.batches import shuffled
from latentwire.train.loop import Loss
from latentwire.train.schedules import Schedule

Source = Callable[[Sequence[Place]], Activations]
"""The source of a step's activations."""


@dataclass(frozen=True)
class Pair:
    """Somebody's words for the activation of a token."""

    text: Text
    position: int
    """Position of the token, BOS counted."""
    explanation: Tensor
    """Token ids [n]."""


def read_pairs(lm: FrozenLM, path: Path) -> list[Pair]:
    """Pairs of a JSONL file of {"text", "token", "explanation"}; raises DataError for a line that
    is none."""
    pairs: list[Pair] = []
    for row in read_jsonl(path, {"text": str, "explanation": str}):
        own, token, n = lm.tokenize(row["text"]), row.get("token"), len(lm.bos)
        first = max(0, SINK - n)
        if type(token) is not int or not first <= token < len(own):
            raise DataError(
                f"{path}, pair {len(pairs) + 1}: token is {token!r}; expected one of the text's, "
                f"{first}..{len(own) - 1}"
            )
        text = Text(len(pairs), torch.cat([lm.bos, own[: token + 1]]), n, n)
        pairs.append(Pair(text, n + token, lm.tokenize(row["explanation"])))
    return pairs


def batch_of(
    source: Source, texts: Sequence[Text], recipe: LensRecipe, step: int
) -> tuple[Activations, float]:
    """The activations of one step, of this process's share of its documents, and what their mean
    counts in the average over processes: short documents have fewer rows than others."""
    chosen = [texts[i] for i in shuffled(len(texts), recipe.seed, step, recipe.data.documents)]
    places = draw(chosen, recipe.data.positions, seed_of("step", recipe.seed, step))
    mine = parallel.share(places)
    rows, own = (sum(len(positions) for _, positions in part) for part in (places, mine))
    return source(mine), own * len(places) / (rows * len(mine))


def warm_loss(
    lens: Lens, source: Source, texts: Sequence[Text], pairs: Sequence[Pair], recipe: LensRecipe
) -> Loss:
    """Stage 1: given words for each activation, and the activation from them. The words are those
    of `pairs`, as many a step as documents and positions give, or where there are none the text."""
    data = recipe.data

    def loss(step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        weight = 1.0
        if pairs:
            size = data.documents * (data.positions or 1)
            mine = parallel.share([pairs[i] for i in shuffled(len(pairs), recipe.seed, step, size)])
            batch = at(lens.lm, lens.config.layer, [(p.text, [p.position]) for p in mine])
            written = [p.explanation for p in mine]
        else:
            batch, weight = batch_of(source, texts, recipe, step)
            written = batch.up_to([data.before] * len(batch))
        parts = warm_losses(lens, batch, written)
        tokens = float(sum(len(own) + 1 for own in written))  # each ends with EOS
        total = weight * torch.stack(list(parts.values())).sum()
        return total, {**parts, "tokens": tokens, "count": 1.0}

    return loss


def warm_losses(lens: Lens, batch: Activations, written: Sequence[Tensor]) -> dict[str, Tensor]:
    """The objectives of one step on given explanations, each a mean over rows."""
    end = torch.tensor(lens.lm.stop_ids[:1], device=lens.lm.device)
    ids, mask = pad_right([torch.cat([text, end]) for text in written])
    log_probs = lens.decoder.score(batch.vectors, ids, mask)
    mse = scaled_mse(lens.encoder(written), batch.vectors, lens.spread)
    return {"nll": warm_start(log_probs, mask).mean(), "mse": mse.mean()}


def joint_loss(
    lens: Lens, source: Source, texts: Sequence[Text], recipe: LensRecipe, epoch: int
) -> Loss:
    """Stage 2: the decoder's own explanations, and what the encoder makes of them. The decoder as
    it is now is the reference."""
    compared = recipe.refine == "grpo" and recipe.weights.reference.on
    reference = frozen_copy(lens) if compared else None

    def loss(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        # Other activations than the warm start's: the order goes on where it ended.
        batch, weight = batch_of(source, texts, recipe, recipe.warm.steps + step)
        weights = {
            name: schedule.at(step, epoch)
            for name, schedule in vars(recipe.weights).items()
            if isinstance(schedule, Schedule)
        }
        parts = joint_losses(lens, reference, batch, recipe, step, recipe.tau.at(step, epoch))
        total = torch.stack([weights.get(n, 1.0) * p for n, p in parts.items()]).sum()
        return weight * total, parts

    return loss


def joint_losses(
    lens: Lens,
    reference: Decoder | None,
    batch: Activations,
    recipe: LensRecipe,
    step: int,
    tau: float,
) -> dict[str, Tensor]:
    """The objectives of one step, each a mean over rows; those of weight 0 throughout are left out.

    With GRPO the decoder learns from `policy` and `reference`, and the encoder from `mse` and `kl`;
    with Gumbel both learn from these two.
    """
    decoder, weights, grpo = lens.decoder, recipe.weights, recipe.refine == "grpo"
    samples = recipe.group if grpo else 1
    noise = seeded_noise(_seeds(batch, recipe, step, samples))
    said, pieces = _explained(lens, batch, recipe, noise, tau)
    made = lens.encoder(pieces)
    errors = scaled_mse(made, batch.vectors.repeat_interleave(samples, 0), lens.spread)
    parts = {"mse": errors.mean()}
    kls = None
    if weights.kl.on or (grpo and recipe.reward == "kl"):
        swap = swapping(lens.lm, lens.config.layer, batch.texts, batch.positions, samples)
        with torch.no_grad():
            original = swap(None)
        with torch.set_grad_enabled(weights.kl.on):
            kls = next_token_kl(original, swap(made))
        parts["kl"] = kls.mean()
    if grpo:
        log_probs = decoder.score(batch.vectors, said.ids, said.mask, recipe.temperature)
        cost = (errors if recipe.reward == "mse" or kls is None else kls).detach()
        advantages = group_advantages(-cost.view(-1, samples)).flatten()
        parts["policy"] = policy_gradient(log_probs, advantages, said.mask).mean()
        if reference is not None:
            with torch.no_grad():
                before = reference.score(batch.vectors, said.ids, said.mask, recipe.temperature)
            parts["reference"] = k3(log_probs, before, said.mask).mean()
    return parts


def _explained(
    lens: Lens, batch: Activations, recipe: LensRecipe, noise: Noise, tau: float
) -> tuple[Generation, list[Tensor]]:
    """The decoder's explanations of activations, and what the encoder reads of each: with GRPO ids
    of the text, with Gumbel embeddings that gradients flow through."""
    if recipe.refine == "grpo":
        with torch.no_grad(), parallel.gathered(lens.lm):
            sampler = Sampled(noise, recipe.temperature)
            said = lens.decoder.generate(batch.vectors, sampler, recipe.group)
        # Only the text counts that somebody reads, so it is tokenized anew, as in an evaluation.
        return said, [lens.lm.tokenize(text) for text in said.texts]
    sampler = StraightThroughGumbel(noise, tau, recipe.temperature)
    said = lens.decoder.generate(batch.vectors, sampler)
    own = words(said, lens.lm)
    return said, [row[keep] for row, keep in zip(said.embeds, own, strict=True)]


@torch.no_grad()
def frozen_copy(lens: Lens) -> Decoder:
    """The decoder as it is now, which later training does not change."""
    copy = Decoder(lens.lm, lens.config.decoder, lens.norm)
    targets = copy.tensors()
    for name, tensor in lens.decoder.tensors().items():
        targets[name].copy_(tensor)
    copy.project.gain.copy_(lens.decoder.project.gain)
    return copy


def _seeds(batch: Activations, recipe: LensRecipe, step: int, samples: int) -> list[int]:
    """One seed for each explanation, by where its activation stands, whatever the batch."""
    return [
        seed_of(recipe.seed, step, text.number, position, sample)
        for text, position in zip(batch.texts, batch.positions, strict=True)
        for sample in range(samples)
    ]
