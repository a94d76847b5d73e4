"""Latents as input embeddings, which the reader runs over itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from latentwire.lm import FrozenLM, KVPrefix, Prompt
from latentwire.lm.prompt import Span
from latentwire.ridge import Ridge
from latentwire.wire.ways_in.base import Slots, WayIn


class Embeddings(WayIn):
    """A linear map from the code, and a learned residual from the state.

    The map begins as the regression of the mean of the reader's own embeddings over a latent's
    share of the text, and the residual as zero, in units of each channel's deviation. So step 0 is
    as near to a blurred text as the code allows.
    """

    deviation: Tensor

    def __init__(self, lm: FrozenLM, channels: int, width: int, first: bool):
        super().__init__(lm, channels, width, first)
        if not first:
            raise ValueError("embeddings are run over by the reader; they must be the first way in")
        self.start = nn.Linear(channels, lm.width)
        self.residual = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, lm.width),
        )
        for parameter in self.residual[-1].parameters():
            nn.init.zeros_(parameter)
        self.register_buffer("deviation", torch.ones(lm.width))

    def forward(
        self, lm: FrozenLM, head: KVPrefix, slots: Slots, before: KVPrefix | None
    ) -> KVPrefix:
        embeds = self.embeds(slots)
        counts, spans = slots.mask.sum(1).tolist(), slots.spans.tolist()
        rows = [[Span(row[-n:], span)] for row, n, span in zip(embeds, counts, spans, strict=True)]
        start = head.rows(torch.zeros(len(rows), dtype=torch.long, device=embeds.device))
        made = lm.prefill(Prompt.of(lm, rows, start))
        # A row goes on after its span, which may end behind the last slot's centre.
        end = int(head.next_position[0]) + slots.spans
        return KVPrefix(made.keys, made.values, made.mask, made.positions, end)

    def embeds(self, slots: Slots) -> Float[Tensor, "b m d"]:
        """What the reader runs over."""
        return self.start(slots.values) + self.deviation * self.residual(slots.states)

    @torch.no_grad()
    def calibrate(
        self,
        lm: FrozenLM,
        texts: Sequence[str],
        values: Sequence[Float[Tensor, "_ c"]],
        units: Sequence[float],
    ) -> None:
        fit = Ridge(1, self.start.in_features, self.start.out_features)
        every = []
        for text, row, length in zip(texts, values, units, strict=True):
            embeds = lm.embed(lm.ids(text)).float()
            means, full = share_means(embeds, len(row), length)
            fit.add(row[full][None], means[None])
            every.append(embeds)
        weight, bias = fit.solve(penalty=1e-6)
        self.start.weight.copy_(weight[0].T)
        self.start.bias.copy_(bias[0])
        self.deviation.copy_(torch.cat(every).std(0))


def share_means(
    embeds: Float[Tensor, "n d"], latents: int, length: float
) -> tuple[Float[Tensor, "k d"], Bool[Tensor, " m"]]:
    """Mean of a text's embeddings over each latent's share of it, and which of the latents have a
    token in theirs. length: as many latents as the text is long, the last one counted in part."""
    place = (torch.arange(len(embeds), device=embeds.device) + 0.5) * length / len(embeds)
    share = torch.nn.functional.one_hot(place.long(), latents).float()
    full = share.sum(0) > 0
    return (share.T @ embeds)[full] / share.sum(0)[full, None], full
