"""Everything that may enter a frozen LM, as one frozen value.

A Prompt is made only by `Prompt.of` and the constructors on top of it, which own BOS, the padding
side and the positions; nothing else in the package pads, shifts or numbers tokens. Rows are padded
on the left, so that the last column is always the state that predicts what follows.

    prompt = Prompt.from_text(lm, ["The capital of France is", "Two plus"])
    lm.generate(prompt, Greedy(), max_new_tokens=8).texts
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentwire.lm.finite import check_finite
from latentwire.lm.ragged import RaggedKV
from latentwire.texts import check_texts

if TYPE_CHECKING:
    from latentwire.lm.frozen import FrozenLM


LAST = slice(-1, None)
"""The last column of a prompt."""


@dataclass(frozen=True)
class Span:
    """Embeddings [n, d] that stand for `width` tokens: their positions are spread over them."""

    embeds: Tensor
    width: int


Segment: TypeAlias = Tensor | Span
"""A piece of a row: token ids [n] (integers), embeddings [n, d] (floats), or a Span."""


@dataclass(frozen=True)
class Patch:
    """Vectors that replace the output of block `layer` at `positions` of a prompt's embeds.

    When given to a constructor, positions count from the row's own first embedding; the
    constructor turns them into columns of the padded batch.
    """

    layer: int
    positions: Int[Tensor, "b n"]
    vectors: Float[Tensor, "b n d"]


@dataclass(frozen=True)
class Memory:
    """A memory that every token behind a prefix attends to between two blocks: the output x [b, t,
    d] of block `layer` becomes `attend(x, keys, values, mask)`.

    It must be a function of each column of x alone, so that a prompt may come in parts.
    """

    layer: int
    attend: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    keys: Float[Tensor, "b h m e"]
    values: Float[Tensor, "b h m e"]
    mask: Bool[Tensor, "b m"]

    def rows(self, index: Int[Tensor, " n"]) -> Memory:
        """The rows that `index` names."""
        return replace(
            self, keys=self.keys[index], values=self.values[index], mask=self.mask[index]
        )


@dataclass(frozen=True)
class KVPrefix:
    """Keys and values that precede a prompt's embeds: a cache, as a value.

    keys, values: one [b, h, p, e] per layer; keys are already rotated to their positions.
    mask [b, p]: True where a slot may be seen. positions [b, p]: the position each slot stands at
    (used by windowed attention only). next_position [b]: where the row goes on. memories: what
    acts on all that follows. ragged: of each layer, or none at all, what each head sees beside
    that.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Bool[Tensor, "b p"]
    positions: Int[Tensor, "b p"]
    next_position: Int[Tensor, " b"]
    memories: tuple[Memory, ...] = ()
    ragged: tuple[RaggedKV, ...] = ()
    rooms: tuple[Any, ...] | None = field(default=None, repr=False)
    """Buffers in which keys and values may grow in place (lm/cache.py); the value does not depend
    on them."""

    def __len__(self) -> int:
        """Slots that all heads have."""
        return self.mask.shape[1]

    def rows(self, index: Int[Tensor, " n"]) -> KVPrefix:
        """The prefix with rows picked, in the order and as often as `index` names them."""
        return KVPrefix(
            tuple(k[index] for k in self.keys),
            tuple(v[index] for v in self.values),
            self.mask[index],
            self.positions[index],
            self.next_position[index],
            tuple(memory.rows(index) for memory in self.memories),
            tuple(slots.rows(index) for slots in self.ragged),
        )

    def repeat(self, times: int) -> KVPrefix:
        """Each row `times` times in a row: K continuations that share one prefill."""
        rows = torch.arange(len(self.mask), device=self.mask.device)
        return self.rows(rows.repeat_interleave(times))

    def nbytes(self) -> int:
        """Bytes of all keys and values, padding and memories included."""
        held = [*self.keys, *self.values]
        held += [t for part in (*self.memories, *self.ragged) for t in (part.keys, part.values)]
        return sum(t.numel() * t.element_size() for t in held)


