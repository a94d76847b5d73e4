"""One thread at a time runs a model, or changes it.

A pass puts what is its own on modules that all passes share: hooks and masks, the adapter that is
on, the attention implementation, the forwards that gradient checkpointing replaces. All of it is
put on, used and taken off within one turn. A generation takes a turn for each step, so that those
of several threads go on side by side.

Never wait for a backward pass within a turn: on a GPU another thread recomputes the checkpointed
blocks, and takes a turn for each of them.
"""

from __future__ import annotations

from threading import Lock, RLock, get_ident
from typing import Any
from weakref import WeakKeyDictionary

LOADING = RLock()
"""Held where a model is loaded: transformers changes torch's default type meanwhile, and switches
initialisation off."""


class Turns:
    """A re-entrant lock that goes round: with Python's own, a thread that takes one turn after the
    other leaves the rest waiting for as long as it likes."""

    def __init__(self) -> None:
        self._next, self._now = Lock(), Lock()
        self._owner: int | None = None
        self._depth = 0

    def __enter__(self) -> None:
        if self._owner != get_ident():
            with self._next:  # whoever waits here goes before the thread whose turn it is
                self._now.acquire()
            self._owner = get_ident()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._owner = None
            self._now.release()


_TURNS: WeakKeyDictionary[Any, Turns] = WeakKeyDictionary()
"""By model, and not on it: a model that holds a lock cannot be copied."""
_NEW = Lock()


def turn(model: Any) -> Turns:
    """A context to enter, for as long as no other thread may be in a turn of this model."""
    with _NEW:
        return _TURNS.setdefault(model, Turns())
