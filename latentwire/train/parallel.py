"""Several processes that train together, by Hugging Face Accelerate: each takes its share of a
step's rows, and gradients are averaged, so that they are those of one process with all rows.

    accelerate launch --multi_gpu --num_processes 2 -m latentwire train smollm2-4x --data FILE.jsonl
    accelerate launch --use_fsdp --fsdp_version 2 --num_processes 2 -m latentwire train ...

Both start processes over gloo where there is no GPU. What is trained is small, and the frozen LM is
called through the port and not through the forward of a module that could be wrapped. So every
process holds all that is trained and gradients are reduced after the backward pass, which is what
DDP does; with FSDP2 the LM's own weights are shared out (`sharded`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast, broadcast_object_list, reduce
from torch import Tensor

from latentwire.lm import FrozenLM
from latentwire.lm.devices import HAVE_FLOAT64, accelerator

BUCKET = 2**24
"""Numbers of gradients that are averaged together; a larger tensor is averaged alone."""
T = TypeVar("T")
_part: ContextVar[tuple[int, int]] = ContextVar("part", default=(0, 1))


def join() -> None:
    """Find the other processes where a launcher has started this one; else do nothing. Raises
    ValueError for a launch that cannot work, before any compute."""
    launched, alone = "ACCELERATE_USE_CPU" in os.environ, _state().num_processes == 1
    if launched and alone and "MASTER_ADDR" in os.environ:
        raise ValueError(
            "accelerate launch --cpu starts one process and leaves the others to mpirun; use "
            "accelerate launch --multi_gpu --num_processes N, which needs no GPU"
        )
    if _fsdp():
        if os.environ.get("FSDP_VERSION") != "2":
            raise ValueError("FSDP 1 is not supported; add --fsdp_version 2")
        # Else transformers gives all processes but the first empty weights, for Accelerate to fill.
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"


def rank() -> int:
    """The number of this process, from 0."""
    return _state().process_index


def world() -> int:
    """The number of processes that train together."""
    return _state().num_processes


def sharded(lm: FrozenLM) -> FrozenLM:
    """The LM, whose blocks' matrices are shared out among the processes where FSDP2 is asked for;
    then every process must run the same passes. Embeddings, norms and what is trained stay whole.

    One matrix at a time and not one block: gradients come back into a block through the keys and
    values of its cache, where FSDP2 does not see that the block's weights are needed.
    """
    if _fsdp() and world() > 1:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(lm.device.type, (world(),))
        for module in list(lm.blocks.modules()):
            own = list(module.parameters(recurse=False))
            if any(p.ndim > 1 and not p.requires_grad for p in own):
                fully_shard(module, mesh=mesh, reshard_after_forward=True)
    return lm


@contextmanager
def gathered(lm: FrozenLM) -> Iterator[None]:
    """Inside, every process has all that is shared out and may run passes of its own: rows end at
    different tokens, so a generation takes different numbers of them."""
    if not _fsdp():
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    shards = [module for module in lm.blocks.modules() if isinstance(module, FSDPModule)]
    for module in shards:
        module.set_reshard_after_forward(False)
        module.unshard()
    try:
        yield
    finally:
        for module in shards:
            module.set_reshard_after_forward(True)
            module.reshard()


def all_check() -> bool:
    """True where the passes of a check are run by all processes, and not by the first alone."""
    return _fsdp()


@contextmanager
def part(index: int, count: int) -> Iterator[None]:
    """Inside, `share` gives one of `count` parts of this process's rows (gradient accumulation)."""
    token = _part.set((index, count))
    try:
        yield
    finally:
        _part.reset(token)


def share(rows: Sequence[T]) -> Sequence[T]:
    """This process's part of a step's rows. Raises ValueError where they cannot be shared evenly,
    since the average of gradients would then weigh rows differently."""
    index, count = _part.get()
    check_rows(len(rows), count)
    return rows[rank() * count + index :: world() * count]


def weight(own: Sequence[T], whole: Sequence[T], units: Callable[[T], int]) -> float:
    """The factor of a mean over the units (tokens, say) of a part's own rows, with which the mean
    of all parts, each of as many rows, is the mean over the units of the step's whole rows."""
    return sum(map(units, own)) * len(whole) / (sum(map(units, whole)) * len(own))


def check_rows(rows: int, parts: int) -> None:
    """Raises ValueError where a step's rows cannot be shared evenly."""
    if rows % (world() * parts):
        raise ValueError(
            f"{rows} rows a step for {world()} process(es) and --gradient-accumulation {parts}; "
            f"expected a multiple of {world() * parts}"
        )


def mean(figures: Mapping[str, float]) -> dict[str, float]:
    """Figures averaged over all processes; all must have the same names."""
    if world() == 1:
        return dict(figures)
    device = _state().device
    assert device is not None
    dtype = torch.float64 if device.type in HAVE_FLOAT64 else torch.float32
    values = torch.tensor(list(figures.values()), dtype=dtype, device=device)
    averaged = reduce(values, "mean")
    assert isinstance(averaged, Tensor)
    return dict(zip(figures, averaged.tolist(), strict=True))


def of_first(value: T) -> T:
    """The first process's value, in all of them."""
    return value if world() == 1 else broadcast_object_list([value])[0]


def as_first(tensors: Sequence[Tensor]) -> None:
    """Make the first process's tensors those of all, as DDP does when it begins: what each has
    measured by itself may differ by rounding, and averaged gradients would keep that difference."""
    if world() > 1:
        for tensor in tensors:
            broadcast(tensor.data)


def average_gradients(tensors: Sequence[Tensor]) -> None:
    """Replace each gradient by its mean over all processes; none counts as zeros."""
    for tensor in tensors:
        tensor.grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
    if world() == 1:
        return
    for bucket in _buckets([t.grad for t in tensors if t.grad is not None]):
        averaged = reduce(torch.cat([g.flatten() for g in bucket]), "mean")
        assert isinstance(averaged, Tensor)
        parts = averaged.split([g.numel() for g in bucket])
        for gradient, own in zip(bucket, parts, strict=True):
            gradient.copy_(own.view_as(gradient))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors in order, as many at a time as have at most BUCKET numbers together: all at once
    would take their memory again, and each alone a message for each of many small ones."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(t.numel() for t in (*bucket, tensor)) > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _state() -> PartialState:
    """Accelerate's, which every function here asks, and none asks torch.distributed behind its
    back: a mean over processes that Accelerate does not know of would silently be none."""
    state = PartialState(cpu=accelerator() is None)
    together = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if together != state.num_processes:
        raise ValueError(
            f"torch.distributed has {together} processes, Accelerate {state.num_processes}; start "
            "them with accelerate launch or torchrun, and leave init_process_group to it"
        )
    return state


def _fsdp() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
