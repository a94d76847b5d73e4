"""Any wire by its name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from latentwire.lm import Dtype, LMSource, as_lms
from latentwire.wire.codes.wire import KIND as CODE_KIND
from latentwire.wire.codes.wire import CodeWire
from latentwire.wire.config import read_config
from latentwire.wire.folder import WireError, folder_of, kind_of
from latentwire.wire.learned.saving import KIND as SHARED_KIND
from latentwire.wire.learned.shared_wire import SharedWire
from latentwire.wire.protocol import Reader
from latentwire.wire.text_wire import KIND as TEXT_KIND
from latentwire.wire.text_wire import TextWire
from latentwire.wire.verbatim import finder
from latentwire.wire.wire import Wire

AnyWire = Wire | SharedWire | TextWire | CodeWire
KINDS = {SHARED_KIND: SharedWire, TEXT_KIND: TextWire, CODE_KIND: CodeWire}
APART = {TEXT_KIND: TextWire, CODE_KIND: CodeWire}
"""Those of which one reader can be loaded alone."""


def load_wire(
    name: str | Path, lms: Mapping[str, LMSource] | None = None, dtype: Dtype | None = None
) -> AnyWire:
    """The wire in a folder, whatever its kind, or a shipped one: "default", "shared" or
    "interlingua".

    lms: those of its models that are loaded already, with their tokenizers, by name. dtype: of the
    readers' weights where they are not, as each was trained if None. Raises WireError as the kinds'
    from_pretrained do.
    """
    kind = kind_of(name)
    if kind in KINDS:
        return KINDS[kind].from_pretrained(name, lms, dtype=dtype)
    reader = read_config(folder_of(name))["reader"]
    return Wire.from_pretrained(name, as_lms(lms).get(reader), dtype)


def load_with(
    name: str | Path,
    ratio: int | None = None,
    keep: str | None = None,
    selector: str | None = None,
    only: int | None = None,
    dtype: Dtype | None = None,
    uniform: bool = False,
) -> AnyWire:
    """A wire, at another ratio than its own unless that is None, with what a rule finds kept as
    text unless that is None. selector: `name` is a model's, whose wire this selector makes without
    any training. only: of a wire of text or of codes this reader alone, by its place. uniform: with
    as many slots in every head. Raises WireError for a rule where nothing travels that it could
    look into, for a ratio of learned codes that have one alone, and for uniform slots of a wire
    that sends no slots."""
    if keep is not None:  # a mistake in it is told before models are loaded
        finder(keep)
    if uniform and selector is None and kind_of(name) in KINDS:
        raise WireError(f"{name} sends no slots; expected a wire of one reader for uniform ones")
    if selector is not None:
        wire = Wire.of(str(name), selector, dtype=dtype)
    elif only is not None and (kind := kind_of(name)) in APART:
        wire = APART[kind].from_pretrained(name, only=only, dtype=dtype)
    else:
        wire = load_wire(name, dtype=dtype)
    if isinstance(wire, CodeWire):
        if keep is not None:
            raise WireError(f"{name} has codes alone; its readers have no text to keep spans of")
        return wire if ratio is None else wire.at(ratio)
    if isinstance(wire, Wire) and uniform:
        wire = wire.uniform()
    if not isinstance(wire, SharedWire):
        return (wire if ratio is None else wire.at(ratio)).keeping(keep)
    if ratio is not None:
        raise WireError(f"{name} has learned codes for a ratio of {wire.config.sizes.ratio} alone")
    if keep is not None:
        raise WireError(f"{name} has learned codes; only a wire of slots can keep spans as text")
    return wire


def load_reader(
    name: str | Path,
    ratio: int | None,
    keep: str | None,
    number: int,
    selector: str | None = None,
    dtype: Dtype | None = None,
) -> Reader:
    """One of the readers of `load_with`, for a worker, which may have no room for them all."""
    wire = load_with(name, ratio, keep, selector, number, dtype)
    return wire.readers[0 if isinstance(wire, TextWire | CodeWire) else number]
