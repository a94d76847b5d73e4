"""Where tensors lie."""

from __future__ import annotations

import torch
from torch import Tensor


def accelerator() -> torch.device | None:
    """Where models go unless told otherwise: CUDA, ROCm, XPU, MPS, whichever torch finds."""
    return torch.accelerator.current_accelerator(check_available=True)


def precise(x: Tensor) -> Tensor:
    """In float64; on the CPU where its own device may have none, as Apple's and some of Intel's."""
    return x.to(x.device if x.is_cuda or x.is_meta else "cpu", torch.float64)
