"""Keys and values as packed codes of 16, 8, 6 or 4 bits.

16 bits are half floats. Fewer are whole numbers from 0: a step for each group of up to GROUP slots
of one channel of one head, and the lowest value of the group, are stored too, as half floats.
Groups lie along the slots because a few channels are far larger than the rest (KIVI, Liu et al.
2024, arXiv 2402.02750, which groups values along the channels; here that doubles their error). Keys
stay rotated: un-rotating them first makes the error larger (docs/decisions.md has both figures).

    codes = pack(keys, values, lengths, bits=4)            # docs/wire-format.md has the layout
    keys, values = unpack(codes, lengths, keys.shape[1], bits=4)
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from latentwire.wire.packing import pack_bits, unpack_bits

BITS = (16, 8, 6, 4)
"""Bits of one code, which name the codecs."""
GROUP = 64
"""Most slots that share a lowest value and a step."""
LARGEST = 65504.0
"""The largest of all half floats. Past it a value would become infinite and poison every answer."""


def packed_size(lengths: np.ndarray, width: int, bits: int) -> int:
    """Bytes of keys and values of this width, of heads of so many slots each."""
    slots, groups = int(lengths.sum(dtype=np.uint64)), int((-(-lengths.astype(int) // GROUP)).sum())
    scales = 0 if bits == 16 else 8 * groups * width
    return scales + math.ceil(2 * slots * width * bits / 8)


def pack(
    keys: Float[Tensor, "n e"], values: Float[Tensor, "n e"], lengths: np.ndarray, bits: int
) -> bytes:
    """Keys, then values, in packed_size bytes; what no half float can hold becomes LARGEST."""
    both = torch.stack([keys, values]).detach().cpu().float().clamp(-LARGEST, LARGEST).numpy()
    if bits == 16:
        return both.astype("<f2").tobytes()
    first, group = _groups(lengths)
    top = 2**bits - 1
    lowest = np.minimum.reduceat(both, first, 1).astype("<f2")
    highest = np.maximum.reduceat(both, first, 1)
    step = ((highest - lowest) / top).astype("<f2")
    # A group of equal values has a step of 0, and only its lowest value.
    codes = (both - lowest[:, group]) / np.where(step > 0, step, 1)[:, group]
    codes = np.rint(codes).clip(0, top).astype(np.uint8)
    return lowest.tobytes() + step.tobytes() + pack_bits(codes, bits)


def unpack(
    codes: bytes | memoryview, lengths: np.ndarray, width: int, bits: int
) -> tuple[Float[Tensor, "n e"], Float[Tensor, "n e"]]:
    """The inverse, in float32, of packed_size bytes. Codes that were altered may give values that
    are not finite."""
    shape = (2, int(lengths.sum()), width)
    if bits == 16:
        both = np.frombuffer(codes, "<f2").astype(np.float32).reshape(shape)
    else:
        first, group = _groups(lengths)
        count = 2 * len(first) * width
        scales = np.frombuffer(codes, "<f2", 2 * count).astype(np.float32)
        lowest, step = scales.reshape(2, 2, len(first), width)
        numbers = unpack_bits(memoryview(codes)[4 * count :], math.prod(shape), bits)
        with np.errstate(invalid="ignore"):
            both = numbers.reshape(shape) * step[:, group] + lowest[:, group]
    keys, values = torch.from_numpy(both)
    return keys, values


def _groups(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first slot of each group, and the group of each slot."""
    place = np.concatenate([np.arange(n) for n in lengths.flatten()])
    begins = place % GROUP == 0
    return np.flatnonzero(begins), begins.cumsum() - 1
