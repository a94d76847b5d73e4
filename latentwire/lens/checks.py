"""Refuses what a lens cannot use: one-line errors that say what was expected."""

from __future__ import annotations

import torch
from torch import Tensor

from latentwire.lm import FrozenLM
from latentwire.reading import InputError


class LensError(InputError):
    """A lens or its input cannot be used. One line: what, expected, got, what to do."""


def checked(vectors: Tensor, lm: FrozenLM) -> Tensor:
    """Activations [b, d] in float32 on the model's device; raises LensError for another width or
    values that are not finite."""
    if vectors.dim() != 2 or vectors.shape[1] != lm.width:
        raise LensError(
            f"activations have shape {list(vectors.shape)}; expected [rows, {lm.width}], "
            f"the width of {lm.name}"
        )
    bad = ~torch.isfinite(vectors).all(1)
    if bad.any():
        raise LensError(f"activation {int(bad.nonzero()[0])} has NaN or infinite values")
    return vectors.to(lm.device, torch.promote_types(lm.dtype, torch.float32))


def check_places(layers: int, lm: FrozenLM) -> None:
    """Raises LensError for more places to patch than the model has blocks."""
    if layers > len(lm.blocks):
        raise LensError(f"layers is {layers}; {lm.name} has {len(lm.blocks)} (0 is input only)")


def check_layer(layer: int, lm: FrozenLM) -> None:
    """Raises LensError for a layer that the model does not have."""
    if not 0 <= layer < len(lm.blocks):
        raise LensError(f"layer {layer} of {lm.name}; expected 0..{len(lm.blocks) - 1}")
