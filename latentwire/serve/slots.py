"""Stored contexts as slots for an engine that keeps one length for all heads, such as vLLM.

    reader = SlotReader(Contexts(wire, Store("papers")))
    slots = reader.read(["a.pdf"])            # head, context and soft prompt: one cache
    ids = reader.following(prompt_ids)        # stand behind it, the first at position len(slots)

Keys are rotated so that what follows stands at the position of the cache's end. The soft prompt is
no tokens, so its keys and values are slots too; the head's tokens come with the context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentwire.files import digest
from latentwire.lm import KVPrefix
from latentwire.lm.cache import check_one_length, of_one_length
from latentwire.serve.context import Contexts, TooLongError

Layer = tuple[Float[Tensor, "n h e"], Float[Tensor, "n h e"]]


@dataclass(frozen=True)
class Slots:
    """Keys and values of all that stands before a prompt, layer by layer."""

    layers: tuple[Layer, ...]
    digest: str
    """Differs between contexts, so that an engine's prefix cache keeps them apart."""

    def __len__(self) -> int:
        return len(self.layers[0][0])


@dataclass(frozen=True)
class Load:
    """Slots from `start` on that are to be written into an engine's blocks."""

    slots: Slots
    start: int
    blocks: Sequence[int]
    """Blocks of the whole prompt, in order."""

    def places(self, block_size: int) -> Int[Tensor, " n"]:
        """The place of each slot, counted over all blocks; the last block need not become full."""
        at = torch.arange(self.start, len(self.slots))
        return torch.tensor(self.blocks)[at // block_size] * block_size + at % block_size


class SlotReader:
    """Reads stored contexts as slots, and says what of a prompt follows them."""

    def __init__(self, contexts: Contexts):
        self.contexts, self.lm = contexts, contexts.lm()
        self._held: WeakValueDictionary[tuple, Slots] = WeakValueDictionary()
        self._head = self.lm.frame.prefix.tolist()
        ids = self.lm.tokenize("\n\nA").tolist()
        self._break = ids[: len(ids) - len(self.lm.tokenize("A"))]

    @property
    def placeholder(self) -> int:
        """An id that answers do not hold, for the places of slots."""
        return self._head[0]

    def read(self, names: Sequence[str], room: int = 0, soft_prompt: bool = True) -> Slots:
        """Contexts after one another as slots, which are shared while anybody holds them. room:
        tokens that will follow. Raises what `Contexts.stored` raises, and ValueError where the
        slots could not be exact."""
        prefix, entries = self.contexts.stored(names, soft_prompt=soft_prompt)
        check_one_length(self.lm.model, prefix, room)
        key = (soft_prompt, *(entry.message for entry in entries))
        slots = self._held.get(key)
        if slots is None:
            slots = self._held[key] = Slots(self._layers(prefix), digest(repr(key).encode()))
        return slots

    @torch.no_grad()
    def _layers(self, prefix: KVPrefix) -> tuple[Layer, ...]:
        pairs = of_one_length(self.lm.model, prefix)
        return tuple((k[0].transpose(0, 1), v[0].transpose(0, 1)) for k, v in pairs)

    def following(self, ids: Sequence[int]) -> list[int]:
        """The ids of a prompt that stand behind the slots: all of them, without the BOS that a
        tokenizer has put there; of a chat what comes after its head, behind an empty line, as
        `latentwire.ask` has it. Raises ValueError for a chat with another head than the slots'."""
        bos, head = self.lm.bos.tolist(), self._head
        opening = head[len(bos) : len(bos) + 1]  # of a chat's first turn; a base model has none
        if opening and list(ids[: len(head)]) == head:
            ids = [*self._break, *ids[len(head) :]]
        else:
            ids = list(ids[len(bos) :] if list(ids[: len(bos)]) == bos else ids)
            if opening and ids[:1] == opening:
                raise ValueError(
                    "the chat has another head than the context; expected a first message of the "
                    "user's, and the chat template without options"
                )
        if not ids:
            raise ValueError("no words follow the context; expected a question")
        return ids

    def check_length(self, slots: int, following: int, most: int) -> None:
        """Raises TooLongError where nothing could be answered behind slots and ids."""
        if slots + following >= most:
            raise TooLongError(
                f"the context's {slots} slots and {following} tokens behind them leave no room; "
                f"expected fewer than {most} together (--max-model-len)"
            )
