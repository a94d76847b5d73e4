"""Tensors that come from outside are checked where they come in: NaN in one of them would be an
empty answer, or an error far away."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def check_finite(tensors: Mapping[str, Tensor], error: type[Exception] = ValueError) -> None:
    """Raise `error`, naming the first tensor that has NaN or infinite values. A device is waited
    for once, however many tensors there are."""
    flags = [tensor.detach().isfinite().all() for tensor in tensors.values()]
    if flags and not torch.stack([flag.to(flags[0].device) for flag in flags]).all():
        wrong = next(name for name, flag in zip(tensors, flags, strict=True) if not flag)
        raise error(f"{wrong} has NaN or infinite values; expected finite numbers")
