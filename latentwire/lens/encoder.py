"""Text to vector: the LM reads an explanation, and a linear map of its state at the read layer is
the activation.

Nothing above the read layer is run. Explanations may be token ids or embeddings, such as those of
a straight-through generation, through which gradients flow back to the decoder.

    encoder = Encoder(lm, 15, EncoderConfig())
    encoder([lm.tokenize("a river in France")])           # [1, d]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from latentwire.lens.checks import LensError, check_layer
from latentwire.lens.parts import Projection, trainable
from latentwire.lm import FrozenLM, Prompt
from latentwire.lm.adapters import fresh_lora
from latentwire.texts import check_least

INSTRUCTION = "Read this text and keep in mind what it says:\n"


@dataclass(frozen=True)
class EncoderConfig:
    """The parts of an encoder; saved beside its weights."""

    before: int = 8
    """Trained soft tokens in front of the text; at least 1, since a first token's state is unlike
    all others."""
    lora: int = 0
    """Rank of a LoRA on the LM; 0 for none."""

    RETIRED: ClassVar = {"after": 0, "project": True, "position": False, "token": False}
    """Fields of earlier releases, and the only values that are still read."""

    def __post_init__(self) -> None:
        check_least(self, LensError, before=1, lora=0)


class Encoder(nn.Module):
    """An LM, cut after block `layer`, that turns explanations into activations."""

    def __init__(self, lm: FrozenLM, layer: int, config: EncoderConfig):
        super().__init__()
        check_layer(layer, lm)
        self.layer, self.config = layer, config
        ids = lm.tokenize(INSTRUCTION)
        count = config.before
        soft = lm.embed(ids.repeat(math.ceil(count / len(ids)))[:count]).detach().float().clone()
        self.before = nn.Parameter(soft)
        self.project = Projection(lm.width, torch.ones(1))
        self.to(lm.device)
        self.lm = fresh_lora(lm, config.lora, layer + 1) if config.lora else lm.with_adapter(None)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that training changes, by name."""
        return trainable(self, self.lm)

    def forward(self, texts: Sequence[Tensor]) -> Float[Tensor, "b d"]:
        """Activations of explanations, each token ids [n] or embeddings [n, d]; n may be 0."""
        prompt = Prompt.of(self.lm, [[self.before, text] for text in texts])
        state = self.lm.hidden(prompt, self.layer)[:, -1]
        state = state.to(torch.promote_types(state.dtype, torch.float32))
        return self.project(state)[0]
