"""The settings of a wire of one reader, and what else its folder's config.json says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from latentwire.lm import Dtype
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

    def __post_init__(self) -> None:
        for name, least in (("ratio", 1), ("window", 1), ("rank", 0), ("format_tokens", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise WireError(f"{name} is {value!r}; expected a whole number >= {least}")
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


def read_config(folder: Path) -> dict:
    """config.json of a wire of one reader. Raises WireError for a folder that holds none."""
    record = read_record(folder, None, FORMAT_VERSION)
    if not isinstance(record.get("reader"), str):
        raise WireError(f"{folder}/config.json is not a wire's; expected the one that save wrote")
    return record
