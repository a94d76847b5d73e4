"""A wire's folder: what its config.json says, and which kind of wire that makes."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from latentwire.lm.zoo import locate_saved
from latentwire.reading import InputError, saved_config, shortened

_DATA = Path(str(files("latentwire") / "data" / "wires"))
_CODES = Path(str(files("latentwire") / "data" / "interlingua"))
_SHIPPED = {"default": _DATA / "reader-0", "shared": _DATA, "interlingua": _CODES}


class WireError(InputError):
    """A wire or its input cannot be used. One line: what, expected, got, what to do."""


def folder_of(name: str | Path) -> Path:
    """The folder of a wire: one that is given, that of a shipped one by its name, or what the
    Hugging Face hub has under owner/name. Raises ZooError where it has none."""
    if isinstance(name, str):
        return _SHIPPED.get(name) or locate_saved(name, "a wire")
    return name


def read_record(folder: Path, kind: str | None, version: int) -> dict[str, Any]:
    """config.json of a wire of this kind (None: of one reader). Raises WireError for a folder that
    holds none, or one that another release wrote."""
    record = _record(folder)
    if record.get("kind") != kind or "format_version" not in record:
        raise WireError(
            f"{folder}/config.json is not a {kind or 'wire'}'s (kind is "
            f"{shortened(record.get('kind'))}); latentwire.load_wire takes a wire of any kind"
        )
    if record["format_version"] != version or type(record["format_version"]) is not int:
        raise WireError(
            f"{folder}: {kind or 'wire'} format {shortened(record['format_version'])}; expected "
            f"{version}"
        )
    return record


def kind_of(name: str | Path) -> str | None:
    """The kind of wire that a folder says it holds; None for one of one reader. Raises WireError
    for a folder that holds none."""
    kind = _record(folder_of(name)).get("kind")
    return kind if isinstance(kind, str) else None


def _record(folder: Path) -> dict[str, Any]:
    try:
        record = saved_config(folder)
    except ValueError as error:
        raise WireError(
            f"{folder} is no wire; expected a folder with config.json ({error}), or a shipped "
            "wire's name: default, shared, interlingua"
        ) from None
    if not isinstance(record, dict):
        raise WireError(f"{folder}/config.json is not a wire's; expected the one that save wrote")
    return record
