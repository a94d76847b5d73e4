"""Slots that each KV head has for itself, and attention over them where they lie.

Heads keep unlike numbers of slots. Padded to the longest, the slots of a layer are several times
what they hold, so a head that has many attends to its own, in place; only short heads, whose cost
is the call and not the memory, are padded together, once for all steps of a generation. Rows that
continue one context (questions about it, samples) share its slots, and each is read once for all.

Shapes: r contexts, b rows, h KV heads, g query heads of each, t columns, n slots, e a head's width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from latentwire.lm.families import capped

SHORT = 1024
"""Slots, padding included, up to which heads are padded together on a CPU."""


@dataclass(frozen=True)
class Heads:
    """Keys and values of some heads side by side, padded on the right to the longest; `bias` is
    -inf on padding and 0 elsewhere, and None where there is none."""

    keys: Float[Tensor, "p n e"]
    values: Float[Tensor, "p n e"]
    positions: Int[Tensor, "p n"]
    bias: Float[Tensor, "p 1 n"] | None


@dataclass(frozen=True)
class RaggedKV:
    """Keys and values of one layer of which each KV head has as many as `lengths` [r, h] says, one
    head after another, without padding; keys are already rotated to `positions`. owners: the
    context whose slots each row sees; None where row i sees those of context i."""

    keys: Float[Tensor, "n e"]
    values: Float[Tensor, "n e"]
    positions: Int[Tensor, " n"]
    lengths: Int[Tensor, "r h"]
    owners: Int[Tensor, " b"] | None = None

    def rows(self, index: Int[Tensor, " m"]) -> RaggedKV:
        """The rows that `index` names, in its order. They share what is held."""
        return replace(self, owners=index if self.owners is None else self.owners[index])

    @cached_property
    def first(self) -> int:
        """Position of the slot that stands first."""
        return int(self.positions.min()) if len(self.positions) else 0

    def attend(
        self,
        queries: Float[Tensor, "b q t e"],
        keys: Float[Tensor, "b h k e"],
        values: Float[Tensor, "b h k e"],
        mask: Float[Tensor, "b 1 t k"] | None,
        since: Int[Tensor, "b t"] | None = None,
        cap: float | None = None,
    ) -> Float[Tensor, "b q t e"]:
        """Attention over each head's slots and then the columns that all heads have. queries are
        scaled; mask: additive, of those columns; since: the first position that each query sees
        slots at, None where it sees all. cap: what logits are soft-capped to, before the mask.
        Computed in float32 or finer, whatever autocast is on."""
        device = queries.device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self.attend(queries, keys, values, mask, since, cap)
        (b, h, k, e), t = keys.shape, queries.shape[2]
        # The g query heads of a KV head lie one after another: each is g * t queries.
        grouped = _precise(queries).reshape(b * h, -1, e)
        shared = capped(torch.bmm(grouped, _precise(keys).flatten(0, 1).transpose(1, 2)), cap)
        if mask is not None:
            shared = (shared.view(b, h, -1, t, k) + mask[:, :, None]).view(b * h, -1, k)
        gather, restore = self._sharing
        mine, ours = gather(grouped), gather(shared)
        if since is not None:
            of_heads = since.repeat(1, grouped.shape[1] // t).repeat_interleave(h, 0)
            since = gather(of_heads)[..., None]
        outputs, weights = [], []
        for some, part in self.parts():
            n, own = some.keys.shape[1], _precise(some.keys).transpose(1, 2)
            bias = mine.new_zeros(()) if some.bias is None else some.bias
            if cap is None:
                logits = torch.baddbmm(bias, mine[part], own)
            else:
                logits = capped(torch.bmm(mine[part], own), cap) + bias
            if since is not None:
                logits = logits.masked_fill(some.positions[:, None] < since[part], -torch.inf)
            share = torch.cat([logits, ours[part]], -1).softmax(-1)
            outputs.append(torch.bmm(share[..., :n], _precise(some.values)))
            weights.append(share[..., n:])
        output, weight = restore(_joined(outputs)), restore(_joined(weights))
        output = torch.baddbmm(output, weight, _precise(values).flatten(0, 1))
        return output.view(b, -1, t, e).to(queries.dtype)

    def parts(self) -> Iterator[tuple[Heads, slice]]:
        """The heads of all contexts in the order of `_order`, some at a time, and which they are.
        What is padded is kept for the next pass where it holds no gradient and is short."""
        first = 0
        for at, count in enumerate(self._counts):
            made = self._kept.get(at)
            if made is None:
                made = self._heads(self._order[first : first + count])
                if self.keys.device.type == "cpu" and not self.keys.requires_grad:
                    self._kept[at] = made
            yield made, slice(first, first + count)
            first += count

    @cached_property
    def _kept(self) -> dict[int, Heads]:
        return {}

    @cached_property
    def _lengths(self) -> list[int]:
        return self.lengths.flatten().tolist()

    @cached_property
    def _order(self) -> list[int]:
        """Heads of the contexts that some row sees, by how many slots they have; those of one
        context as they are."""
        h = self.lengths.shape[1]
        every = [context * h + head for context in sorted({*self._owners}) for head in range(h)]
        return sorted(every, key=self._lengths.__getitem__) if len(every) > h else every

    @cached_property
    def _owners(self) -> list[int]:
        return [*range(len(self.lengths))] if self.owners is None else self.owners.tolist()

    @cached_property
    def _counts(self) -> list[int]:
        """Numbers of heads that go together: on a GPU all, since calls cost most there."""
        if self.keys.device.type != "cpu":
            return [len(self._order)]
        counts, longest = [], 0
        for head in self._order:
            longest = max(longest, self._lengths[head])
            if counts and longest * (counts[-1] + 1) <= SHORT:
                counts[-1] += 1
            else:
                counts.append(1)
                longest = self._lengths[head]
        return counts

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *torch.tensor(self._lengths).cumsum(0).tolist()]

    def _heads(self, which: Sequence[int]) -> Heads:
        cuts = [slice(self._starts[head], self._starts[head + 1]) for head in which]
        if len(cuts) == 1:  # nothing is copied
            whole = (x[cuts[0]][None] for x in (self.keys, self.values, self.positions))
            return Heads(*whole, bias=None)
        keys, values, positions = (
            pad_sequence([x[cut] for cut in cuts], batch_first=True)
            for x in (self.keys, self.values, self.positions)
        )
        lengths = self.lengths.flatten()[torch.tensor(which, device=keys.device)]
        padding = torch.arange(keys.shape[1], device=keys.device) >= lengths[:, None]
        bias = _precise(keys).new_zeros(padding.shape).masked_fill(padding, -torch.inf)[:, None]
        even = min(self._lengths[head] for head in which) == keys.shape[1]
        return Heads(keys, values, positions, None if even else bias)

    @cached_property
    def _sharing(self) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """Two functions: heads of rows [b * h, m, *] to heads of contexts in order [p, s * m, *],
        where those of the s rows of one context lie side by side; and the inverse."""
        device, h, order = self.keys.device, self.lengths.shape[1], self._order
        rows: dict[int, list[int]] = {}
        for row, owner in enumerate(self._owners):
            rows.setdefault(owner, []).append(row)
        most = max(map(len, rows.values()))
        # A context with fewer rows than another repeats one, whose result nobody asks for.
        filled = {owner: of + of[:1] * (most - len(of)) for owner, of in rows.items()}
        places = [[row * h + head % h for row in filled[head // h]] for head in order]
        where = {head: at for at, head in enumerate(order)}
        back = [
            where[owner * h + head] * most + rows[owner].index(row)
            for row, owner in enumerate(self._owners)
            for head in range(h)
        ]
        if most == 1 and back == [*range(len(order))]:  # as they are
            return _same, _same
        taken, returned = (torch.tensor(x, device=device) for x in (places, back))

        def gather(x: Tensor) -> Tensor:
            return x[taken].flatten(1, 2)

        def restore(x: Tensor) -> Tensor:
            return x.unflatten(1, (most, -1)).flatten(0, 1)[returned]

        return gather, restore


def _same(x: Tensor) -> Tensor:
    return x


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat([*parts])


def _precise(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
