"""A latent code and its decoders in closed form: two ridge regressions and one eigenproblem.

The code is the reduced-rank regression of all readers' keys and values on the source's states
(Izenman 1975): of all linear maps to `channels` numbers, the one whose best linear decoders lose
least. Loss is weighted by what answers are sensitive to: the error of a head's keys, and of its
values, counts by the mean outer product of the gradients that answers give it (its empirical Fisher
information), since the size of an error says little of what it does.

Shapes: n tokens, f features of the source, y numbers of a reader's cache, c channels, e of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentwire.lm import FrozenLM, KVPrefix
from latentwire.lm.families import rotate
from latentwire.tasks.qa import Passage, answer_targets, passages_prompt
from latentwire.wire.codes.code import Code
from latentwire.wire.codes.reader import CodeReader

PENALTY = 1e-3
"""Ridge penalty per token, in units of a normed feature."""
FLOOR = 0.02
"""Sensitivity that every number of a head has, in units of the head's mean sensitivity."""


class Sums:
    """Running sums of one regression of a reader's cache on the source's features."""

    def __init__(self, features: int, outputs: int):
        self.gram = torch.zeros(features + 1, features + 1)
        self.moment = torch.zeros(features + 1, outputs)
        self.squares = torch.zeros(outputs, dtype=torch.float64)

    def add(self, features: Float[Tensor, "n f"], cache: Float[Tensor, "n y"]) -> None:
        """More tokens."""
        given = torch.cat([features.float(), torch.ones(len(features), 1)], 1)
        self.gram.addmm_(given.T, given)
        self.moment.addmm_(given.T, cache.float())
        self.squares += cache.double().square().sum(0)

    @property
    def rows(self) -> float:
        return self.gram[-1, -1].item()

    @property
    def mean(self) -> Float[Tensor, " y"]:
        return self.moment[-1] / self.rows

    @property
    def deviation(self) -> Float[Tensor, " y"]:
        squares = (self.squares / self.rows).float() - self.mean.square()
        return squares.clamp_min(1e-8).sqrt()

    def solve(self) -> Float[Tensor, "f1 y"]:
        """Weights of the features, and of the constant in the last row."""
        return _solve(self.gram, self.moment, self.rows)

    def projected(self, weight: Float[Tensor, "f c"], bias: Float[Tensor, " c"]) -> Tensor:
        """Weights [c + 1, y] of channels features @ weight + bias, and of the constant."""
        onto = torch.zeros(len(self.gram), weight.shape[1] + 1)
        onto[:-1, :-1], onto[-1, :-1], onto[-1, -1] = weight, bias, 1.0
        return _solve(onto.T @ self.gram @ onto, onto.T @ self.moment, self.rows)


def _solve(gram: Tensor, moment: Tensor, rows: float) -> Tensor:
    ridge = torch.full((len(gram),), PENALTY * rows, dtype=torch.float64)
    ridge[-1] = 0.0  # the constant is free
    return torch.linalg.solve(gram.double() + ridge.diag(), moment.double()).float()


def reader_cache(lm: FrozenLM, prefix: KVPrefix, start: int) -> Float[Tensor, "n y"]:
    """One text's keys, before rotation, and values, from slot `start` of a cache of one row: the
    numbers that a decoder gives."""
    pieces = []
    for layer, (keys, values) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
        keys, values = keys[:, :, start:].float(), values[:, :, start:].float()
        positions = prefix.positions[:, None, start:].expand(-1, keys.shape[1], -1)
        keys = rotate(lm.model, layer, keys, positions, back=True)
        pieces += [x[0].transpose(0, 1).flatten(1) for x in (keys, values)]
    return torch.cat(pieces, 1)


