"""Several processes that train together, by Hugging Face Accelerate: each takes its share of a
step's rows, and gradients are averaged, so that they are those of one process with all rows.

    accelerate launch --cpu --num_processes 2 -m latentwire train smollm2-4x --data FILE.jsonl

What is trained is small, and the frozen LM is called through the port and not through the forward
of a module that could be wrapped. So every process holds everything and gradients are reduced after
the backward pass, which is what DDP does. FSDP2 shards the parameters of wrapped modules: there are
none here, and an LM that does not fit one device is not supported.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor

T = TypeVar("T")


def join() -> None:
    """Find the other processes where `accelerate launch` or torchrun has started this one; else do
    nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        PartialState(cpu=not torch.cuda.is_available())


def rank() -> int:
    """Which of the processes this is, from 0."""
    return dist.get_rank() if _together() else 0


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _together() else 1


def share(rows: Sequence[T]) -> Sequence[T]:
    """This process's part of a step's rows. Raises ValueError where they cannot be shared evenly,
    since the average of gradients would then weigh rows differently."""
    if len(rows) % world():
        raise ValueError(f"{len(rows)} rows a step for {world()} processes; expected a multiple")
    return rows[rank() :: world()]


def weight(count: float) -> float:
    """What this process's loss counts in the mean over processes, where it is itself a mean over
    `count` of something (tokens): 1 on average."""
    return count / mean({"": count})[""] if _together() else 1.0


def mean(figures: Mapping[str, float], weight: float = 1.0) -> dict[str, float]:
    """Figures averaged over all processes; all must have the same names."""
    if not _together():
        return dict(figures)
    values = torch.tensor([v * weight for v in figures.values()], dtype=torch.float64)
    averaged = reduce(values.to(PartialState().device), "mean")
    assert isinstance(averaged, Tensor)
    return dict(zip(figures, averaged.tolist(), strict=True))


def average_gradients(tensors: Sequence[Tensor]) -> None:
    """Replace each gradient by its mean over all processes."""
    if not _together():
        return
    gradients = [torch.zeros_like(t) if t.grad is None else t.grad for t in tensors]
    averaged = reduce(torch.cat([g.flatten() for g in gradients]), "mean")
    assert isinstance(averaged, Tensor)
    parts = averaged.split([t.numel() for t in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.grad = part.view_as(tensor).clone()


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()
