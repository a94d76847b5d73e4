"""Keys and values as packed codes of 16, 8, 6 or 4 bits.

16 bits are half floats. Fewer are whole numbers from 0: a step for each group of up to GROUP slots
of one channel, and the lowest value of the group, are stored too, as half floats. Groups lie along
the slots because a few channels are far larger than the rest (KIVI, Liu et al. 2024, arXiv
2402.02750, which groups values along the channels; here that doubles their error). Keys stay
rotated: un-rotating them first makes the error larger (docs/LOG.md has both measurements).

    codes = pack(keys, values, bits=4)                     # docs/wire-format.md has the layout
    keys, values = unpack(codes, tuple(keys.shape), bits=4)
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

BITS = (16, 8, 6, 4)
"""Bits of one code, which name the codecs."""
GROUP = 64
"""Most slots that share a lowest value and a step."""
LARGEST = 65504.0
"""Of all half floats. Past it a value would become infinite and poison every answer."""

Shape = tuple[int, int, int, int]
"""Of keys and of values: layers, heads, slots, width."""


def packed_size(shape: Shape, bits: int) -> int:
    """Bytes of keys and values of this shape each."""
    layers, heads, slots, width = shape
    rows = 2 * layers * heads * width
    scales = 0 if bits == 16 else 4 * rows * math.ceil(slots / GROUP)
    return scales + math.ceil(rows * slots * bits / 8)


def pack(keys: Float[Tensor, "l h m e"], values: Float[Tensor, "l h m e"], bits: int) -> bytes:
    """Keys, then values, in packed_size bytes; what no half float can hold becomes LARGEST."""
    both = torch.stack([keys, values]).detach().cpu().float().clamp(-LARGEST, LARGEST)
    rows = both.transpose(3, 4).contiguous().numpy()
    if bits == 16:
        return rows.astype("<f2").tobytes()
    slots, top = rows.shape[-1], 2**bits - 1
    first = np.arange(0, slots, GROUP)
    lowest = np.minimum.reduceat(rows, first, -1).astype("<f2")
    highest = np.maximum.reduceat(rows, first, -1)
    step = ((highest - lowest) / top).astype("<f2")
    group = np.arange(slots) // GROUP
    # A group of equal values has a step of 0, and only its lowest value.
    codes = (rows - lowest[..., group]) / np.where(step > 0, step, 1)[..., group]
    codes = np.rint(codes).clip(0, top).astype(np.uint8)
    spread = np.unpackbits(codes[..., None], axis=-1, count=bits, bitorder="little")
    return lowest.tobytes() + step.tobytes() + np.packbits(spread, bitorder="little").tobytes()


def unpack(
    codes: bytes | memoryview, shape: Shape, bits: int
) -> tuple[Float[Tensor, "l h m e"], Float[Tensor, "l h m e"]]:
    """The inverse, in float32, of packed_size bytes. Codes that were altered may give values that
    are not finite."""
    layers, heads, slots, width = shape
    rows = (2, layers, heads, width)
    if bits == 16:
        both = np.frombuffer(codes, "<f2").astype(np.float32).reshape(*rows, slots)
    else:
        groups = math.ceil(slots / GROUP)
        count = math.prod(rows) * groups
        scales = np.frombuffer(codes, "<f2", 2 * count).astype(np.float32)
        lowest, step = scales.reshape(2, *rows, groups)
        spread = np.unpackbits(
            np.frombuffer(codes, np.uint8, offset=4 * count),
            count=math.prod(rows) * slots * bits,
            bitorder="little",
        )
        numbers = np.packbits(spread.reshape(-1, bits), axis=-1, bitorder="little")
        group = np.arange(slots) // GROUP
        with np.errstate(invalid="ignore"):
            both = numbers.reshape(*rows, slots) * step[..., group] + lowest[..., group]
    keys, values = torch.from_numpy(both).transpose(3, 4).contiguous()
    return keys, values
