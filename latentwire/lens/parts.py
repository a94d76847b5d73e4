"""The parts of decoder and encoder: a projection that begins as the identity, and a LoRA on the LM.

Both parts name their trainable tensors the same way (`project.weight`, `before`, `lora.…`), so that
one list drives the optimizer, the learning rates, the file and the load.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from latentwire.lm import FrozenLM
from latentwire.lm.adapters import anonymous


class Projection(nn.Module):
    """n linear maps of one width, each the identity at the start: [b, d] -> [n, b, d].

    gain [n]: what each map's input is multiplied by before, so that it enters at the scale of its
    place; 1 leaves the vector as it is.
    """

    gain: Tensor

    def __init__(self, width: int, gain: Float[Tensor, " n"]):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(width).repeat(len(gain), 1, 1))
        self.bias = nn.Parameter(torch.zeros(len(gain), width))
        self.register_buffer("gain", gain.float())

    def forward(self, vectors: Float[Tensor, "b d"]) -> Float[Tensor, "n b d"]:
        scaled = vectors * self.gain[:, None, None]
        return scaled @ self.weight.transpose(1, 2) + self.bias[:, None]


def trainable(part: nn.Module, lm: FrozenLM) -> dict[str, Tensor]:
    """The tensors of a part that training changes: its parameters and its adapter's. Names do not
    depend on what else was put on the model."""
    return {**dict(part.named_parameters()), **{f"lora.{n}": p for n, p in anonymous(lm).items()}}
