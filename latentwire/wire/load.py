"""Any wire by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from latentwire.card import base_models
from latentwire.lm import Dtype, FrozenLM, LMSource
from latentwire.lm.loaded import models_given
from latentwire.lm.zoo import name_of
from latentwire.wire.codes.message import MAGIC as CODE_MAGIC
from latentwire.wire.codes.wire import KIND as CODE_KIND
from latentwire.wire.codes.wire import CodeWire
from latentwire.wire.folder import WireError, folder_of, kind_of
from latentwire.wire.learned.saving import KIND as SHARED_KIND
from latentwire.wire.learned.shared_message import MAGIC as SHARED_MAGIC
from latentwire.wire.learned.shared_wire import SharedWire
from latentwire.wire.message import MAGIC as KV_MAGIC
from latentwire.wire.protocol import Reader
from latentwire.wire.text_message import MAGIC as TEXT_MAGIC
from latentwire.wire.text_wire import KIND as TEXT_KIND
from latentwire.wire.text_wire import TextWire
from latentwire.wire.verbatim import finder
from latentwire.wire.wire import Wire

AnyWire = Wire | SharedWire | TextWire | CodeWire
KINDS = {SHARED_KIND: SharedWire, TEXT_KIND: TextWire, CODE_KIND: CodeWire}
MAGICS = (KV_MAGIC, TEXT_MAGIC, CODE_MAGIC, SHARED_MAGIC)
"""The four bytes that each kind of message begins with."""
APART = {TEXT_KIND: TextWire, CODE_KIND: CodeWire}
"""Those of which one reader can be loaded alone."""


def load_wire(
    name: str | Path,
    lms: LMSource | Mapping[str, LMSource] | None = None,
    dtype: Dtype | None = None,
    device: str | None = None,
    ratio: int | None = None,
) -> AnyWire:
    """The wire in a folder, whatever its kind, or a shipped one: "default", "shared" or
    "interlingua".

    lms: those of its models that are loaded already, with their tokenizers, or have another path
    here, by name; of a wire of one reader that alone will do. dtype: of the readers' weights where
    they are loaded here, as each was trained if None. device: of the models that are loaded here,
    torch's accelerator where there is one if None. ratio: tokens in per latent out, its own if
    None. Raises WireError as the kinds' from_pretrained do and for a ratio of learned codes, which
    have one alone, and ZooError for a model that the wire has not.
    """
    kind = kind_of(name)
    made: Any = KINDS.get(kind, Wire) if kind else Wire
    options: dict[str, Any] = {"dtype": dtype, "device": device, "ratio": ratio}
    if kind == SHARED_KIND and options.pop("ratio") is not None:
        raise WireError(f"{name} has learned codes, which have one ratio alone")
    return made.from_pretrained(name, lms, **options)


def load_with(
    name: str | Path,
    ratio: int | None = None,
    keep: str | None = None,
    selector: str | None = None,
    only: int | None = None,
    dtype: Dtype | None = None,
    uniform: bool = False,
    readers: Sequence[str] = (),
) -> AnyWire:
    """A wire, at another ratio than its own unless that is None, with what a rule finds kept as
    text unless that is None. selector: `name` is a model's, whose wire this selector makes without
    any training. only: of a wire of text or of codes this reader alone, by its place. uniform: with
    as many slots in every head. readers: PATH or NAME=PATH of models that have another path here.
    Raises WireError for a rule where nothing travels that it could look into, for a ratio of
    learned codes that have one alone, and for uniform slots of a wire that sends no slots."""
    if keep is not None:  # a mistake in it is told before models are loaded
        finder(keep)
    if selector is not None:
        if readers:
            raise WireError("got --reader and --selector; with --selector, --wire is the model")
        wire = Wire.of(str(name), selector, dtype=dtype)
        wire = wire if ratio is None else wire.at(ratio)
    elif uniform and kind_of(name) in KINDS:
        raise WireError(f"{name} sends no slots; expected a wire of one reader for uniform ones")
    elif only is not None and (kind := kind_of(name)) in APART:
        lms = models_given(readers)
        wire = APART[kind].from_pretrained(name, lms, only=only, dtype=dtype, ratio=ratio)
    else:
        wire = load_wire(name, models_given(readers), dtype, ratio=ratio)
    if isinstance(wire, Wire) and uniform:
        wire = wire.uniform()
    if keep is None:
        return wire
    if isinstance(wire, CodeWire):
        raise WireError(f"{name} has codes alone; its readers have no text to keep spans of")
    if isinstance(wire, SharedWire):
        raise WireError(f"{name} has learned codes; only a wire of slots can keep spans as text")
    return wire.keeping(keep)


def soft_prompts_of(
    name: str | Path, lms: Mapping[str, FrozenLM] | None = None
) -> dict[str, Tensor]:
    """The soft prompts of a wire's readers, by name. lms: models that are loaded, of which the wire
    may have some."""
    kind_of(name)  # what is no wire is refused as one
    own = set(base_models(folder_of(name)))
    given = {model: lm for model, lm in (lms or {}).items() if {model, name_of(model)} & own}
    return {reader.reader: reader.format.detach() for reader in load_wire(name, given).readers}


def load_reader(
    name: str | Path,
    ratio: int | None,
    keep: str | None,
    number: int,
    selector: str | None = None,
    dtype: Dtype | None = None,
    readers: Sequence[str] = (),
) -> Reader:
    """One of the readers of `load_with`, for a worker, which may have no room for them all."""
    wire = load_with(name, ratio, keep, selector, number, dtype, readers=readers)
    return wire.readers[0 if isinstance(wire, TextWire | CodeWire) else number]
