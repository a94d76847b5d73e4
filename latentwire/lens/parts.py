"""The parts of decoder and encoder: a projection that begins as the identity, and an LM with a LoRA
or of their own.

Both parts name their trainable tensors the same way (`project.weight`, `before`, `lora.…`,
`base.…`), so that one list drives the optimizer, the learning rates, the file and the load.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from latentwire.lm import FrozenLM
from latentwire.lm.adapters import adapted, anonymous
from latentwire.lm.turns import turn


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


def own_copy(lm: FrozenLM) -> FrozenLM:
    """A copy of the LM whose weights a part trains, in float32 or finer."""
    with adapted(lm.model, None):  # else hooks of another thread's pass would be copied too
        model = deepcopy(lm.model)
    model = model.to(torch.promote_types(lm.dtype, torch.float32))
    copy = FrozenLM(model, lm.tokenizer, lm.name)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" not in name)
    return copy


def trainable(part: nn.Module, lm: FrozenLM) -> dict[str, Tensor]:
    """The tensors of a part that training changes: its parameters, its adapter's and those of a
    copy of its own. Names do not depend on what else was put on the model."""
    tensors = {n: p for n, p in part.named_parameters() if p.requires_grad}
    tensors |= {f"lora.{n}": p for n, p in anonymous(lm).items()}
    with turn(lm.model):
        every = list(lm.model.named_parameters())
    weights = {n: p for n, p in every if p.requires_grad and "lora_" not in n}
    return tensors | {f"base.{n.replace('.base_layer.', '.')}": p for n, p in weights.items()}
