"""Gradient checkpointing of a frozen LM: for the backward pass each block keeps its input alone and
is run again there, so that memory is that of one block (Chen et al. 2016, arXiv 1604.06174).

Hugging Face's own drops the cache from a checkpointed block; ours needs it, since contexts are
caches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

_wanted: ContextVar[bool] = ContextVar("gradient_checkpointing", default=False)


@contextmanager
def gradient_checkpointing(on: bool = True) -> Iterator[None]:
    """Recompute in every differentiable pass through any LM inside, as torch.autocast is for every
    matmul; the backward pass may come after it."""
    token = _wanted.set(on)
    try:
        yield
    finally:
        _wanted.reset(token)


@contextmanager
def recomputed(
    blocks: Iterable[Any], setting: Callable[[], AbstractContextManager]
) -> Iterator[None]:
    """Inside, blocks run in `setting`, and keep only their inputs where `gradient_checkpointing`
    asks for that: they run in it again then."""
    if not (_wanted.get() and torch.is_grad_enabled()):
        with setting():
            yield
        return

    def run(forward, *args, **kwargs):
        with setting():
            return forward(*args, **kwargs)

    # The forward alone, so that hooks of a block, which are gone by then, are not run again.
    for block in blocks:
        again = partial(run, block.forward)
        block.forward = partial(checkpoint, again, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
