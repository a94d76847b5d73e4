"""Where tensors lie."""

from __future__ import annotations

import torch
from accelerate.utils import parse_flag_from_env
from torch import Tensor

HAVE_FLOAT64 = ("cpu", "cuda", "meta")
"""Kinds of devices that surely have it: Apple's and some of Intel's have none."""


def accelerator() -> torch.device | None:
    """Where models go unless told otherwise: CUDA, ROCm, XPU, MPS, whichever torch finds; none
    where Accelerate is told so (ACCELERATE_USE_CPU=true)."""
    if parse_flag_from_env("ACCELERATE_USE_CPU"):
        return None
    return torch.accelerator.current_accelerator(check_available=True)


def precise(x: Tensor) -> Tensor:
    """In float64; on the CPU where its own device may have none."""
    return x.to(x.device if x.device.type in HAVE_FLOAT64 else "cpu", torch.float64)


def wait_for(device: torch.device) -> None:
    """Until a device has done all that it was given, so that a clock can be read."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
