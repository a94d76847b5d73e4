"""Training a lens: decoder and encoder together, in two resumable stages.

1. warm: supervised. The decoder learns to write the text around an activation's token (what follows
   it, a line break, and the tokens up to and including it), the encoder to rebuild the activation
   from that text. The token itself comes last, because the encoder reads the last position.
2. joint: refinement on the decoder's own explanations, by GRPO (several samples of each activation,
   rewarded by how well the encoder rebuilds it) or through straight-through Gumbel samples. The
   encoder goes on learning from what the decoder really says.

    latentwire lens train smollm2 --text text.txt --out runs/lens-smollm2
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from latentwire.files import write_whole
from latentwire.lens.activations import (
    Activations,
    Statistics,
    Text,
    at,
    draw,
    read_documents,
    split,
    statistics,
    stream,
    tokenized,
)
from latentwire.lens.checks import LensError, check_layer, check_places
from latentwire.lens.decoder import Decoder, DecoderConfig, words
from latentwire.lens.encoder import EncoderConfig
from latentwire.lens.interventions import swapping
from latentwire.lens.lens import Lens, LensConfig
from latentwire.lens.objectives import (
    entropy_floor,
    fluency_kl,
    group_advantages,
    k3,
    next_token_kl,
    policy_gradient,
    scaled_mse,
    warm_start,
)
from latentwire.lm import (
    FrozenLM,
    Prompt,
    Sampled,
    StraightThroughGumbel,
    pad_right,
    seed_of,
    seeded_noise,
)
from latentwire.recipes.checks import check_lens
from latentwire.recipes.runs import begin_training, check_training
from latentwire.train import parallel
from latentwire.train.loop import LoopConfig, Probe, Session, shuffled, train
from latentwire.train.schedules import Schedule

OFF, FULL, SLIGHT = Schedule(0.0), Schedule(1.0), Schedule(0.02)


@dataclass(frozen=True)
class Data:
    """Which activations are trained on."""

    held_out: float = 0.05
    """Fraction of the documents that is never trained on."""
    window: int = 128
    """Tokens of a document that are read."""
    skip: int = 4
    """First tokens, after BOS, whose activations are left out."""
    documents: int = 8
    """Documents per step."""
    positions: int | None = 4
    """Random positions per document and step; None for all."""
    measured: int = 500
    """Documents on which the mean and the scale of activations are measured."""
    fitted: int = 200
    """Documents on which the decoder's projections are fitted before the first step; with 0 they
    begin as the identity."""
    before: int = 8
    """Tokens up to and including the activation's own in the text of the warm start."""
    after: int = 4
    """Tokens that follow it there."""

    def __post_init__(self) -> None:
        least = dict(
            window=2, skip=0, documents=1, positions=1, measured=1, fitted=0, before=1, after=0
        )
        for name, value in least.items():
            given = getattr(self, name)
            if given is not None and given < value:
                raise LensError(f"{name} is {given}; expected at least {value}")


@dataclass(frozen=True)
class Weights:
    """What each objective counts in the joint stage; what is 0 throughout is left out."""

    mse: Schedule = FULL
    """Squared error of the reconstruction, in units of the activations' variance."""
    kl: Schedule = OFF
    """KL of the model's next token after the reconstruction was swapped in."""
    fluency: Schedule = OFF
    """KL of the decoder to the frozen LM, per token."""
    reference: Schedule = SLIGHT
    """k3 estimate of the KL to the decoder as the warm start left it, per token (GRPO)."""
    entropy: Schedule = OFF
    """How far the decoder's entropy is below `entropy_floor`."""
    entropy_floor: float = 1.0
    """Nats per token."""


@dataclass(frozen=True)
class Rates:
    """Learning rates, in multiples of the stage's own."""

    projections: float = 1.0
    prompts: float = 1.0
    base: float = 1.0
    """LoRA."""
    encoder: float = 1.0
    """All of the encoder, on top of the others."""

    def of(self, name: str) -> float:
        """The rate of a tensor of `Lens.tensors`."""
        part, kind = name.split(".")[:2]
        kinds = {"project": self.projections, "lora": self.base}
        return kinds.get(kind, self.prompts) * (self.encoder if part == "encoder" else 1.0)


