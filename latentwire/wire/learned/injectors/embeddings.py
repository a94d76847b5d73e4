"""Latents as input embeddings, which the reader runs over itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from latentwire.lm import FrozenLM, KVPrefix, Prompt
from latentwire.lm.prompt import Span
from latentwire.ridge import Ridge
from latentwire.wire.learned.injectors.base import Calibration, Injector, LatentBatch


class Embeddings(Injector):
    """A linear map from the code, and a learned residual from the state.

    The residual begins as zero, in units of each channel's deviation among the reader's own
    embeddings of training texts. The map begins as calibration says:

    regression  of the mean of those embeddings over a latent's share of the text, so that step 0 is
                as near to a blurred text as the code allows
    none        at its own scale, nothing measured, the residual's unit being 1
    rms         scaled, so that the root mean square is that of those embeddings
    channel     scaled and shifted, so that each channel has their mean and deviation
    batch       as channel; and what comes out, residual included, is normalised to their mean and
                deviation at every step, over the batch in training (Ioffe and Szegedy 2015, arXiv
                1502.03167) and by the running averages of training afterwards
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, lm: FrozenLM, channels: int, width: int, calibration: Calibration):
        super().__init__(lm, channels, width, calibration)
        self.calibration = calibration
        self.start = nn.Linear(channels, lm.width)
        self.residual = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, lm.width),
        )
        for parameter in self.residual[-1].parameters():
            nn.init.zeros_(parameter)
        batch = calibration == "batch"
        self.norm = nn.BatchNorm1d(lm.width, affine=False) if batch else None
        self.register_buffer("mean", torch.zeros(lm.width), persistent=batch)
        self.register_buffer("deviation", torch.ones(lm.width))

    def embeds(self, slots: LatentBatch) -> Float[Tensor, "b m d"]:
        """The slots as input embeddings of the reader, in float32."""
        made = self.start(slots.values) + self.deviation * self.residual(slots.states)
        if self.norm is None:
            return made
        real = ((made - self.mean) / self.deviation)[slots.mask]
        if len(real) > 1:
            real = self.norm(real)
        else:  # one slot has no deviation of its own
            real = batch_norm(real, self.norm.running_mean, self.norm.running_var)
        normal = torch.zeros_like(made)
        normal[slots.mask] = real
        return self.mean + self.deviation * normal

    def forward(self, lm: FrozenLM, head: KVPrefix, slots: LatentBatch) -> KVPrefix:
        embeds = self.embeds(slots)
        counts, spans = slots.mask.sum(1).tolist(), slots.spans.tolist()
        rows = [[Span(row[-n:], span)] for row, n, span in zip(embeds, counts, spans, strict=True)]
        start = head.repeat(len(rows))
        made = lm.prefill(Prompt.of(lm, rows, start))
        # A row goes on after its span, which may end behind the last slot's centre.
        end = int(head.next_position[0]) + slots.spans
        return KVPrefix(made.keys, made.values, made.mask, made.positions, end)

    @torch.no_grad()
    def calibrate(
        self,
        lm: FrozenLM,
        texts: Sequence[str],
        values: Sequence[Float[Tensor, "_ c"]],
        units: Sequence[float],
    ) -> None:
        if self.calibration == "none":
            return
        own = [lm.embed(lm.tokenize(text)).float() for text in texts]
        every = torch.cat(own)
        self.mean.copy_(every.mean(0))
        self.deviation.copy_(every.std(0))
        if self.calibration == "regression":
            self._regress(own, values, units)
            return
        made = self.start(torch.cat(list(values)).to(lm.device))
        if self.calibration == "rms":
            gain = every.square().mean().sqrt() / made.square().mean().sqrt()
            self.start.bias.mul_(gain)
            self.start.weight.mul_(gain)
        else:
            gain = self.deviation / made.std(0)
            self.start.bias.copy_((self.start.bias - made.mean(0)) * gain + self.mean)
            self.start.weight.mul_(gain[:, None])

    def _regress(
        self,
        own: Sequence[Float[Tensor, "_ d"]],
        values: Sequence[Float[Tensor, "_ c"]],
        units: Sequence[float],
    ) -> None:
        fit = Ridge(1, self.start.in_features, self.start.out_features)
        for embeds, row, length in zip(own, values, units, strict=True):
            means, full = share_means(embeds, len(row), length)
            fit.add(row[full][None], means[None])
        weight, bias = fit.solve(penalty=1e-6)
        self.start.weight.copy_(weight[0].T)
        self.start.bias.copy_(bias[0])


def share_means(
    embeds: Float[Tensor, "n d"], latents: int, length: float
) -> tuple[Float[Tensor, "k d"], Bool[Tensor, " m"]]:
    """Mean of a text's embeddings over each latent's share of it, and which of the latents have a
    token in theirs. length: as many latents as the text is long, the last one counted in part."""
    place = (torch.arange(len(embeds), device=embeds.device) + 0.5) * length / len(embeds)
    share = torch.nn.functional.one_hot(place.long(), latents).float()
    full = share.sum(0) > 0
    return (share.T @ embeds)[full] / share.sum(0)[full, None], full
