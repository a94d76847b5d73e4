"""The recipe of a training of latent codes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from latentwire.lm import Dtype
from latentwire.texts import check_least, check_texts
from latentwire.train.settings import LoopConfig
from latentwire.wire.codes.code import CodeConfig

HIDDEN = 640
"""Width of a reader's perceptron where nothing else is said."""


@dataclass(frozen=True)
class CodeRecipe:
    """A complete training of one wire of latent codes."""

    name: str
    """Run name; the folder defaults to runs/NAME."""
    code: CodeConfig
    """The code that is fitted and trained."""
    readers: tuple[str, ...]
    """Zoo names, Hugging Face ids or folders of the LMs that read it."""
    hidden: tuple[int, ...]
    """Width of each reader's perceptron."""
    data: str = "hub:rajpurkar/squad"
    """JSONL file with rows {"id", "context", "question", "answers"}, or hub:NAME."""
    out: Path | None = None
    """Run folder; resumes if it already holds this run."""
    start: str | None = None
    """A wire of codes whose `readers` are trained on, in place of a closed form. Its code and its
    other readers stay, so messages already sent stay readable."""
    soft_prompts: str | None = "shared"
    """A wire, a folder or a shipped one's name, whose soft prompts its readers keep; those of other
    readers, or all where this is None, are trained first."""
    dtype: Dtype = "bfloat16"
    """Number type of the frozen models."""
    fitted: int = 1200
    """Passages of the closed form."""
    sensitive: int = 48
    """Passages whose answers weight it; the scorer is fitted to the attention of twice as many."""
    format: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=450, lr=0.025, save_every=20)
    )
    """Training of a reader's soft prompt; the rate is in units of its embeddings' size."""
    attention: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=5000, lr=3e-4, save_every=250)
    )
    """Training of code and decoders on recorded attention."""
    answers: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=2000, lr=1e-4, save_every=50)
    )
    """Training through each frozen reader."""
    ratios: tuple[int, ...] = (1, 4)
    """Ratios of tokens to slots that `answers` trains at, one after another."""
    batch_size: int = 4
    """Passages per step."""
    questions: int = 4
    """Most questions per passage and step."""
    held_out: int = 100
    """Passages at the end of the file that are never trained on."""
    seed: int = 0
    """Seed of the order of the data."""

    def __post_init__(self) -> None:
        check_texts(self.readers, "readers")
        if len(self.readers) != len(self.hidden) or len(set(self.readers)) < len(self.readers):
            raise ValueError(
                f"readers are {self.readers} and hidden is {self.hidden}; expected one width for "
                "each reader, none of them twice"
            )
        if not self.readers or min(self.hidden) < 0:
            raise ValueError(
                f"readers are {self.readers} and hidden is {self.hidden}; expected at least one "
                "reader, and no width below 0"
            )
        check_least(self, fitted=1, sensitive=1, batch_size=1, questions=1, held_out=1)
        if not self.ratios or min(self.ratios) < 1:
            raise ValueError(f"ratios are {self.ratios}; expected at least one, none below 1")


def interlingua() -> CodeRecipe:
    """gemma3-270m and smollm2-135m answer from what smollm2-135m read: the shipped code."""
    code = CodeConfig("smollm2-135m", layers=(0, 4, 8, 12, 16, 20, 24, 28))
    return CodeRecipe("interlingua", code, ("gemma3-270m", "smollm2-135m"), hidden=(HIDDEN, 0))


RECIPES = {"interlingua": interlingua}
