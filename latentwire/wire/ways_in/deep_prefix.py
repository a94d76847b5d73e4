"""Keys and values of every layer, generated from the latents: a prefix (Li and Liang 2021, arXiv
2101.00190) that depends on the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from latentwire.lm import FrozenLM, KVPrefix, Prompt
from latentwire.lm.families import rotate
from latentwire.wire.ways_in.base import Slots, WayIn


class DeepPrefix(WayIn):
    """A linear map from a slot's state to the keys (before rotation) and values of all layers, in
    units of each channel's own mean and deviation.

    Alone, slots begin near the reader's mean key and value. After another way in they begin as what
    that one made, and the map, zero at first, moves them.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, lm: FrozenLM, channels: int, width: int, first: bool):
        super().__init__(lm, channels, width, first)
        self.shape = (len(lm.blocks), 2, *lm.kv_shape)
        self.first = first
        self.norm = nn.LayerNorm(width)
        self.map = nn.Linear(width, torch.Size(self.shape).numel(), bias=False)
        nn.init.normal_(self.map.weight, std=0.5 / width**0.5 if first else 0.0)
        self.register_buffer("mean", torch.zeros(self.shape))
        self.register_buffer("deviation", torch.ones(self.shape))

    def forward(
        self, lm: FrozenLM, head: KVPrefix, slots: Slots, before: KVPrefix | None
    ) -> KVPrefix:
        heads = self.shape[2]
        b, m = slots.mask.shape
        made = self.map(self.norm(slots.states)).view(b, m, *self.shape) * self.deviation
        if self.first:
            made = made + self.mean
        keys, values = made.permute(3, 2, 0, 4, 1, 5)  # 2 l b h m e
        start = int(head.next_position[0])
        positions = start + slots.positions
        turned = positions[:, None].expand(b, heads, m)
        keys = [rotate(lm.model, i, k, turned) for i, k in enumerate(keys.to(lm.dtype))]
        values = values.to(lm.dtype)
        end = start + slots.spans
        if before is None:
            rows = torch.zeros(b, dtype=torch.long, device=end.device)
            first = head.rows(rows)
            return KVPrefix(
                tuple(torch.cat([h, k], 2) for h, k in zip(first.keys, keys, strict=True)),
                tuple(torch.cat([h, v], 2) for h, v in zip(first.values, values, strict=True)),
                torch.cat([first.mask, slots.mask], 1),
                torch.cat([first.positions, positions * slots.mask], 1),
                end,
            )
        return KVPrefix(
            _moved(before.keys, keys),
            _moved(before.values, values),
            before.mask,
            before.positions,
            end,
        )

    @torch.no_grad()
    def calibrate(
        self,
        lm: FrozenLM,
        texts: Sequence[str],
        values: Sequence[Float[Tensor, "_ c"]],
        units: Sequence[float],
    ) -> None:
        seen: list[Tensor] = []
        for text in texts:
            ids = torch.cat([lm.frame.head, lm.ids(text)])
            cache = lm.prefill(Prompt.from_ids(lm, [ids]))
            back = -cache.positions[:, None].expand(1, self.shape[2], len(cache))
            keys = [rotate(lm.model, i, k, back) for i, k in enumerate(cache.keys)]
            both = torch.stack([torch.stack(keys), torch.stack(cache.values)], 1)[:, :, 0]
            seen.append(both[..., len(lm.frame.head) :, :].float())  # l 2 h n e
        every = torch.cat(seen, 3)
        self.mean.copy_(every.mean(3))
        self.deviation.copy_(every.std(3))


def _moved(
    before: tuple[Tensor, ...], by: Sequence[Float[Tensor, "b h m e"]] | Tensor
) -> tuple[Tensor, ...]:
    """The last m slots of each layer, moved."""
    return tuple(
        torch.cat([x[:, :, : -d.shape[2]], x[:, :, -d.shape[2] :] + d], 2)
        for x, d in zip(before, cast(Sequence[Tensor], by), strict=True)
    )
