"""An LM from whatever a caller has of it: a name, a folder, a model of transformers, or the port.

Wire.of((model, tokenizer), selector="repetition")
load_wire("interlingua", {"gemma3-270m": (model, tokenizer)})
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentwire.lm.devices import Dtype
from latentwire.lm.frozen import FrozenLM

LMSource = FrozenLM | str | Path | tuple[Any, Any]
"""A name or folder as FrozenLM.from_pretrained takes it, a loaded model of transformers with its
tokenizer, or an LM of the port."""


def as_lm(source: LMSource, dtype: Dtype = "float32", name: str | None = None) -> FrozenLM:
    """The LM of a source. A loaded model stays on its device and in its number type; it is put in
    evaluation mode and its weights no longer take gradients. dtype: of one that is loaded here.
    name: of one that is no FrozenLM yet, its own if None."""
    if isinstance(source, FrozenLM):
        return source
    if isinstance(source, tuple):
        model, tokenizer = source
        return FrozenLM(model, tokenizer, name or named(model))
    lm = FrozenLM.from_pretrained(str(source), dtype)
    lm.name = name or lm.name
    return lm


def as_lms(sources: Mapping[str, LMSource] | None) -> dict[str, FrozenLM]:
    """The LMs of sources, each by its name and called by it."""
    return {name: as_lm(source, name=name) for name, source in (sources or {}).items()}


def named(model: Any) -> str:
    """The name or folder that a model of transformers was loaded by, or its class's name."""
    return getattr(model.config, "_name_or_path", "") or type(model).__name__
