"""Several processes that train together: each takes its share of a step's rows, and gradients are
averaged, so that they are those of one process with all rows.

    torchrun --nproc-per-node 2 -m latentwire lens train smollm2 --text FILE
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def join() -> None:
    """Find the other processes where torchrun has started this one; else do nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not _together():
        dist.init_process_group("gloo")


def rank() -> int:
    """Which of the processes this is, from 0."""
    return dist.get_rank() if _together() else 0


def share(rows: Sequence[T]) -> Sequence[T]:
    """This process's part of a step's rows. Raises ValueError where they cannot be shared evenly,
    since the average of gradients would then weigh rows differently."""
    if not _together():
        return rows
    world = dist.get_world_size()
    if len(rows) % world:
        raise ValueError(f"{len(rows)} rows a step for {world} processes; expected a multiple")
    return rows[rank() :: world]


def average_gradients(tensors: Sequence[Tensor]) -> None:
    """Replace each gradient by its mean over all processes."""
    if not _together():
        return
    for tensor in tensors:
        if tensor.grad is None:
            tensor.grad = torch.zeros_like(tensor)
        total = tensor.grad.cpu()
        dist.all_reduce(total)
        tensor.grad.copy_(total / dist.get_world_size())


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()
