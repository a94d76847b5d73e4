"""The objectives of a shared wire's second stage of training, and their weights.

Each step's texts are sent once, and every reader is trained behind them (`reader_parts`). A part is
named like the field of Objectives that weighs it, and where the weight is 0 nothing of it is
computed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentwire.evals.baselines import full_text
from latentwire.lm import FrozenLM, KVPrefix, Prompt, pad_right
from latentwire.lm.samplers import seed_of
from latentwire.tasks.qa import Passage, answer_ids, answer_targets, passages_prompt
from latentwire.train import parallel
from latentwire.train.losses import cosine_distance, distillation, moment_error, token_loss
from latentwire.train.schedules import Schedule
from latentwire.wire.learned.injectors.embeddings import Embeddings, share_means
from latentwire.wire.learned.reader import Reader, Values
from latentwire.wire.learned.shared_wire import SharedWire

OFF, FULL, FALLING = Schedule(0.0), Schedule(1.0), Schedule(1.0, 0.3, over=2000.0)
CUE = 4
"""Tokens of a piece of text that are given when the rest of it is to be rebuilt."""


@dataclass(frozen=True)
class Objectives:
    """Weights of the objectives.

    A mean over tokens is over those of the whole step, however it is parted among processes and
    accumulated parts. `embeds` compares the rows of one part, so that parts change it; so does a
    calibration by the statistics of a batch.
    """

    reconstruction: Schedule = FALLING
    """Cross-entropy of a piece of the text, from its first tokens on."""
    ce: Schedule = FULL
    """Cross-entropy of the answers."""
    kl: Schedule = FULL
    """KL to the same reader, all adapters off, with the full text."""
    embeds: Schedule = OFF
    """Cosine distance and error of statistics of the reader's input embeddings, beside the means of
    its own over each latent's share of the text; for the injector "embeddings"."""
    piece: int = 48
    """Tokens of a text that `reconstruction` takes."""

    def __post_init__(self) -> None:
        for name, schedule in self.schedules.items():
            if schedule.lowest < 0:
                raise ValueError(f"{name} is {schedule}; expected 0 or more")
        if self.piece <= CUE:
            raise ValueError(f"piece is {self.piece}; expected more than the cue's {CUE}")

    @property
    def schedules(self) -> dict[str, Schedule]:
        """All weights by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Schedule)}


@dataclass(frozen=True)
class Step:
    """One step, the same for all readers."""

    batch: Sequence[Passage]
    """This part of it."""
    whole: Sequence[Passage]
    """All parts."""
    weights: Mapping[str, float]
    """Weights of the objectives at this step."""
    most: int
    """Longest piece that is rebuilt, in tokens."""
    seed: int
    """Seed of the run."""
    number: int

    def on(self, *names: str) -> bool:
        """True where any of these objectives weighs more than 0."""
        return any(self.weights[name] > 0 for name in names)

    def share(self, units: Callable[[Passage], int]) -> float:
        """The weight of a mean over this part's units in the mean of the step."""
        return parallel.weight(self.batch, self.whole, units)

    def piece(self, lm: FrozenLM, passage: Passage) -> Int[Tensor, " n"]:
        """The tokens of a text that are rebuilt, the cue among them."""
        ids = lm.tokenize(passage.context)
        draw = random.Random(seed_of(self.seed, self.number, passage.context))
        start = draw.randint(0, max(0, len(ids) - self.most))
        return ids[start : start + self.most]

    def total(self, parts: Mapping[str, Tensor]) -> Tensor | int:
        """The weighted sum."""
        return sum(self.weights[name] * part for name, part in parts.items())


def reader_parts(
    reader: Reader, step: Step, texts: Sequence[str], contents: Sequence[Values]
) -> dict[str, Tensor]:
    """The objectives of one reader behind the latents (`contents`) of the step's texts."""
    parts: dict[str, Tensor] = {}
    if any(p.questions for p in step.whole):  # a part without questions adds 0 to the step's means
        parts = {name: torch.zeros(()) for name in ("ce", "kl") if step.on(name)}
    asked = parts and any(p.questions for p in step.batch)
    if asked or step.on("reconstruction"):
        prefix = reader.prefix(contents)
        if step.on("reconstruction"):
            parts["reconstruction"] = _reconstruction(reader.lm, step, prefix)
        if asked:
            parts |= _answer_parts(reader, step, prefix)
    if step.on("embeds"):
        rows, target = aligned_embeds(reader, texts, contents)
        parts["embeds"] = cosine_distance(rows, target) + moment_error(rows, target)
    return parts


