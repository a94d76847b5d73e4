"""Chooses the examples of a step, and gets them ready while the step before runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache

import torch
from torch import Tensor


def shuffled(count: int, seed: int, step: int, size: int) -> list[int]:
    """The examples of one step: `size` indices below `count`; each epoch has its seeded order."""
    places = [divmod(position, count) for position in range(step * size, (step + 1) * size)]
    return [int(_permutation(count, seed, epoch)[place]) for epoch, place in places]


@lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1000 + epoch))


CHUNK = 50
"""Batches whose examples are sorted by length together: more pad less, and mix examples less."""


def bucketed(lengths: Sequence[int], seed: int, step: int, size: int) -> list[int]:
    """The examples of one step: `size` indices of examples of similar length, padded little.

    An epoch has every example once, in its own seeded order: CHUNK batches' worth at a time are
    sorted by length, and the batches shuffled. The batch that ends one epoch and begins the next is
    not sorted.
    """
    known = tuple(lengths)
    orders: dict[int, list[int]] = {}  # finding one reads all lengths, so once an epoch
    indices = []
    for position in range(step * size, (step + 1) * size):
        epoch, place = divmod(position, len(known))
        if epoch not in orders:
            orders[epoch] = _order(known, seed, epoch, size)
        indices.append(orders[epoch][place])
    return indices


@lru_cache(maxsize=4)
def _order(lengths: tuple[int, ...], seed: int, epoch: int, size: int) -> list[int]:
    """All examples in the order of one epoch."""
    generator = torch.Generator().manual_seed(seed * 1000 + epoch)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    first = -epoch * len(lengths) % size  # where the first batch of this epoch alone begins
    last = max(first, len(order) - (len(order) - first) % size)
    batches = []
    for start in range(first, last, CHUNK * size):
        chunk = sorted(order[start : min(last, start + CHUNK * size)], key=lengths.__getitem__)
        batches += [chunk[i : i + size] for i in range(0, len(chunk), size)]
    places = torch.randperm(len(batches), generator=generator).tolist()
    return order[:first] + [i for place in places for i in batches[place]] + order[last:]


Coming = AbstractContextManager[Callable[[int], float]]


@contextmanager
def ahead(prepare: Callable[[int], object]) -> Iterator[Callable[[int], float]]:
    """A function that is asked for a step as it begins, and again for each of its parts: prepare of
    that step is done when it returns the seconds that this was waited for, and prepare of the next
    one runs in a thread. What fails there is raised where its step begins."""
    with ThreadPoolExecutor(1) as thread:
        begun: dict[int, Future] = {}

        def ready(step: int) -> float:
            began = time.perf_counter()
            for n in (step, step + 1):
                if n not in begun:
                    begun[n] = thread.submit(prepare, n)
            for n in [n for n in begun if n < step]:
                del begun[n]
            begun[step].result()
            return time.perf_counter() - began

        yield ready
