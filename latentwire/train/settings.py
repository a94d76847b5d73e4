"""The settings of a training: how a stage of a recipe trains, and how a session runs it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Literal

from latentwire.texts import check_least
from latentwire.train.trackers import Tracker, check_trackers


@dataclass(frozen=True)
class LoopConfig:
    """The length and the rate of one stage of a recipe."""

    steps: int
    """Optimizer steps; 0 leaves the stage out."""
    lr: float
    """Peak learning rate of AdamW, without weight decay."""
    warmup: int = 20
    """Steps of linear warm-up; cosine decay to a tenth follows."""
    clip: float = 1.0
    """Largest norm of all gradients together."""
    save_every: int = 50
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        check_least(self, steps=0, save_every=1)
        for name in ("lr", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0")


def _launched_precision() -> Any:
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no")


@dataclass(frozen=True)
class Session:
    """Settings that compute, watch and keep a run. But for rounding nothing here changes what is
    trained, so a run may go on under another one; only objectives that compare a step's texts see
    those of one part and process, and weights with a gate wait for the checks."""

    mixed_precision: Literal["no", "bf16"] = field(default_factory=_launched_precision)
    """bf16: losses are computed under autocast to bfloat16, while what is trained and its moments
    stay float32; by default what `accelerate launch --mixed_precision` says."""
    gradient_accumulation: int = 1
    """Parts in which a step's rows are computed, one after another: less memory, the same step."""
    gradient_checkpointing: bool = False
    """Blocks of the LM keep only their inputs and run again for the gradient: less memory, more
    time."""
    trackers: tuple[Tracker, ...] = ()
    """Trackers that get the numbers of metrics.jsonl as well."""

    stop_on: Literal["nothing", "collapse"] = "nothing"
    """collapse: end the run when an alarm says that more steps will not mend it."""
    check_every: int = 100
    """Steps between checks for alarms; the first and the last step are checked too."""
    check_size: int = 12
    """Held-out passages or documents that a check looks at; they also judge the best checkpoint."""
    save_minutes: float = 10.0
    """A checkpoint is written after so many minutes even where save_every asks for none yet."""
    keep: int = 2
    """Newest checkpoints that are kept."""

    def __post_init__(self) -> None:
        check_least(self, gradient_accumulation=1, check_every=1, check_size=2, keep=1)
        if self.mixed_precision not in ("no", "bf16"):
            raise ValueError(f"mixed_precision is {self.mixed_precision}; expected no or bf16")
        check_trackers(self.trackers)
