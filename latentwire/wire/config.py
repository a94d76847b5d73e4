"""The settings of a wire of one reader, and what else its folder's config.json says."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from latentwire.lm import Dtype, FrozenLM
from latentwire.texts import check_least
from latentwire.wire.folder import WireError, read_record
from latentwire.wire.message import GAP
from latentwire.wire.selectors import SELECTORS, TRAINED

FORMAT_VERSION = 1


@dataclass(frozen=True)
class WireConfig:
    """The sizes and parts of a wire; saved beside its weights."""

    reader: str
    """Zoo name, Hugging Face id or folder of the LM that reads it."""
    ratio: int = 4
    """Tokens in per latent out."""
    window: int = 512
    """Most tokens that are encoded in one pass; longer texts are cut into windows."""
    rank: int = 128
    """Width of the bottleneck of each layer's residual; 0 for none."""
    format_tokens: int = 16
    """Soft tokens between context and question that set the form of the answer; 0 for none."""
    dtype: Dtype = "float32"
    """Number type of the reader's weights; the wire's own are float32."""
    selector: str = TRAINED
    """The choice of tokens that stay: the trained scorer, or a selector of selectors/ by name."""
    uniform: bool = False
    """Keep as many slots in every head of every layer, for caches of one length (vLLM)."""

    def __post_init__(self) -> None:
        for name, least in (("ratio", 1), ("window", 1), ("rank", 0), ("format_tokens", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise WireError(f"{name} is {value!r}; expected a whole number >= {least}")
        if type(self.uniform) is not bool:
            raise WireError(f"uniform is {self.uniform!r}; expected true or false")
        if self.selector not in (TRAINED, *SELECTORS):
            known = ", ".join((TRAINED, *SELECTORS))
            raise WireError(f"selector is {self.selector!r}; expected one of: {known}")
        if self.window > GAP // 2:  # a head may have one slot in each of two windows
            raise WireError(f"window is {self.window}; expected at most {GAP // 2}")


@dataclass(frozen=True)
class Origin:
    """The models that a wire was trained for, saved beside its weights."""

    sha256: str
    """Digest of the file of weights."""
    architecture: str
    """Architecture of the reader."""
    reader_weights: str
    """The reader's fingerprint."""
    folders: dict[str, str] = field(default_factory=dict)
    """Folders of models by name, on the machine that saved it, that had no name elsewhere."""

    def check(self, lm: FrozenLM, reader: str, folder: Path) -> None:
        """Raises WireError where an LM is not the reader that the wire in a folder was trained for;
        warns where it is another copy of it."""
        if lm.architecture != self.architecture:
            raise WireError(
                f"{folder} was trained for {reader} {self.architecture}; "
                f"got {lm.name} {lm.architecture}"
            )
        if lm.fingerprint != self.reader_weights:
            # Another copy of the same model (a 4-bit one, the original) reads a little worse;
            # another model of the same shape reads nothing.
            if lm.name != reader:
                raise WireError(
                    f"{folder} was trained for {reader}; {lm.name} is another model. If it is a "
                    f"copy of that one, call it so: --reader {reader}=PATH, or "
                    f"FrozenLM(model, tokenizer, {reader!r})"
                )
            warnings.warn(
                f"wire {folder} was trained on another copy of {lm.name} (its weights differ); "
                "expect somewhat lower scores",
                stacklevel=3,
            )


@dataclass(frozen=True)
class Measured:
    """The texts and ratios that a wire was trained on, saved beside its weights: beyond them nobody
    knows how well it answers."""

    tokens: int = 0
    """Tokens of the longest text; 0 where that is not known."""
    ratio: int = 0
    """Highest ratio; 0 where that is not known."""

    def __post_init__(self) -> None:
        check_least(self, WireError, tokens=0, ratio=0)

    def warn_beyond(self, tokens: int, ratio: int) -> None:
        """Warn, once, of a text longer than the longest, and of a ratio above the highest."""
        unknown = "how well it answers there was never measured"
        if 0 < self.tokens < tokens:
            told = f"a text is longer than the {self.tokens} tokens that this wire was trained on"
            _warn_once(f"{told}; {unknown}")
        if 0 < self.ratio < ratio:
            told = f"this wire was trained at up to {self.ratio}x and is asked for more"
            _warn_once(f"{told}; {unknown}")


@cache
def _warn_once(text: str) -> None:
    # Python's own memory of what it has shown is lost whenever a library changes filters.
    warnings.warn(text, stacklevel=2)


def read_config(folder: Path) -> dict:
    """config.json of a wire of one reader. Raises WireError for a folder that holds none."""
    record = read_record(folder, None, FORMAT_VERSION)
    if not isinstance(record.get("reader"), str):
        raise WireError(f"{folder}/config.json is not a wire's; expected what it was saved with")
    return record
