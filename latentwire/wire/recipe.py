"""The settings of a training of one wire, and the recipes of the shipped ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentwire.lm import Dtype
from latentwire.train.loop import LoopConfig
from latentwire.wire.config import WireConfig


@dataclass(frozen=True)
class WireRecipe:
    """A complete training of one wire."""

    name: str
    """Name of the run folder, runs/NAME, unless `out` says otherwise."""
    wire: WireConfig
    """The wire that is trained."""
    data: str = "hub:rajpurkar/squad"
    """A JSONL file with rows {"id", "context", "question", "answers"}, or hub:NAME."""
    out: Path | None = None
    """Run folder; a folder that holds this run already is gone on with."""
    init_from: str | None = None
    """A trained wire of the same reader and sizes to go on from, by folder, hub id or name."""
    ratios: tuple[int, ...] = ()
    """Tokens in per latent out in stage 3, one of them a step, in turn; the wire's own if none."""
    format: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=450, lr=0.025, save_every=20)
    )
    """Stage 1; the rate is in multiples of the size of the reader's embeddings."""
    scorer_passages: int = 200
    """Passages that the scorer is fitted on (stage 2)."""
    slots: LoopConfig = field(default_factory=lambda: LoopConfig(steps=500, lr=1e-3, save_every=20))
    """Stage 3."""
    batch_size: int = 4
    """Passages per step."""
    questions: int = 5
    """Most questions per passage and step; a passage that has more comes several times."""
    held_out: int = 100
    """Passages at the end of the file that are never trained on, for choosing between recipes."""
    seed: int = 0
    """Seed of the order of the data."""

    def __post_init__(self) -> None:
        for name in ("scorer_passages", "batch_size", "questions", "held_out"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name, stage in (("rank", self.slots), ("format_tokens", self.format)):
            if getattr(self.wire, name) < 1 and stage.steps:
                raise ValueError(f"wire.{name} is 0; expected at least 1, or nothing is trained")
        if min(self.ratios, default=1) < 1:
            raise ValueError(f"ratios are {self.ratios}; expected none below 1")
        if self.ratios and self.wire.ratio not in self.ratios:
            raise ValueError(
                f"ratios are {self.ratios}; expected the wire's own, {self.wire.ratio}, among them"
            )


def smollm2_4x() -> WireRecipe:
    """smollm2-135m reads a quarter of the tokens, or fewer: the shipped wire."""
    wire = WireConfig(reader="smollm2-135m", ratio=4)
    return WireRecipe("smollm2-4x", wire, ratios=(4, 8, 16))


def gemma3_4x() -> WireRecipe:
    """gemma3-270m reads a quarter of the tokens, or fewer."""
    return WireRecipe("gemma3-4x", WireConfig(reader="gemma3-270m", ratio=4), ratios=(4, 8, 16))


def scorer_alone(reader: str, ratio: int, window: int, dtype: Dtype, **given: Any) -> WireRecipe:
    """A wire of any supported model whose scorer alone is fitted: eviction, without a residual and
    without a soft prompt. given: other fields of the recipe."""
    wire = WireConfig(reader, ratio, window, rank=0, format_tokens=0, dtype=dtype)
    nothing = LoopConfig(steps=0, lr=1.0)
    name = f"fit-{Path(reader).name}"
    return WireRecipe(name, wire, format=nothing, slots=nothing, batch_size=1, **given)


RECIPES = {"smollm2-4x": smollm2_4x, "gemma3-4x": gemma3_4x}
