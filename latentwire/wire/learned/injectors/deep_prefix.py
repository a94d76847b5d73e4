"""Keys and values of every layer, generated from the latents: a prefix (Li and Liang 2021, arXiv
2101.00190) that depends on the text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from latentwire.lm import FrozenLM, KVPrefix, Prompt
from latentwire.lm.families import rotate
from latentwire.wire.learned.injectors.base import Calibration, Injector, LatentBatch


class DeepPrefix(Injector):
    """A linear map from a slot's state to the keys (before rotation) and values of all layers, in
    units of each channel's own mean and deviation; slots begin near the reader's mean key and
    value."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, lm: FrozenLM, channels: int, width: int, calibration: Calibration):
        super().__init__(lm, channels, width, calibration)
        self.shape = (len(lm.blocks), 2, *lm.kv_shape)
        self.register_buffer("mean", torch.zeros(self.shape))
        self.register_buffer("deviation", torch.ones(self.shape))
        self.norm = nn.LayerNorm(width)
        self.map = nn.Linear(width, torch.Size(self.shape).numel(), bias=False)
        nn.init.normal_(self.map.weight, std=0.5 / width**0.5)

    def forward(self, lm: FrozenLM, head: KVPrefix, slots: LatentBatch) -> KVPrefix:
        b, m = slots.mask.shape
        made = self.map(self.norm(slots.states)).view(b, m, *self.shape) * self.deviation
        raw, values = (made + self.mean).to(lm.dtype).permute(3, 2, 0, 4, 1, 5)  # 2 l b h m e
        start = int(head.next_position[0])
        positions = start + slots.positions
        keys = turned(lm, raw.unbind(), positions)
        end = start + slots.spans
        first = head.repeat(b)
        return KVPrefix(
            tuple(torch.cat([h, k], 2) for h, k in zip(first.keys, keys, strict=True)),
            tuple(torch.cat([h, v], 2) for h, v in zip(first.values, values, strict=True)),
            torch.cat([first.mask, slots.mask], 1),
            torch.cat([first.positions, positions * slots.mask], 1),
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
        """Mean and deviation of each channel of the reader's own keys (before rotation) and values,
        [l, 2, h, e]."""
        seen: list[Tensor] = []
        for text in texts:
            ids = torch.cat([lm.frame.prefix, lm.tokenize(text)])
            cache = lm.prefill(Prompt.from_ids(lm, [ids]))
            keys = turned(lm, cache.keys, cache.positions, back=True)
            both = torch.stack([torch.stack(keys), torch.stack(cache.values)], 1)[:, :, 0]
            seen.append(both[..., len(lm.frame.prefix) :, :].float())  # l 2 h n e
        every = torch.cat(seen, 3)
        self.mean.copy_(every.mean(3))
        self.deviation.copy_(every.std(3))


def turned(
    lm: FrozenLM, keys: Sequence[Tensor], positions: Int[Tensor, "b n"], back: bool = False
) -> list[Float[Tensor, "b h n e"]]:
    """Keys of all layers, each [b, h, n, e], rotated to positions, or back from there."""
    by = [positions[:, None].expand(k.shape[:3]) for k in keys]
    return [rotate(lm.model, i, k, p, back) for i, (k, p) in enumerate(zip(keys, by, strict=True))]