@dataclass(frozen=True)
class LensRecipe:
    """A complete training of one lens."""

    name: str
    """Of the run folder, runs/NAME, unless `out` says otherwise."""
    lens: LensConfig
    """The lens that is trained."""
    text: tuple[Path, ...] = ()
    """UTF-8 text files, one document per block between blank lines."""
    out: Path | None = None
    """Run folder; a folder that holds this run already is gone on with."""
    data: Data = field(default_factory=Data)
    warm: LoopConfig = field(default_factory=lambda: LoopConfig(steps=2000, lr=5e-4))
    """Stage 1."""
    joint: LoopConfig = field(default_factory=lambda: LoopConfig(steps=500, lr=1e-4))
    """Stage 2."""
    refine: Literal["grpo", "gumbel", "none"] = "grpo"
    """How the joint stage trains the decoder; none leaves it out."""
    group: int = 4
    """Explanations per activation that GRPO compares."""
    reward: Literal["mse", "kl"] = "mse"
    """What GRPO rewards, negated: the reconstruction's error or the KL after the swap."""
    temperature: float = 1.0
    """Of sampling in the joint stage."""
    tau: Schedule = FULL
    """Sharpness of the Gumbel relaxation; apart from the temperature."""
    weights: Weights = field(default_factory=Weights)
    rates: Rates = field(default_factory=Rates)
    seed: int = 0
    """Of the order of the data and of all noise."""

    def __post_init__(self) -> None:
        if self.refine == "grpo" and self.group < 2:
            raise LensError(f"group is {self.group}; GRPO compares at least 2 explanations")
        for name, value in (("temperature", self.temperature), ("tau", self.tau.lowest)):
            if not value > 0:
                raise LensError(f"{name} is {value}; expected more than 0")


def smollm2() -> LensRecipe:
    """smollm2-135m, the middle of its 30 blocks: the shipped lens."""
    decoder = DecoderConfig(layers=16, lora=8, max_new_tokens=12)
    return LensRecipe(
        "lens-smollm2",
        LensConfig("smollm2-135m", 15, decoder, EncoderConfig(lora=8)),
        data=Data(documents=4, positions=8, after=0),
        warm=LoopConfig(steps=320, lr=1e-3, save_every=25),
        joint=LoopConfig(steps=36, lr=2e-4, warmup=4, save_every=4),
        rates=Rates(projections=0.1),
    )


RECIPES = {"smollm2": smollm2}


def train_lens(recipe: LensRecipe, session: Session = Session()) -> Path:  # noqa: B008
    """Run both stages, or what is left of them; the run folder, whose lens/ is the trained lens and
    whose held_out.txt has the documents that it has not seen.

    Raises ValueError for a run folder that holds another run, before any compute.
    """
    parallel.join()
    out = recipe.out or Path("runs") / recipe.name
    config = json.dumps({**asdict(recipe), "out": None}, indent=1, default=str)
    check_training(out, config)
    if not recipe.text:
        raise LensError("no text to train on; expected --text FILE...")
    documents, held_out = split(read_documents(recipe.text), recipe.data.held_out)
    if len(documents) < recipe.data.documents:
        raise LensError(
            f"{len(documents)} training documents for steps of {recipe.data.documents}; give more "
            "--text, or a smaller --data.documents"
        )
    lm = FrozenLM.from_pretrained(recipe.lens.model)
    check_layer(recipe.lens.layer, lm)
    check_places(recipe.lens.decoder.layers, lm)
    texts = tokenized(lm, documents, recipe.data.window, recipe.data.skip)
    first = parallel.rank() == 0
    if first:
        begin_training(out, config)
        write_whole(out / "held_out.txt", "\n\n".join(held_out) + "\n")
    lens = Lens(lm, recipe.lens, _measured(lm, texts, recipe, out))
    if recipe.data.fitted and not (out / "warm.safetensors").exists():
        lens.decoder.fit(recipe.lens.layer, _sample(texts, recipe.data.fitted, recipe.seed))
    checked = [d for d in held_out if len(lm.ids(d)) > recipe.data.skip][: session.checked]
    held = tokenized(lm, checked, recipe.data.window, recipe.data.skip) if checked else []
    places = draw(held, recipe.data.positions, recipe.seed)

    def probe() -> dict[str, float]:
        return check_lens(lens, places)

    train_warm(lens, texts, recipe, out, probe, session)
    if recipe.refine != "none":
        train_joint(lens, texts, recipe, out, probe, session)
    if first:
        lens.save(out / "lens")
    return out