def asked_prompt(
    lm: FrozenLM, soft_prompt: Tensor, batch: Sequence[Passage], context: KVPrefix
) -> Prompt:
    """All questions of the batch; texts without any take no part."""
    rows = [row for row, p in enumerate(batch) if p.questions]
    index = torch.tensor(rows).to(lm.device)
    return passages_prompt(lm, soft_prompt, [batch[row] for row in rows], context.rows(index))


def answer_tokens(lm: FrozenLM, passage: Passage) -> int:
    """Tokens of a passage's answers."""
    return sum(len(answer_ids(lm, q.answers[0])) for q in passage.questions)


def _answer_parts(reader: Reader, step: Step, prefix: KVPrefix) -> dict[str, Tensor]:
    """The objectives of the answers, from one pass of this reader and one of its teacher."""
    lm = reader.lm
    targets, mask = answer_targets(lm, step.batch)
    prompt = asked_prompt(lm, reader.format, step.batch, prefix)
    student, parts = lm.head(lm.shifted_hidden(prompt, targets, mask)[mask]), {}
    if step.on("ce"):
        parts["ce"] = token_loss(student, targets[mask])
    if step.on("kl"):
        parts["kl"] = distillation(_teacher(reader, step.batch, targets, mask), student)
    share = step.share(partial(answer_tokens, lm))
    return {name: part * share for name, part in parts.items()}


@torch.no_grad()
def _teacher(reader: Reader, batch: Sequence[Passage], targets: Tensor, mask: Tensor) -> Tensor:
    """Logits [k, v] that predict the answers after the full text, every adapter off."""
    lm = reader.lm.with_adapter(None)
    prompt = asked_prompt(lm, reader.format, batch, full_text(lm)([p.context for p in batch]))
    return lm.packed_logits(prompt, targets, mask)


def _reconstruction(lm: FrozenLM, step: Step, prefix: KVPrefix) -> Tensor:
    """Cross-entropy of a piece of each text, given its first CUE tokens."""
    pieces = [step.piece(lm, p) for p in step.batch]
    request = torch.cat([lm.tokenize("\n\nRepeat the text above from here on."), lm.frame.suffix])
    prompt = Prompt.from_ids(lm, [torch.cat([request, p[:CUE]]) for p in pieces], prefix)
    targets, mask = pad_right([p[CUE:] for p in pieces])
    loss = token_loss(lm.packed_logits(prompt, targets, mask), targets[mask])
    return loss * step.share(lambda p: len(step.piece(lm, p)[CUE:]))


def aligned_embeds(
    reader: Reader, texts: Sequence[str], contents: Sequence[Values]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
    """The reader's input embeddings of the latents, and the means of its own embeddings over each
    latent's share of the text."""
    injector, lm, encoder = reader.adapter.injector, reader.lm, reader.wire.encoder
    assert isinstance(injector, Embeddings)
    slots = reader.adapter.slots(*reader.adapter_inputs(contents))
    made, true = [], []
    for text, row, mask in zip(texts, injector.embeds(slots), slots.mask, strict=True):
        embeds = lm.embed(lm.tokenize(text)).float()
        latents, length = row[mask], len(encoder.units(text)) / encoder.per_latent
        means, full = share_means(embeds, len(latents), length)
        made.append(latents[full])
        true.append(means)
    return torch.cat(made), torch.cat(true)


def values_of(wire: SharedWire, texts: Sequence[str], codes: Sequence[Tensor]) -> list[Values]:
    """Codes of texts as the contents of their messages."""
    return [Values(rows, wire.encoder.span(t)) for rows, t in zip(codes, texts, strict=True)]


@torch.no_grad()
def taught(
    reader: Reader, passages: Sequence[Passage], contents: Sequence[Values]
) -> tuple[KVPrefix, tuple[Tensor, Tensor, Tensor]]:
    """For checks, by training's own code: the reader's cache of texts, and logits [b, n, v],
    targets and mask of the answers to their questions. contents: of the texts (`values_of`)."""
    prefix = reader.prefix(contents)
    targets, mask = answer_targets(reader.lm, passages)
    prompt = asked_prompt(reader.lm, reader.format, passages, prefix)
    return prefix, (reader.lm.logits(prompt, targets, mask), targets, mask)
