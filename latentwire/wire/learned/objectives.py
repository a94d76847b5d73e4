"""What a shared wire is trained for: the objectives of its second stage, and their weights.

Each step's texts are sent once. What the latents alone are trained for (`shared_parts`) counts as
it is, what readers do behind them (`reader_parts`) in the mean over readers. A part is named like
the field of Objectives that weighs it, and where the weight is 0 nothing of it is computed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from latentwire.lm import FrozenLM, KVPrefix, Prompt, pad_right
from latentwire.lm.samplers import seed_of
from latentwire.tasks.qa import Passage, answer_ids, answer_targets, passages_prompt
from latentwire.train import parallel
from latentwire.train.losses import (
    cosine_distance,
    distillation,
    entropy_loss,
    info_nce,
    leading,
    mean_cosine,
    moment_error,
    scaled_error,
    token_loss,
)
from latentwire.train.noise import dropped, halves, scheduled_sampling
from latentwire.train.schedules import Schedule
from latentwire.wire.learned.injectors.embeddings import Embeddings, share_means
from latentwire.wire.learned.reader import Reader, Values
from latentwire.wire.learned.shared_wire import SharedWire

OFF, FULL, FALLING = Schedule(0.0), Schedule(1.0), Schedule(1.0, 0.3, over=2000.0)
SHARES = ("text", "dropout", "sampled")
"""Fields of Objectives that are no weights."""
ANSWERED = ("ce", "first", "leading", "entropy", "kl", "states")
"""Those that the answers are trained for."""
CUE = 4
"""Tokens of a piece of text that are given when the rest of it is to be rebuilt."""


@dataclass(frozen=True)
class Objectives:
    """Weights of the objectives, and what is disturbed on the way.

    A mean over tokens is over those of the whole step, however it is parted among processes and
    accumulated parts. Objectives that compare rows compare those of one part, so that parts change
    them: contrast, diversity, embeds, and the variance that states are scaled by. So does a
    calibration by the statistics of a batch.
    """

    reconstruction: Schedule = FALLING
    """Cross-entropy of a piece of the text, from its first tokens on."""
    ce: Schedule = FULL
    """Cross-entropy of the answers."""
    first: Schedule = OFF
    """Cross-entropy of each answer's first token."""
    leading: Schedule = OFF
    """Cross-entropy of each answer's first `leading_tokens`."""
    entropy: Schedule = OFF
    """Entropy of the first token's distribution, or how far it is below `entropy_floor`."""
    kl: Schedule = FULL
    """KL to the same reader, all adapters off, with the full text."""
    states: Schedule = OFF
    """Error of the states that predict the answers, beside that reader's."""
    continuation: Schedule = OFF
    """Cross-entropy of how a text goes on after a cut, given latents of what is before it."""
    embeds: Schedule = OFF
    """Cosine distance and error of statistics of the reader's input embeddings, beside the means of
    its own over each latent's share of the text; for the injector "embeddings"."""
    gist: Schedule = OFF
    """Cosine distance and error of the text's embeddings, rebuilt from the trunk's states."""
    contrast: Schedule = OFF
    """InfoNCE between two halves of a text's latents, beside those of the step's other texts."""
    diversity: Schedule = OFF
    """Mean cosine of the mean latents of different texts."""
    text: Schedule = OFF
    """Share of every text, at its end, that readers get as text behind the latents of the rest: a
    warm-up where it falls, with a tail where it ends above 0."""
    dropout: Schedule = OFF
    """Share of latents that arrive as 0, the middle of the code."""
    sampled: Schedule = OFF
    """Share of the answers' tokens that are the model's own picks where they are fed back."""
    piece: int = 48
    """Tokens of a text that `reconstruction` and `continuation` take."""
    leading_tokens: int = 4
    entropy_floor: float | None = None
    """In nats; None to minimise the entropy itself."""
    temperature: float = 0.05
    """Of InfoNCE."""

    def __post_init__(self) -> None:
        for name, schedule in self.schedules.items():
            if schedule.lowest < 0 or (name in SHARES and schedule.highest > 1):
                most = "0 to 1" if name in SHARES else "0 or more"
                raise ValueError(f"{name} is {schedule}; expected {most}")
        if self.piece <= CUE or self.leading_tokens < 1 or not self.temperature > 0:
            raise ValueError(
                f"piece, leading_tokens and temperature are {self.piece}, {self.leading_tokens} "
                f"and {self.temperature}; expected more than the cue's {CUE}, 1 and 0"
            )

    @property
    def schedules(self) -> dict[str, Schedule]:
        """All weights and shares by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Schedule)}

    def of_readers(self) -> Objectives:
        """Without those that train only what all readers share."""
        return replace(self, gist=OFF, contrast=OFF, diversity=OFF)


@dataclass(frozen=True)
class Step:
    """One step, the same for all readers."""

    batch: Sequence[Passage]
    """This part of it."""
    whole: Sequence[Passage]
    """All parts."""
    objectives: Objectives
    now: Mapping[str, float]
    """Weights and shares at this step."""
    seed: int
    """Of the run."""
    number: int

    def on(self, *names: str) -> bool:
        """Whether any of these is more than 0."""
        return any(self.now[name] > 0 for name in names)

    def draw(self, *of: object) -> int:
        """A seed for something of this step."""
        return seed_of(self.seed, self.number, *of)

    def weight(self, units: Callable[[Passage], int]) -> float:
        """What a mean over this part's units counts in the step."""
        return parallel.weight(self.batch, self.whole, units)

    def shown(self, passage: Passage) -> tuple[str, str]:
        """What of a text travels as latents, and the rest, which readers get as text."""
        share, text = self.now["text"], passage.context
        return split(text, 1 - share) if share > 0 else (text, "")

    def cut(self, passage: Passage) -> tuple[str, str]:
        """A text cut somewhere in its middle half."""
        text = passage.context
        return split(text, random.Random(self.draw(text, "continuation")).uniform(0.25, 0.75))

    def piece(self, lm: FrozenLM, passage: Passage) -> Int[Tensor, " n"]:
        """The tokens of a text that are rebuilt, the cue among them."""
        ids, most = lm.tokenize(passage.context), self.objectives.piece
        start = random.Random(self.draw(passage.context)).randint(0, max(0, len(ids) - most))
        return ids[start : start + most]

    def total(self, parts: Mapping[str, Tensor]) -> Tensor | int:
        """The weighted sum."""
        return sum(self.now[name] * part for name, part in parts.items())


