"""Text to vector: the LM reads an explanation and its state at the read layer is the activation.

Nothing above the read layer is run. Explanations may be token ids or embeddings, such as those of
a straight-through generation, through which gradients flow back to the decoder.

    encoder = Encoder(lm, 15, EncoderConfig())
    encoder([lm.ids("a river in France")])           # [1, d]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from latentwire.lens.checks import LensError, check_layer
from latentwire.lens.parts import Projection, trainable, with_lora
from latentwire.lm import FrozenLM, Prompt

INSTRUCTION = "Read this text and keep in mind what it says:\n"


@dataclass(frozen=True)
class EncoderConfig:
    """What an encoder is; saved beside its weights."""

    before: int = 8
    """Trained soft tokens in front of the text; at least 1, since a first token's state is unlike
    all others."""
    after: int = 0
    """Trained soft tokens behind the text; with 0 the state of its last token is read."""
    project: bool = True
    """Whether a linear map, the identity at the start, follows."""
    lora: int = 0
    """Rank of a LoRA on the LM; 0 for none."""

    def __post_init__(self) -> None:
        for name, least in (("before", 1), ("after", 0), ("lora", 0)):
            if getattr(self, name) < least:
                raise LensError(f"{name} is {getattr(self, name)}; expected at least {least}")


class Encoder(nn.Module):
    """An LM, cut after block `layer`, that turns explanations into activations."""

    def __init__(self, lm: FrozenLM, layer: int, config: EncoderConfig):
        super().__init__()
        check_layer(layer, lm)
        self.layer, self.config = layer, config
        ids = lm.ids(INSTRUCTION)
        count = config.before + config.after
        soft = lm.embed(ids.repeat(math.ceil(count / len(ids)))[:count]).detach().float().clone()
        self.before = nn.Parameter(soft[: config.before])
        self.after = nn.Parameter(soft[config.before :]) if config.after else None
        self.project = Projection(lm.width, torch.ones(1)) if config.project else None
        self.to(lm.device)
        self.lm = with_lora(lm, config.lora, layer + 1)

    def tensors(self) -> dict[str, Tensor]:
        """What training changes, by name."""
        return trainable(self, self.lm)

    def forward(self, texts: Sequence[Tensor]) -> Float[Tensor, "b d"]:
        """Activations of explanations, each token ids [n] or embeddings [n, d]; n may be 0."""
        after = [] if self.after is None else [self.after]
        prompt = Prompt.of(self.lm, [[self.before, text, *after] for text in texts])
        state = self.lm.hidden(prompt, self.layer)[:, -1]
        state = state.to(torch.promote_types(state.dtype, torch.float32))
        return state if self.project is None else self.project(state)[0]