@dataclass(frozen=True)
class Prompt:
    """Input of a FrozenLM: embeds [b, t, d], mask [b, t] (True = real), positions [b, t], and
    optionally the prefix that precedes them and patches inside the model."""

    embeds: Float[Tensor, "b t d"]
    mask: Bool[Tensor, "b t"]
    positions: Int[Tensor, "b t"]
    prefix: KVPrefix | None = None
    patches: tuple[Patch, ...] = field(default=())

    @classmethod
    def of(
        cls,
        lm: FrozenLM,
        rows: Sequence[Sequence[Segment]],
        prefix: KVPrefix | None = None,
        patches: Sequence[Patch] = (),
    ) -> Prompt:
        """The one constructor: each row is a sequence of segments.

        A row starts at position 0 or where its row of `prefix` ends. Raises ValueError for no
        rows, an empty row, a prefix with another number of rows, and for ids, embeddings, patches
        or a prefix of another shape or type than this LM's, or that are not finite.
        """
        if not rows:
            raise ValueError("a prompt needs at least one row, got none")
        if prefix is not None and len(prefix.mask) != len(rows):
            raise ValueError(f"prefix has {len(prefix.mask)} rows, the prompt has {len(rows)}")
        if prefix is not None:
            _check_prefix(lm, prefix)
        made = [_row(lm, segments) for segments in rows]
        lengths = [len(embeds) for embeds, _ in made]
        if min(lengths) == 0:
            raise ValueError(f"row {lengths.index(0)} of the prompt is empty; expected >= 1 token")
        width, device = max(lengths), lm.device
        embeds = torch.stack([_pad_left(e, width) for e, _ in made])
        positions = torch.stack([_pad_left(p, width) for _, p in made])
        length = torch.tensor(lengths, device=device)[:, None]
        mask = torch.arange(width, device=device)[None] >= width - length
        if prefix is not None:
            positions = torch.where(mask, positions + prefix.next_position[:, None], 0)
        _check_patches(lm, patches, length)
        # What is being trained is left to the training step, which says at which step it broke.
        given = {"an embedding of the prompt": embeds}
        given |= {f"a vector of the patch of layer {p.layer}": p.vectors for p in patches}
        check_finite({what: tensor for what, tensor in given.items() if not tensor.requires_grad})
        shifted = tuple(replace(p, positions=p.positions + (width - length)) for p in patches)
        return cls(embeds, mask, positions, prefix, shifted)

    @classmethod
    def from_ids(
        cls,
        lm: FrozenLM,
        rows: Sequence[Tensor],
        prefix: KVPrefix | None = None,
        patches: Sequence[Patch] = (),
    ) -> Prompt:
        """Rows of token ids [n], taken as they are: no BOS is added."""
        return cls.of(lm, [[ids] for ids in rows], prefix, patches)

    @classmethod
    def from_text(cls, lm: FrozenLM, texts: Sequence[str]) -> Prompt:
        """Plain texts, with the BOS token that the model's tokenizer puts before a text."""
        check_texts(texts, "texts")
        return cls.from_ids(lm, [torch.cat([lm.bos, lm.tokenize(t)]) for t in texts])

    @classmethod
    def from_chat(cls, lm: FrozenLM, users: Sequence[str]) -> Prompt:
        """One user turn each, in the model's chat template, up to where the assistant begins."""
        check_texts(users, "users")
        frame = lm.frame
        return cls.from_ids(
            lm, [torch.cat([frame.prefix, lm.tokenize(u), frame.suffix]) for u in users]
        )

    @property
    def next_position(self) -> Int[Tensor, " b"]:
        """The position of what follows each row."""
        return self.positions[:, -1] + 1

    def repeat(self, times: int) -> Prompt:
        """Each row `times` times in a row, prefix and patches with it."""

        def rows(tensor: Tensor) -> Tensor:
            return tensor.repeat_interleave(times, 0)

        prefix = None if self.prefix is None else self.prefix.repeat(times)
        patches = tuple(Patch(p.layer, rows(p.positions), rows(p.vectors)) for p in self.patches)
        return Prompt(rows(self.embeds), rows(self.mask), rows(self.positions), prefix, patches)

    def columns(self, part: slice) -> Prompt:
        """Some of its columns, with neither prefix nor patches."""
        return Prompt(self.embeds[:, part], self.mask[:, part], self.positions[:, part])

    def append(self, embeds: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"]) -> Prompt:
        """The prompt with n more columns at the next positions; False in mask is padding."""
        new = self.next_position[:, None] + mask.long().cumsum(1) - 1
        return replace(
            self,
            embeds=torch.cat([self.embeds, embeds], 1),
            mask=torch.cat([self.mask, mask], 1),
            positions=torch.cat([self.positions, new], 1),
        )


@dataclass(frozen=True)
class ChatFrame:
    """Ids around a user's words: prefix (BOS included) and suffix (up to the answer), and the text
    that an answer begins with (a space after "Answer:")."""

    prefix: Int[Tensor, " n"]
    suffix: Int[Tensor, " m"]
    answer_prefix: str = ""


def pad_right(rows: Sequence[Int[Tensor, " _"]]) -> tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"]]:
    """Target rows as one tensor, padded with 0, and the mask that is True on real tokens."""
    width = max(len(r) for r in rows)
    ids = torch.stack([torch.nn.functional.pad(r, (0, width - len(r))) for r in rows])
    lengths = torch.tensor([len(r) for r in rows], device=ids.device)
    return ids, torch.arange(width, device=ids.device)[None] < lengths[:, None]


def _pad_left(row: Tensor, width: int) -> Tensor:
    padding = row.new_zeros((width - len(row), *row.shape[1:]))
    return torch.cat([padding, row])


def _row(lm: FrozenLM, segments: Sequence[Segment]) -> tuple[Tensor, Tensor]:
    """Embeddings [n, d] and positions [n], from 0, of one row."""
    embeds, positions, start = [], [], 0
    for segment in segments:
        if isinstance(segment, Span):
            _check_segment(lm, segment.embeds)
            n, width = len(segment.embeds), segment.width
            embeds.append(segment.embeds.to(lm.dtype))
            centre = (torch.arange(n, device=lm.device) + 0.5) * (width / max(n, 1))
            positions.append(start + centre.long())
        else:
            _check_segment(lm, segment)
            width = len(segment)
            soft = segment.is_floating_point()
            embeds.append(segment.to(lm.dtype) if soft else lm.embed(segment))
            positions.append(start + torch.arange(width, device=lm.device))
        start += width
    return torch.cat(embeds), torch.cat(positions)


def _check_segment(lm: FrozenLM, segment: Tensor) -> None:
    if segment.is_floating_point():
        right = segment.dim() == 2 and segment.shape[1] == lm.width
    else:
        right = segment.dim() == 1 and segment.dtype in (torch.int32, torch.int64)
    if not right:
        raise ValueError(
            f"a segment of the prompt has shape {list(segment.shape)} and type {segment.dtype}; "
            f"expected token ids [n], or embeddings [n, {lm.width}] of {lm.name}"
        )


def _check_patches(lm: FrozenLM, patches: Sequence[Patch], lengths: Int[Tensor, "b 1"]) -> None:
    """lengths: of the prompt's rows."""
    for patch in patches:
        places = patch.positions.shape
        right = len(places) == 2 and places[0] == len(lengths)
        if not right or patch.vectors.shape != (*places, lm.width):
            raise ValueError(
                f"the patch of layer {patch.layer} has positions {list(patch.positions.shape)} and "
                f"vectors {list(patch.vectors.shape)}; expected [{len(lengths)}, n] and "
                f"[{len(lengths)}, n, {lm.width}]"
            )
        if ((patch.positions < 0) | (patch.positions >= lengths)).any():
            raise ValueError(
                f"the patch of layer {patch.layer} is at {patch.positions.tolist()}; the prompt's "
                f"rows have {lengths[:, 0].tolist()} positions, counted from 0"
            )


def _check_prefix(lm: FrozenLM, prefix: KVPrefix) -> None:
    heads, width = lm.kv_shape
    rows, slots = prefix.mask.shape
    expected = (rows, heads, slots, width)
    shapes = {tuple(t.shape) for t in (*prefix.keys, *prefix.values)}
    if shapes != {expected} or not len(prefix.keys) == len(prefix.values) == len(lm.blocks):
        raise ValueError(
            f"the prefix has {len(prefix.keys)} layers of {sorted(map(list, shapes))}; {lm.name} "
            f"expects {len(lm.blocks)} of {list(expected)}"
        )
