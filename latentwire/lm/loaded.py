"""An LM from whatever a caller has of it: a name, a folder, a model of transformers, or the port.

Wire.of((model, tokenizer), selector="repetition")
load_wire("interlingua", {"gemma3-270m": (model, tokenizer)})
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from latentwire.lm.devices import Dtype
from latentwire.lm.frozen import FrozenLM
from latentwire.lm.zoo import ZooError

LMSource = FrozenLM | str | Path | tuple[Any, Any]
"""A name or folder as FrozenLM.from_pretrained takes it, a loaded model of transformers with its
tokenizer, or an LM of the port."""


def as_lm(source: LMSource, dtype: Dtype = "float32", name: str | None = None) -> FrozenLM:
    """The LM of a source. A loaded model stays on its device and in its number type; it is put in
    evaluation mode and its weights no longer take gradients. dtype: of one that is loaded here.
    name: of one that is no FrozenLM yet, its own if None. Raises ZooError for what is no source."""
    match source:
        case FrozenLM():
            return source
        case str() | Path():
            lm = FrozenLM.from_pretrained(str(source), dtype)
            lm.name = name or lm.name
            return lm
        case (nn.Module() as model, PreTrainedTokenizerBase() as tokenizer):
            return FrozenLM(model, tokenizer, name or named(model))
    parts = source if isinstance(source, tuple | list) else [source]
    raise ZooError(
        f"got {', '.join(type(part).__name__ for part in parts)} for a model; expected a name or "
        "folder, a loaded model with its tokenizer, (model, tokenizer), or a FrozenLM"
    )


def as_lms(sources: Mapping[str, LMSource] | None) -> dict[str, FrozenLM]:
    """The LMs of sources, each by its name and called by it."""
    return {name: as_lm(source, name=name) for name, source in (sources or {}).items()}


def named(model: Any) -> str:
    """The name or folder that a model of transformers was loaded by, or its class's name."""
    return getattr(model.config, "_name_or_path", "") or type(model).__name__
