"""The devices that tensors lie on, and their number types."""

from __future__ import annotations

from typing import Literal

import torch
from accelerate.utils import parse_flag_from_env
from torch import Tensor

Dtype = Literal["float32", "bfloat16"]
"""Number types of the weights of a frozen LM, in recipes and saved configs."""
HAVE_FLOAT64 = ("cpu", "cuda", "meta")
"""Kinds of devices that surely have it: Apple's and some of Intel's have none."""


def accelerator() -> torch.device | None:
    """The device that models go to unless told otherwise: CUDA, ROCm, XPU, MPS, whichever torch
    finds; none where Accelerate is told so (ACCELERATE_USE_CPU=true)."""
    if parse_flag_from_env("ACCELERATE_USE_CPU"):
        return None
    return torch.accelerator.current_accelerator(check_available=True)


def fast_dtype(device: str) -> Dtype:
    """The number type that a kind of device computes LMs in the fastest: bfloat16 where it has
    instructions for it (of CPUs, AVX512-BF16 or AMX), else float32."""
    if device == "cpu":
        has = torch.cpu.get_capabilities()
        fast = has.get("avx512_bf16", False) or has.get("amx_bf16", False)
    else:
        fast = device != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if fast else "float32"


def precise(x: Tensor) -> Tensor:
    """In float64; on the CPU where its own device may have none."""
    return x.to(x.device if x.device.type in HAVE_FLOAT64 else "cpu", torch.float64)


def wait_for(device: torch.device) -> None:
    """Until a device has done all that it was given, so that a clock can be read."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
