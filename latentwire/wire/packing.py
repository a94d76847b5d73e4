"""Codes of a few bits as one stream of bits, as messages carry them."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor


def pack(codes: Int[Tensor, "m c"], bits: int) -> bytes:
    """Codes as one stream of bits, the lowest bit of each first: ceil(m * c * bits / 8) bytes."""
    return pack_bits(codes.cpu().numpy().astype(np.uint8), bits)


def unpack(data: bytes | memoryview, latents: int, channels: int, bits: int) -> Int[Tensor, "m c"]:
    """The inverse."""
    numbers = unpack_bits(data, latents * channels, bits).reshape(latents, channels)
    return torch.from_numpy(numbers.astype(np.int64))


def pack_bits(numbers: np.ndarray, bits: int) -> bytes:
    """Whole numbers in uint8, of any shape, as `pack` does."""
    spread = np.unpackbits(numbers[..., None], axis=-1, count=bits, bitorder="little")
    return np.packbits(spread, bitorder="little").tobytes()


def unpack_bits(data: bytes | memoryview, count: int, bits: int) -> np.ndarray:
    """So many numbers, one after another, in uint8."""
    spread = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits, bitorder="little")
    return np.packbits(spread.reshape(-1, bits), axis=-1, bitorder="little")
