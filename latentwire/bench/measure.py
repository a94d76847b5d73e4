"""Measures a piece of work: seconds, positions that the model ran over, peak memory."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from latentwire.lm import FrozenLM
from latentwire.lm.devices import wait_for


@dataclass
class Cost:
    """seconds of wall time; cpu: seconds of all threads; forwards: positions that the model's body
    ran over, padding included; memory: peak bytes above where the work began (GPU memory, or
    resident memory on Linux), None where that cannot be measured."""

    seconds: float = 0.0
    cpu: float = 0.0
    forwards: int = 0
    memory: int | None = None


@contextmanager
def measured(lm: FrozenLM) -> Iterator[Cost]:
    """The cost of what runs inside; complete when the context exits."""
    cost, device = Cost(), lm.device

    def count(_module, args, kwargs):
        given = (kwargs.get("inputs_embeds"), kwargs.get("input_ids"), *args)
        entered = next(x for x in given if x is not None)
        cost.forwards += entered.shape[0] * entered.shape[1]

    handle = lm.body.register_forward_pre_hook(count, with_kwargs=True)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    wait_for(device)
    before = _memory(device, start=True)
    began, busy = time.perf_counter(), time.process_time()
    try:
        yield cost
        wait_for(device)
    finally:
        handle.remove()
    cost.seconds, cost.cpu = time.perf_counter() - began, time.process_time() - busy
    peak = _memory(device, start=False)
    cost.memory = None if before is None or peak is None else max(0, peak - before)


def _memory(device: torch.device, start: bool) -> int | None:
    """Bytes in use at the start, or the peak since."""
    if device.type == "cuda":
        used, peak = torch.cuda.memory_allocated, torch.cuda.max_memory_allocated
        return used(device) if start else peak(device)
    if device.type != "cpu":
        return None
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        if start:
            # What earlier work freed and the allocator kept would count as ours otherwise.
            ctypes.CDLL(None).malloc_trim(0)
            reset.write_text("5")  # the kernel's "reset the peak"
        wanted = "VmRSS:" if start else "VmHWM:"
        line = next(row for row in status.read_text().splitlines() if row.startswith(wanted))
        return 1024 * int(line.split()[1])
    except (OSError, AttributeError):
        return None
