"""Codes of a few bits as one stream of bits, as messages of codes carry them."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor


def pack(codes: Int[Tensor, "m c"], bits: int) -> bytes:
    """Codes as one stream of bits, the lowest bit of each first: ceil(m * c * bits / 8) bytes."""
    numbers = codes.cpu().numpy().astype(np.uint8)[..., None]
    spread = np.unpackbits(numbers, axis=-1, count=bits, bitorder="little")
    return np.packbits(spread, bitorder="little").tobytes()


def unpack(data: bytes | memoryview, latents: int, channels: int, bits: int) -> Int[Tensor, "m c"]:
    """The inverse."""
    spread = np.unpackbits(
        np.frombuffer(data, np.uint8), count=latents * channels * bits, bitorder="little"
    )
    numbers = np.packbits(spread.reshape(-1, bits), axis=-1, bitorder="little")
    return torch.from_numpy(numbers.reshape(latents, channels).astype(np.int64))