def train_warm(
    lens: Lens,
    texts: Sequence[Text],
    recipe: LensRecipe,
    out: Path,
    probe: Probe,
    session: Session,
) -> None:
    """Stage 1: the text around each token, from and to its activation."""

    def loss(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        batch, weight = batch_of(lens, texts, recipe, step)
        parts = warm_losses(lens, batch, recipe.data)
        return weight * torch.stack(list(parts.values())).sum(), parts

    train("warm", lens.tensors(), loss, recipe.warm, out, recipe.rates.of, probe, session)


def warm_losses(lens: Lens, batch: Activations, data: Data) -> dict[str, Tensor]:
    """The objectives of one step, each a mean over rows."""
    written = target_texts(lens.lm, batch, data)
    end = torch.tensor(lens.lm.stop_ids[:1], device=lens.lm.device)
    ids, mask = pad_right([torch.cat([text, end]) for text in written])
    scored = lens.decoder.score(batch.vectors, ids, mask)
    mse = scaled_mse(lens.encoder(written), batch.vectors, lens.spread)
    return {"nll": warm_start(scored.log_probs, mask).mean(), "mse": mse.mean()}


def train_joint(
    lens: Lens,
    texts: Sequence[Text],
    recipe: LensRecipe,
    out: Path,
    probe: Probe,
    session: Session,
) -> None:
    """Stage 2: the decoder's own explanations, and what the encoder makes of them."""
    compared = recipe.refine == "grpo" and _on(recipe.weights.reference)
    reference = frozen_copy(lens) if compared else None
    epoch = max(1, len(texts) // recipe.data.documents)

    def loss(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        # Other activations than the warm start's: the order goes on where it ended.
        batch, weight = batch_of(lens, texts, recipe, recipe.warm.steps + step)
        weights = {
            name: schedule.at(step, epoch)
            for name, schedule in vars(recipe.weights).items()
            if isinstance(schedule, Schedule)
        }
        parts = joint_losses(lens, reference, batch, recipe, step, recipe.tau.at(step, epoch))
        total = torch.stack([weights.get(n, 1.0) * p for n, p in parts.items()]).sum()
        return weight * total, parts

    train("joint", lens.tensors(), loss, recipe.joint, out, recipe.rates.of, probe, session)


def joint_losses(
    lens: Lens,
    reference: Decoder | None,
    batch: Activations,
    recipe: LensRecipe,
    step: int,
    tau: float,
) -> dict[str, Tensor]:
    """The objectives of one step, each a mean over rows; those of weight 0 throughout are left out.

    With GRPO the decoder learns from `policy`, `reference`, `fluency` and `entropy`, and the
    encoder from `mse` and `kl`; with Gumbel both learn from all of these but the first two.
    """
    decoder, weights, grpo = lens.decoder, recipe.weights, recipe.refine == "grpo"
    samples = recipe.group if grpo else 1
    noise = seeded_noise(_seeds(batch, recipe, step, samples))
    if grpo:
        with torch.no_grad():
            said = decoder.generate(batch.vectors, Sampled(noise, recipe.temperature), samples)
        # What counts is what somebody reads, so the text is tokenized anew, as in an evaluation.
        pieces = [lens.lm.ids(text) for text in said.texts]
    else:
        pick = StraightThroughGumbel(noise, tau, recipe.temperature)
        said = decoder.generate(batch.vectors, pick)
        own = words(said, lens.lm)
        pieces = [row[keep] for row, keep in zip(said.embeds, own, strict=True)]
    made = lens.encoder(pieces)
    errors = scaled_mse(made, batch.vectors.repeat_interleave(samples, 0), lens.spread)
    parts = {"mse": errors.mean()}
    kls = None
    if _on(weights.kl) or (grpo and recipe.reward == "kl"):
        swap = swapping(lens.lm, lens.config.layer, batch.texts, batch.positions, samples)
        with torch.no_grad():
            original = swap(None)
        with torch.set_grad_enabled(_on(weights.kl)):
            kls = next_token_kl(original, swap(made))
        parts["kl"] = kls.mean()
    if grpo or _on(weights.entropy):
        scored = decoder.score(batch.vectors, said.ids, said.mask, recipe.temperature)
        parts["entropy"] = entropy_floor(scored.entropies, said.mask, weights.entropy_floor).mean()
        if grpo:
            cost = (errors if recipe.reward == "mse" or kls is None else kls).detach()
            advantages = group_advantages(-cost.view(-1, samples)).flatten()
            parts["policy"] = policy_gradient(scored.log_probs, advantages, said.mask).mean()
        if reference is not None:
            with torch.no_grad():
                before = reference.score(batch.vectors, said.ids, said.mask, recipe.temperature)
            parts["reference"] = k3(scored.log_probs, before.log_probs, said.mask).mean()
    if _on(weights.fluency):
        start = Prompt.from_ids(lens.lm, [lens.lm.frame.head[:1]] * len(said.ids))
        with torch.no_grad():
            plain = lens.lm.logits(start, said.ids, said.mask)
        policy = decoder.logits(batch.vectors, said.ids, said.mask)
        parts["fluency"] = fluency_kl(policy, plain, said.mask).mean()
    return parts


def batch_of(
    lens: Lens, texts: Sequence[Text], recipe: LensRecipe, step: int
) -> tuple[Activations, float]:
    """The activations of one step, of this process's share of its documents, and what their mean
    counts in the average over processes: short documents have fewer rows than others."""
    chosen = [texts[i] for i in shuffled(len(texts), recipe.seed, step, recipe.data.documents)]
    places = draw(chosen, recipe.data.positions, seed_of("step", recipe.seed, step))
    mine = parallel.share(places)
    rows, own = (sum(len(positions) for _, positions in part) for part in (places, mine))
    return at(lens.lm, lens.config.layer, mine), own * len(places) / (rows * len(mine))


def target_texts(lm: FrozenLM, batch: Activations, data: Data) -> list[Tensor]:
    """What the warm start teaches the decoder to write: what follows the token, a line break, and
    the tokens up to and including it; without the first two where nothing follows."""
    line = lm.ids("\n")
    up_to = batch.up_to([data.before] * len(batch))
    return [
        torch.cat([after, line, before]) if len(after) else before
        for after, before in zip(batch.after(data.after), up_to, strict=True)
    ]


@torch.no_grad()
def frozen_copy(lens: Lens) -> Decoder:
    """The decoder as it is now, which later training does not change."""
    copy = Decoder(lens.lm, lens.config.decoder, lens.norm)
    targets = copy.tensors()
    for name, tensor in lens.decoder.tensors().items():
        targets[name].copy_(tensor)
    copy.project.gain.copy_(lens.decoder.project.gain)
    return copy


def _measured(lm: FrozenLM, texts: Sequence[Text], recipe: LensRecipe, out: Path) -> Statistics:
    """Mean and scale of the training activations, measured once and kept in the run folder."""
    path = out / "statistics.safetensors"
    if not path.exists():
        chosen = _sample(texts, recipe.data.measured, recipe.seed)
        found = statistics(stream(lm, recipe.lens.layer, chosen))
        if parallel.rank() > 0:
            return found
        scales = torch.tensor([found.norm, found.spread], dtype=torch.float64)
        write_whole(path, save({"mean": found.mean.cpu(), "scales": scales}))
    kept = load_file(path, device=str(lm.device))
    return Statistics(kept["mean"], *kept["scales"].tolist())


def _sample(texts: Sequence[Text], count: int, seed: int) -> list[Text]:
    return [texts[i] for i in shuffled(len(texts), seed, 0, min(count, len(texts)))]


def _seeds(batch: Activations, recipe: LensRecipe, step: int, samples: int) -> list[int]:
    """One seed for each explanation, by where its activation stands, whatever the batch."""
    return [
        seed_of(recipe.seed, step, text.number, position, sample)
        for text, position in zip(batch.texts, batch.positions, strict=True)
        for sample in range(samples)
    ]


def _on(schedule: Schedule) -> bool:
    return schedule.start != 0 or schedule.end not in (None, 0)