class Sensitivity:
    """Mean outer products of the gradients that answers give to each head's keys and values."""

    def __init__(self, lm: FrozenLM):
        (heads, width), self.rows = lm.kv_shape, 0
        self.sums = torch.zeros(len(lm.blocks), 2, heads, width, width)

    def add(
        self, lm: FrozenLM, format_tokens: Tensor, passage: Passage, prefix: KVPrefix, start: int
    ) -> None:
        """The gradients of one passage's answers, at the slots of `prefix` from `start` on."""
        keys, values = (
            tuple(x.detach().clone().requires_grad_() for x in of)
            for of in (prefix.keys, prefix.values)
        )
        context = replace(prefix, keys=keys, values=values, rooms=None)
        targets, mask = answer_targets(lm, [passage])
        prompt = passages_prompt(lm, format_tokens, [passage], context)
        loss = -lm.score(prompt, targets, mask).sum()
        gradients = torch.autograd.grad(loss, [*keys, *values])
        for layer, (by_key, by_value) in enumerate(
            zip(gradients[: len(keys)], gradients[len(keys) :], strict=True)
        ):
            positions = prefix.positions[:, None].expand(-1, by_key.shape[1], -1)
            by_key = rotate(lm.model, layer, by_key.float(), positions, back=True)
            for kind, of in enumerate((by_key, by_value.float())):
                of = of[0, :, start:]
                self.sums[layer, kind] += of.transpose(1, 2) @ of
        self.rows += len(prefix.mask[0]) - start

    def importance(self, deviation: Float[Tensor, " y"]) -> Float[Tensor, "l two"]:
        """The importance of each layer's keys, and of its values: the roots of their sensitivities
        in units of the deviation, a fifth of all shared out evenly; each column adds up to 1."""
        unit = deviation.view(self.sums.shape[:-1])
        trace = (self.sums.diagonal(dim1=-2, dim2=-1) * unit.square()).sum((-1, -2)).sqrt()
        return 0.8 * trace / trace.sum(0) + 0.2 / len(trace)

    def roots(self, deviation: Float[Tensor, " y"]) -> Float[Tensor, "l two h e e"]:
        """Their symmetric square roots, in units of each number's deviation, all heads' together of
        trace 1."""
        layers, two, heads, width, _ = self.sums.shape
        unit = deviation.view(layers, two, heads, width).double()
        of = self.sums.double() / self.rows * unit[..., :, None] * unit[..., None, :]
        trace = of.diagonal(dim1=-2, dim2=-1).sum(-1)
        of = of + FLOOR * (trace / width)[..., None, None] * torch.eye(width).double()
        values, vectors = torch.linalg.eigh(of)
        root = vectors * values.clamp_min(0).sqrt()[..., None, :] @ vectors.transpose(-1, -2)
        return (root / trace.sum().sqrt()).float()


@dataclass(frozen=True)
class Fit:
    """Measurements of one reader, and how much it counts in the choice of the code."""

    sums: Sums
    sensitivity: Sensitivity
    share: float = 1.0


@torch.no_grad()
def fit_code(code: Code, fits: Sequence[Fit]) -> Float[Tensor, " f"]:
    """Fill a code's weights from its readers' sums, channels of unit deviation, those that matter
    most first; the weighted loss that each of all possible channels would save, as shares."""
    sums = fits[0].sums
    gram = sums.gram / sums.rows
    mean = gram[-1, :-1]
    covariance = (gram[:-1, :-1] - mean[:, None] * mean).double()
    covariance += PENALTY * torch.eye(len(covariance)).double()
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.sqrt()) @ vectors.T
    parts = [
        fit.share**0.5 * _weighted(fit.sums.solve()[:-1], fit.sums.deviation, fit.sensitivity)
        for fit in fits
    ]
    weighted = root.float() @ torch.cat(parts, 1)
    saved, directions = torch.linalg.eigh((weighted @ weighted.T).double())
    saved, directions = saved.flip(0), directions.flip(1)
    whiten = (vectors / values.sqrt()) @ vectors.T
    channels = (whiten @ directions[:, : code.config.channels]).float()
    code.weight.copy_(channels)
    code.bias.copy_(-mean @ channels)
    return (saved / saved.sum()).float()


def _weighted(maps: Float[Tensor, "f y"], deviation: Tensor, sensitivity: Sensitivity) -> Tensor:
    """Maps to a reader's numbers, whose squared error then is the weighted one."""
    roots = sensitivity.roots(deviation)
    shaped = (maps / deviation).view(len(maps), *roots.shape[:-1])
    return torch.einsum("flihe,lihed->flihd", shaped, roots).flatten(1)


@torch.no_grad()
def fit_decoder(code: Code, reader: CodeReader, sums: Sums, sensitivity: Sensitivity) -> None:
    """Fill a decoder's linear map with the ridge regression of the reader's cache on the code."""
    maps, decoder = sums.projected(code.weight, code.bias), reader.decoder
    decoder.scale.copy_(sums.deviation)
    decoder.importance.copy_(sensitivity.importance(sums.deviation))
    decoder.mean.copy_(sums.mean)
    decoder.weight.copy_(maps[:-1] / sums.deviation)
    decoder.bias.copy_(maps[-1] / sums.deviation)


def pairs(source_ends: Int[Tensor, " n"], reader_ends: Int[Tensor, " m"]) -> Int[Tensor, " m"]:
    """For each token of a reader the first of the source's that ends where it ends, or later."""
    found = torch.searchsorted(source_ends.contiguous(), reader_ends.contiguous())
    return found.clamp_max(len(source_ends) - 1)
