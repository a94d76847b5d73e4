"""The recipe of a shared wire's training."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from latentwire.texts import check_least, check_texts
from latentwire.train.loop import LoopConfig
from latentwire.train.schedules import Schedule
from latentwire.wire.learned.objectives import FULL, Objectives
from latentwire.wire.learned.saving import SharedConfig


@dataclass(frozen=True)
class SharedRecipe:
    """A complete training of one shared wire."""

    name: str
    """Name of the run; its folder is runs/NAME unless `out` says otherwise."""
    wire: SharedConfig
    """The wire that is trained."""
    data: tuple[str, ...] = ("hub:rajpurkar/squad",)
    """JSONL files with rows {"id", "context", "question", "answers"}, or hub:NAME."""
    out: Path | None = None
    """Run folder; a folder that holds this run already resumes it."""
    format: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=300, lr=0.025, save_every=50)
    )
    """Stage 1; the rate is in multiples of the size of each reader's embeddings."""
    init_from: str | None = None
    """A wire of the same readers, a folder or a shipped one's name, whose soft prompts are taken
    over in place of stage 1."""
    train: LoopConfig = field(default_factory=lambda: LoopConfig(steps=4000, lr=1e-3))
    """Stage 2."""
    batch_size: int = 16
    """Passages per step."""
    questions: int = 4
    """Most questions per passage and step."""
    longest: int = 320
    """Most tokens of a passage, as the source counts; longer ones are left out."""
    objectives: Objectives = field(default_factory=Objectives)
    """Weights of the objectives of stage 2. A SCHEDULE is a number, or a way to another: 1 end=0.3
    over=2000."""
    adapter_rate: Schedule = FULL
    """Learning rate of the adapters, as a multiple of `train`'s: 1 end=0 after=2000 freezes them
    after so many steps, while encoder and code train on."""
    held_out: int = 100
    """Passages at the end of the first file that are never trained on."""
    fitted: int = 64
    """Passages that readers are calibrated on, and that PCA is fitted to."""
    seed: int = 0
    """Seed of the order of the data and of its pieces."""

    def __post_init__(self) -> None:
        check_texts(self.data, "data")
        check_least(self, batch_size=1, questions=1, longest=1, held_out=1, fitted=1)
        if self.adapter_rate.lowest < 0:
            raise ValueError(f"adapter_rate is {self.adapter_rate}; expected 0 or more")
        if self.objectives.embeds.on and self.wire.injector != "embeddings":
            raise ValueError(
                f"objectives.embeds aligns input embeddings and injector is {self.wire.injector}; "
                "expected embeddings, or a weight of 0"
            )


BOTH = ("smollm2-135m", "gemma3-270m")


def shared_4x() -> SharedRecipe:
    """smollm2-135m and gemma3-270m read one message: a latent of 4 bytes for every 4 tokens.
    Reconstruction comes first; the losses of the answers rise to their weight."""
    wire = SharedConfig(readers=BOTH, source="smollm2-135m")
    rising = Schedule(0.1, 1.0, over=1000.0)
    return SharedRecipe("shared-4x", wire, objectives=Objectives(ce=rising, kl=rising))


RECIPES = {"shared-4x": shared_4x}
