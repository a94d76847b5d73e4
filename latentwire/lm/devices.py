"""Where tensors lie."""

from __future__ import annotations

import os

import torch
from torch import Tensor


def accelerator() -> torch.device | None:
    """Where models go unless told otherwise: CUDA, ROCm, XPU, MPS, whichever torch finds; none
    where Accelerate is told so (ACCELERATE_USE_CPU=true)."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return None
    return torch.accelerator.current_accelerator(check_available=True)


def precise(x: Tensor) -> Tensor:
    """In float64; on the CPU where its own device may have none, as Apple's and some of Intel's."""
    return x.to(x.device if x.is_cuda or x.is_meta else "cpu", torch.float64)


def wait_for(device: torch.device) -> None:
    """Until a device has done all that it was given, so that a clock can be read."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
