"""Text to vector: the LM reads an explanation, and a linear map of its state at the read layer is
the activation.

Nothing above the read layer is run. Explanations may be token ids or embeddings, such as those of
a straight-through generation, through which gradients flow back to the decoder. An encoder may also
be told which token the activation stands on and where: then not all that it rebuilds is in the
words, and controls must be told the same.

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

from latentwire.lens.activations import Tokens
from latentwire.lens.checks import LensError, check_layer
from latentwire.lens.parts import Projection, trainable
from latentwire.lm import FrozenLM, Prompt
from latentwire.lm.adapters import fresh_lora
from latentwire.positions import sinusoids
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
    position: bool = False
    """Tell it the position of the activation's token."""
    token: bool = False
    """Tell it the activation's token, which then stands between soft tokens and text."""

    RETIRED: ClassVar = {"after": 0, "project": True}
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
        self.position = nn.Linear(lm.width, lm.width, bias=False) if config.position else None
        if self.position is not None:
            nn.init.zeros_(self.position.weight)  # step 0 is the encoder without it
        self.to(lm.device)
        self.lm = fresh_lora(lm, config.lora, layer + 1) if config.lora else lm.with_adapter(None)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that training changes, by name."""
        return trainable(self, self.lm)

    def forward(
        self, texts: Sequence[Tensor], tokens: Tokens | None = None
    ) -> Float[Tensor, "b d"]:
        """Activations of explanations, each token ids [n] or embeddings [n, d]; n may be 0.

        tokens: of the activations, which an encoder with `position` or `token` needs and another
        one leaves unread.
        """
        before = self._before(len(texts), tokens)
        rows = [[*own, text] for own, text in zip(before, texts, strict=True)]
        prompt = Prompt.of(self.lm, rows)
        state = self.lm.hidden(prompt, self.layer)[:, -1]
        state = state.to(torch.promote_types(state.dtype, torch.float32))
        return self.project(state)[0]

    def _before(self, rows: int, tokens: Tokens | None) -> list[list[Tensor]]:
        """The soft tokens, and the token where it is told, before each text."""
        before: list[list[Tensor]] = [[self.before] for _ in range(rows)]
        if self.position is None and not self.config.token:
            return before
        if tokens is None:
            raise LensError(
                "this encoder is told each activation's token and position beside the words; give "
                "them as Activations.tokens has them"
            )
        places, ids = torch.tensor(tokens, device=self.lm.device).T
        if self.position is not None:
            moved = self.before[-1] + self.position(sinusoids(places, self.lm.width))
            before = [[self.before[:-1], last] for last in moved[:, None]]
        if self.config.token:
            before = [[*own, token] for own, token in zip(before, ids[:, None], strict=True)]
        return before
