"""An LM from whatever a caller has of it: a name, a folder, a model of transformers, or the port.

Wire.of((model, tokenizer), selector="repetition")
load_wire("interlingua", {"gemma3-270m": (model, tokenizer)})
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from latentwire.lm.devices import Dtype
from latentwire.lm.frozen import FrozenLM
from latentwire.lm.zoo import ZooError, local_folder, name_of
from latentwire.reading import shortened

LMSource = FrozenLM | str | Path | tuple[Any, Any]
"""A name or folder as FrozenLM.from_pretrained takes it, a loaded model of transformers with its
tokenizer, or an LM of the port."""


def as_lm(
    source: LMSource, dtype: Dtype = "float32", name: str | None = None, device: str | None = None
) -> FrozenLM:
    """The LM of a source. A loaded model stays on its device and in its number type; it is put in
    evaluation mode and its weights no longer take gradients. dtype, device: of one that is loaded
    here. name: of one that is no FrozenLM yet, its own if None. Raises ZooError for what is no
    source."""
    match source:
        case FrozenLM():
            return source
        case str() | Path():
            lm = FrozenLM.from_pretrained(source, dtype, device)
            lm.name = name or lm.name
            return lm
        case (nn.Module() as model, PreTrainedTokenizerBase() as tokenizer):
            return FrozenLM(model, tokenizer, name or loaded_by(model))
    parts = source if isinstance(source, tuple | list) else [source]
    raise ZooError(
        f"got {', '.join(type(part).__name__ for part in parts)} for a model; expected a name or "
        "folder, a loaded model with its tokenizer, (model, tokenizer), or a FrozenLM"
    )


class Models:
    """The models of something saved, by name: those that a caller has, and the others loaded when
    they are first asked for, from the folders that they were in when it was saved."""

    def __init__(
        self,
        names: Iterable[str],
        given: Mapping[str, LMSource] | None = None,
        folders: Mapping[str, str] | None = None,
        device: str | None = None,
    ):
        """names: of the models that there are, as they were saved. given: by name or folder.
        folders: by name, of those that had no name elsewhere. device: of those that are loaded
        here. Raises ZooError for a given one that is none of them."""
        known = list(dict.fromkeys(names))
        if not isinstance(given or {}, Mapping):
            raise ZooError(f"got a model alone; expected which it is by name: {', '.join(known)}")
        self._sources: dict[str, LMSource] = {}
        for name, source in (given or {}).items():
            if name not in known and (name := name_of(name)) not in known:
                raise ZooError(f"got a model for {name!r}; expected one for {', '.join(known)}")
            self._sources[name] = source
        self._folders, self._device = folders or {}, device

    def __contains__(self, name: str) -> bool:
        """True for one that the caller has, or that was asked for already."""
        return name in self._sources

    def folder(self, name: str) -> Path | None:
        """The folder of this machine that a model is or was in, where it has no name elsewhere."""
        if isinstance(lm := self._sources.get(name), FrozenLM):
            return lm.folder
        return Path(self._folders[name]) if name in self._folders else None

    def get(self, name: str, dtype: Dtype = "float32") -> FrozenLM:
        """The LM of a name. dtype: of one that is loaded here. Raises ZooError where there is no
        such model, and says which folder it was in."""
        if (source := self._sources.get(name)) is None:
            source = self._folders.get(name, name)
            if source != name and local_folder(source) is None:
                raise ZooError(
                    f"{name} was in {source}, which is not here; say where it is: "
                    f"--reader {name}=PATH, or {{{name!r}: PATH}} where models are given"
                )
        lm = self._sources[name] = as_lm(source, dtype, name, self._device)
        return lm


def lm_of(
    name: str,
    given: LMSource | Mapping[str, LMSource] | None,
    dtype: Dtype,
    folders: Mapping[str, str],
    device: str | None = None,
) -> FrozenLM:
    """The one LM of something saved: the given one, or that of its name as `Models` finds it."""
    if given is None or isinstance(given, Mapping):
        return Models([name], given, folders, device).get(name, dtype)
    return as_lm(given, dtype, device=device)


def models_given(options: Sequence[str]) -> Any:
    """Models as whatever is saved is loaded with them, from the values of --reader: one PATH, or
    NAME=PATH each. Raises ZooError for other values, and for a name that comes twice."""
    if len(options) == 1 and options[0] and ("=" not in options[0] or local_folder(options[0])):
        return options[0]
    found: dict[str, str] = {}
    for option in options:
        name, _, path = option.partition("=")
        if not name or not path or name in found:
            raise ZooError(
                f"--reader is {shortened(option)}; expected PATH, or NAME=PATH with each name once"
            )
        found[name] = path
    return found or None


def called(lm: FrozenLM, name: str) -> str:
    """The name by which files call an LM: its own, where `name` is the folder that it is from."""
    return lm.name if lm.folder is not None and local_folder(name) == lm.folder else name


def saved_folders(folders: Mapping[str, Path | None]) -> dict[str, dict[str, str]]:
    """The field of a config.json that says in which folders of this machine models were, by their
    names, that have no name elsewhere; none where there is no such model."""
    here = {name: str(f) for name, f in folders.items() if f is not None and "/" not in name}
    return {"folders": here} if here else {}


def loaded_by(model: Any) -> str:
    """The name or folder that a model of transformers was loaded by, or its class's name."""
    return getattr(model.config, "_name_or_path", "") or type(model).__name__