@dataclass(frozen=True)
class Sent:
    """Texts whose first part travels as latents."""

    texts: list[str]
    """The first parts."""
    rests: list[str]
    """What follows each: text to a reader, or what it has to say; all empty, or none."""
    contents: list[Values]


class Gist(nn.Module):
    """Rebuilds the embeddings of a text's tokens from the states of its latents, by a linear map
    for each place in a latent's share (the autoencoding of ICAE, Ge et al. 2023, arXiv 2307.06945,
    without its decoder). It belongs to the training: no message needs it."""

    def __init__(self, wire: SharedWire):
        super().__init__()
        self.ratio, lm = wire.config.sizes.ratio, wire.encoder.lm
        self.map = nn.Linear(wire.config.sizes.width, self.ratio * lm.width).to(lm.device)

    def forward(
        self, states: Float[Tensor, "m w"], tokens: int, length: float
    ) -> Float[Tensor, "n d"]:
        """length: as many latents as the text is long, the last one counted in part."""
        place = (torch.arange(tokens, device=states.device) + 0.5) * length / tokens
        latent = place.long()
        within = ((place - latent) * self.ratio).long()
        return self.map(states).unflatten(1, (self.ratio, -1))[latent, within]


def send(wire: SharedWire, step: Step) -> Sent:
    """What the step's readers are given to read."""
    return _sent(wire, step, [step.shown(p) for p in step.batch])


def send_continuation(wire: SharedWire, step: Step) -> Sent | None:
    """The same texts, each cut somewhere in its middle half."""
    if not step.on("continuation"):
        return None
    return _sent(wire, step, [step.cut(p) for p in step.batch])


def split(text: str, share: float) -> tuple[str, str]:
    """A text cut at a share of its characters, or at the last space before; both parts have
    something."""
    place = max(1, min(round(share * len(text)), len(text) - 1))
    space = text.rfind(" ", 1, place + 1)
    place = space if space > 0 else place
    return text[:place], text[place:]


