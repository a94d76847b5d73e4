"""Cross-attention over the latents, between a frozen reader's blocks, behind gates that begin shut
(Flamingo, Alayrac et al. 2022, arXiv 2204.14198, without its gated feed-forward)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from latentwire.lm import FrozenLM, KVPrefix, Memory, Prompt
from latentwire.wire.learned.injectors.base import Calibration, Injector, LatentBatch


class GatedAttention(nn.Module):
    """x + tanh(gate) * attention of x over a memory, in the wire's width and heads of 64; what is
    added is in units of each channel's deviation. The gate is 0 at first."""

    deviation: Tensor

    def __init__(self, reader_width: int, width: int):
        super().__init__()
        self.heads = max(1, width // 64)
        self.norm = nn.LayerNorm(reader_width)
        self.query = nn.Linear(reader_width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, reader_width, bias=False)
        self.gate = nn.Parameter(torch.zeros(1))
        self.register_buffer("deviation", torch.ones(reader_width))

    def remembered(
        self, states: Float[Tensor, "b m w"]
    ) -> tuple[Float[Tensor, "b h m e"], Float[Tensor, "b h m e"]]:
        """Keys and values of a memory, made once for all tokens that will attend to it."""
        return self._in_heads(self.key(states)), self._in_heads(self.value(states))

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        keys: Float[Tensor, "b h m e"],
        values: Float[Tensor, "b h m e"],
        mask: Bool[Tensor, "b m"],
    ) -> Float[Tensor, "b t d"]:
        queries = self._in_heads(self.query(self.norm(x.to(self.gate.dtype))))
        seen = scaled_dot_product_attention(queries, keys, values, mask[:, None, None])
        change = self.deviation * self.out(seen.transpose(1, 2).flatten(2))
        return x + (self.gate.tanh() * change).to(x.dtype)

    def _in_heads(self, states: Float[Tensor, "b n w"]) -> Float[Tensor, "b h n e"]:
        return states.unflatten(2, (self.heads, -1)).transpose(1, 2)


class CrossAttention(Injector):
    """Memories for a few blocks, each in the middle of its share of all blocks.

    The cache is the head, and the text is a gap in the positions behind it.
    """

    PLACES: ClassVar[int] = 4
    """Most blocks that have one."""

    def __init__(self, lm: FrozenLM, channels: int, width: int, calibration: Calibration):
        super().__init__(lm, channels, width, calibration)
        blocks = len(lm.blocks)
        places = min(self.PLACES, blocks)
        self.layers = [(2 * i + 1) * blocks // (2 * places) for i in range(places)]
        self.norm = nn.LayerNorm(width)
        self.places = nn.ModuleList(GatedAttention(lm.width, width) for _ in self.layers)

    def forward(self, lm: FrozenLM, head: KVPrefix, slots: LatentBatch) -> KVPrefix:
        gap = replace(head.repeat(len(slots.mask)), next_position=head.next_position + slots.spans)
        states = self.norm(slots.states)
        memories = tuple(
            Memory(layer, place, *place.remembered(states), slots.mask)
            for layer, place in zip(self.layers, self._attentions, strict=True)
        )
        return replace(gap, memories=memories)

    @torch.no_grad()
    def calibrate(
        self,
        lm: FrozenLM,
        texts: Sequence[str],
        values: Sequence[Float[Tensor, "_ c"]],
        units: Sequence[float],
    ) -> None:
        head = lm.frame.prefix
        prompts = [Prompt.from_ids(lm, [torch.cat([head, lm.tokenize(text)])]) for text in texts]
        for layer, place in zip(self.layers, self._attentions, strict=True):
            outputs = [lm.hidden(prompt, layer)[0, len(head) :].float() for prompt in prompts]
            place.deviation.copy_(torch.cat(outputs).std(0))

    @property
    def _attentions(self) -> list[GatedAttention]:
        return cast(list[GatedAttention], list(self.places))
