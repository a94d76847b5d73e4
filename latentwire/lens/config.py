"""The recipe of a lens's training: its parts, its data, its objectives and their schedules."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from latentwire.lens.checks import LensError
from latentwire.lens.lens import LensConfig
from latentwire.texts import check_least
from latentwire.train.loop import LoopConfig
from latentwire.train.schedules import Schedule

OFF, FULL, SLIGHT = Schedule(0.0), Schedule(1.0), Schedule(0.02)
SOFT = Schedule(8.0)


@dataclass(frozen=True)
class Data:
    """The activations that are trained on."""

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
    """Tokens up to and including the activation's own, which the warm start teaches to say."""
    pairs: Path | None = None
    """Pairs that the warm start teaches instead of the text: JSON lines {"text", "token",
    "explanation"}, the token counted from 0 as in `lens explain`."""
    dump: Path | None = None
    """Folder that all activations of the training text are written to once and read from after
    that; without it, every step makes its own anew."""

    def __post_init__(self) -> None:
        check_least(self, LensError, window=2, skip=0, documents=1, positions=1, measured=1)
        check_least(self, LensError, fitted=0, before=1)


@dataclass(frozen=True)
class Weights:
    """The weight of each objective in the joint stage; one that is 0 throughout is left out."""

    mse: Schedule = FULL
    """Squared error of the reconstruction, in units of the activations' variance."""
    kl: Schedule = OFF
    """KL of the model's next token after the reconstruction was swapped in."""
    reference: Schedule = SLIGHT
    """k3 estimate of the KL to the decoder as the warm start left it, per token (GRPO)."""


@dataclass(frozen=True)
class Rates:
    """Learning rates, in multiples of the stage's own; scheduled from the stage's first step."""

    projections: Schedule = FULL
    prompts: Schedule = SOFT
    """Rate of soft tokens; in units of the size of the LM's embeddings too, which differs by
    model."""
    base: Schedule = FULL
    """Rate of the LoRAs."""
    encoder: Schedule = FULL
    """All of the encoder, on top of the others."""

    def of(self, part: str, step: int, epoch: int, embedding: float) -> float:
        """The rate of a part of `Lens.tensors`, which its first two words name. embedding: the size
        of the LM's embeddings (`soft_prompt_rate`)."""
        side, kind = part.split(".")
        kinds = {"project": self.projections, "lora": self.base}
        unit = 1.0 if kind in kinds else embedding
        own = unit * kinds.get(kind, self.prompts).at(step, epoch)
        return own * (self.encoder.at(step, epoch) if side == "encoder" else 1.0)


@dataclass(frozen=True)
class LensRecipe:
    """A complete training of one lens."""

    name: str
    """Name of the run; its folder is runs/NAME unless `out` says otherwise."""
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
    """The method by which the joint stage trains the decoder; none leaves it out."""
    group: int = 4
    """Explanations per activation that GRPO compares."""
    reward: Literal["mse", "kl"] = "mse"
    """The negated reward of GRPO: the reconstruction's error or the KL after the swap."""
    temperature: float = 1.0
    """Temperature of sampling in the joint stage."""
    tau: Schedule = FULL
    """Sharpness of the Gumbel relaxation; apart from the temperature."""
    weights: Weights = field(default_factory=Weights)
    rates: Rates = field(default_factory=Rates)
    seed: int = 0
    """Seed of the order of the data and of all noise."""

    def __post_init__(self) -> None:
        if self.refine == "grpo" and self.group < 2:
            raise LensError(f"group is {self.group}; GRPO compares at least 2 explanations")
        for name, value in (("temperature", self.temperature), ("tau", self.tau.lowest)):
            if not value > 0:
                raise LensError(f"{name} is {value}; expected more than 0")
        for name, value in {"tau": self.tau, **vars(self.weights), **vars(self.rates)}.items():
            if isinstance(value, Schedule) and value.gate is not None:
                raise LensError(f"{name} has a gate, and checks of a lens open none: leave it out")