def shared_parts(wire: SharedWire, step: Step, sent: Sent, gist: Gist | None) -> dict[str, Tensor]:
    """What the latents are trained for, whoever reads them."""
    parts: dict[str, Tensor] = {}
    codes = [wire.layout.shared(c.codes) for c in sent.contents]
    if step.on("gist"):
        assert gist is not None
        lm, states = wire.encoder.lm, wire.states(codes, replace(wire.layout, owners=0))

        def ids(passage: Passage) -> Tensor:
            return lm.tokenize(step.shown(passage)[0])

        true = [lm.embed(ids(p)) for p in step.batch]
        every = torch.cat([lm.embed(ids(p)) for p in step.whole])
        made = [
            gist(rows, len(embeds), _length(wire, text))
            for rows, embeds, text in zip(states, true, sent.texts, strict=True)
        ]
        rows, target = torch.cat(made), torch.cat(true)
        error = cosine_distance(rows, target) + scaled_error(rows, target, every)
        parts["gist"] = error * step.weight(lambda p: len(ids(p)))
    if step.on("contrast"):
        views = [
            halves(rows, step.draw(text, "contrast"))
            for rows, text in zip(codes, sent.texts, strict=True)
        ]
        first, second = (torch.stack(view) for view in zip(*views, strict=True))
        parts["contrast"] = info_nce(first, second, step.objectives.temperature)
    if step.on("diversity"):
        parts["diversity"] = mean_cosine(torch.stack([rows.mean(0) for rows in codes]))
    return parts


def reader_parts(
    reader: Reader, step: Step, sent: Sent, continuation: Sent | None
) -> dict[str, Tensor]:
    """What one reader is trained for behind the latents. continuation: of texts that are cut, what
    is sent of them."""
    parts: dict[str, Tensor] = {}
    if any(p.questions for p in step.whole):  # a part without questions adds 0 to the step's means
        parts = {name: torch.zeros(()) for name in ANSWERED if step.on(name)}
    asked = parts and any(p.questions for p in step.batch)
    if asked or step.on("reconstruction"):
        prefix = reader.prefix(sent.contents)
        if any(sent.rests):
            rests = [reader.lm.tokenize(rest) for rest in sent.rests]
            prefix = reader.lm.prefill(Prompt.from_ids(reader.lm, rests, prefix))
        if step.on("reconstruction"):
            parts["reconstruction"] = _reconstruction(reader.lm, step, prefix)
        if asked:
            parts |= _answer_parts(reader, step, prefix)
    if continuation is not None:
        parts["continuation"] = _continuation(reader, step, continuation)
    if step.on("embeds"):
        parts["embeds"] = _embeds(reader, sent)
    return parts


def full_texts(lm: FrozenLM, batch: Sequence[Passage]) -> KVPrefix:
    """The full texts as one cache."""
    rows = [torch.cat([lm.frame.prefix, lm.tokenize(p.context)]) for p in batch]
    return lm.prefill(Prompt.from_ids(lm, rows))


def asked_prompt(
    lm: FrozenLM, soft_prompt: Tensor, batch: Sequence[Passage], context: KVPrefix
) -> Prompt:
    """All questions of the batch; texts without any take no part."""
    rows = [row for row, p in enumerate(batch) if p.questions]
    index = torch.tensor(rows).to(lm.device)
    return passages_prompt(lm, soft_prompt, [batch[row] for row in rows], context.rows(index))


def answer_tokens(lm: FrozenLM, passage: Passage, most: int | None = None) -> int:
    """Tokens of a passage's answers, or of the first `most` of each."""
    return sum(len(answer_ids(lm, q.answers[0])[:most]) for q in passage.questions)


def _answer_parts(reader: Reader, step: Step, prefix: KVPrefix) -> dict[str, Tensor]:
    """What the answers are trained for, all from one pass of this reader and one of its teacher."""
    lm, of = reader.lm, step.objectives
    targets, mask = answer_targets(lm, step.batch)
    prompt, fed = asked_prompt(lm, reader.format, step.batch, prefix), targets
    if step.on("sampled"):
        with torch.no_grad():
            picks = lm.packed_logits(prompt, targets, mask)
        asked = [q for p in step.batch for q in p.questions]
        seeds = [step.draw(reader.reader, q.id, "sampled") for q in asked]
        fed = scheduled_sampling(targets, mask, picks, step.now["sampled"], seeds)
    states, true = lm.shifted_hidden(prompt, fed, mask)[mask], targets[mask]
    student, parts = lm.head(states), {}
    most = {"first": 1, "leading": of.leading_tokens, "entropy": 1}
    for name in ("ce", "first", "leading"):
        if step.on(name):
            some = leading(mask, most[name]) if name in most else slice(None)
            parts[name] = token_loss(student[some], true[some])
    if step.on("entropy"):
        parts["entropy"] = entropy_loss(student[leading(mask, 1)], of.entropy_floor)
    if step.on("kl", "states"):
        told = _told(reader, step.batch, fed, mask)
        if step.on("kl"):
            parts["kl"] = distillation(lm.head(told), student)
        if step.on("states"):
            parts["states"] = scaled_error(states, told)
    units = {name: partial(answer_tokens, lm, most=most.get(name)) for name in parts}
    return {name: part * step.weight(units[name]) for name, part in parts.items()}


