"""Arguments, checked where they come in."""

from __future__ import annotations

from typing import Any


def check_texts(texts, what: str) -> None:
    """Raise TypeError for one text where a list of texts is expected: it would be taken letter by
    letter."""
    if isinstance(texts, (str, bytes)):
        raise TypeError(f"{what} is one text; expected a list of texts, such as [{texts[:20]!r}]")


def check_least(config: Any, kind: type[ValueError] = ValueError, /, **least: int) -> None:
    """Raise an error of a kind for fields of a config that are below their least value; None is
    not compared."""
    for name, value in least.items():
        given = getattr(config, name)
        if given is not None and given < value:
            raise kind(f"{name} is {given}; expected at least {value}")
