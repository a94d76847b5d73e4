"""A learned discrete code: finite scalar quantisation, trained through.

Each channel is bounded by tanh and rounded to one of 2**bits values spread evenly over [-1, 1]
(Mentzer et al. 2023, arXiv 2309.15505; the symmetric form of arXiv 2411.19842, section 3.2). The
rounding passes gradients on as if it were not there. The scale is the code's own, so that a message
holds codes and nothing else.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor


def bounded(latents: Float[Tensor, "*n c"], bits: int) -> Float[Tensor, "*n c"]:
    """Latents as the values of their codes, in [-1, 1]; gradients are those of tanh."""
    smooth = latents.tanh()
    top = 2**bits - 1
    rounded = ((smooth + 1) * top / 2).round() * 2 / top - 1
    return smooth + (rounded - smooth).detach()


def nearest(values: Float[Tensor, "*n c"], bits: int) -> Int[Tensor, "*n c"]:
    """The code of each channel, 0 to 2**bits - 1, of values that `bounded` gave."""
    return ((values + 1) * (2**bits - 1) / 2).round().long()


def values(codes: Int[Tensor, "*n c"], bits: int) -> Float[Tensor, "*n c"]:
    """The values that codes stand for; the inverse of `nearest`."""
    return codes.float() * 2 / (2**bits - 1) - 1
