"""States of an LM that learns to encode: lm_states with a LoRA on the source while it encodes."""

from __future__ import annotations

from latentwire.lm import FrozenLM
from latentwire.lm.adapters import as_module, fresh_lora
from latentwire.wire.learned.encoders.base import EncoderConfig
from latentwire.wire.learned.encoders.lm_states import LMStates

RANK = 8
"""Of the LoRA (Hu et al. 2021, arXiv 2106.09685)."""


class LoraStates(LMStates):
    """At first what LMStates is, since a LoRA begins at zero.

    The adapter is on the attention of every block and on while windows are read, never while the
    same LM reads latents. Its tensors are in the LM and, the same objects, in `lora`.
    """

    def __init__(self, lm: FrozenLM, config: EncoderConfig):
        super().__init__(lm, config)
        self.reading = fresh_lora(lm, RANK, len(lm.blocks), attention_only=True)
        self.lora = as_module(self.reading)