@torch.no_grad()
def _told(reader: Reader, batch: Sequence[Passage], fed: Tensor, mask: Tensor) -> Tensor:
    """The states [k, d] that predict the answers after the full text, every adapter off."""
    lm = reader.lm.with_adapter(None)
    prompt = asked_prompt(lm, reader.format, batch, full_texts(lm, batch))
    return lm.shifted_hidden(prompt, fed, mask)[mask]


def _reconstruction(lm: FrozenLM, step: Step, prefix: KVPrefix) -> Tensor:
    """Cross-entropy of a piece of each text, given its first CUE tokens."""
    pieces = [step.piece(lm, p) for p in step.batch]
    request = torch.cat([lm.tokenize("\n\nRepeat the text above from here on."), lm.frame.suffix])
    prompt = Prompt.from_ids(lm, [torch.cat([request, p[:CUE]]) for p in pieces], prefix)
    targets, mask = pad_right([p[CUE:] for p in pieces])
    loss = token_loss(lm.packed_logits(prompt, targets, mask), targets[mask])
    return loss * step.weight(lambda p: len(step.piece(lm, p)[CUE:]))


def _continuation(reader: Reader, step: Step, sent: Sent) -> Tensor:
    """Cross-entropy of what follows the cut, its first token given: the prompt has to end with
    something."""
    lm, most = reader.lm, step.objectives.piece
    pieces = [lm.tokenize(rest)[: most + 1] for rest in sent.rests]
    prompt = Prompt.from_ids(lm, [p[:1] for p in pieces], reader.prefix(sent.contents))
    targets, mask = pad_right([p[1:] for p in pieces])
    loss = token_loss(lm.packed_logits(prompt, targets, mask), targets[mask])
    return loss * step.weight(lambda p: len(lm.tokenize(step.cut(p)[1])[1 : most + 1]))


def _embeds(reader: Reader, sent: Sent) -> Tensor:
    """How far the reader's input embeddings are from the means of its own."""
    way, lm, wire = reader.adapter.ways[0], reader.lm, reader.wire
    assert isinstance(way, Embeddings)
    slots = reader.adapter.slots(*reader.heard(sent.contents))
    made, true = [], []
    for text, row, mask in zip(sent.texts, way.embeds(slots), slots.mask, strict=True):
        embeds = lm.embed(lm.tokenize(text)).float()
        shared = reader.layout.shared(row[mask])
        means, full = share_means(embeds, len(shared), _length(wire, text))
        made.append(shared[full])
        true.append(means)
    rows, target = torch.cat(made), torch.cat(true)
    return cosine_distance(rows, target) + moment_error(rows, target)


def _sent(wire: SharedWire, step: Step, cut: Sequence[tuple[str, str]]) -> Sent:
    texts, rests = [first for first, _ in cut], [rest for _, rest in cut]
    codes = wire(texts)
    if step.on("dropout"):
        share = step.now["dropout"]
        seeds = [step.draw(text, "dropout") for text in texts]
        codes = [dropped(rows, share, seed) for rows, seed in zip(codes, seeds, strict=True)]
    return Sent(texts, rests, values_of(wire, texts, codes))


def values_of(wire: SharedWire, texts: Sequence[str], codes: Sequence[Tensor]) -> list[Values]:
    """Codes of texts as what a message of theirs would hold."""
    return [Values(rows, wire.encoder.span(t)) for rows, t in zip(codes, texts, strict=True)]


@torch.no_grad()
def taught(
    reader: Reader, passages: Sequence[Passage], contents: Sequence[Values]
) -> tuple[KVPrefix, tuple[Tensor, Tensor, Tensor]]:
    """For checks, by training's own code: what the reader is given of texts, and logits [b, n, v],
    targets and mask of the answers to their questions. contents: of the texts (`values_of`)."""
    prefix = reader.prefix(contents)
    targets, mask = answer_targets(reader.lm, passages)
    prompt = asked_prompt(reader.lm, reader.format, passages, prefix)
    return prefix, (reader.lm.logits(prompt, targets, mask), targets, mask)


def _length(wire: SharedWire, text: str) -> float:
    """How many latents a text is long, the last one counted as the part that it has."""
    return len(wire.encoder.units(text)) / wire.encoder.per_latent
