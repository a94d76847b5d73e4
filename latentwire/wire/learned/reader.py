"""One reader of a shared wire, and the contents of a message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from latentwire.lm import FrozenLM, KVPrefix
from latentwire.lm.sentences import SentenceEncoder
from latentwire.wire.folder import WireError
from latentwire.wire.learned import fsq
from latentwire.wire.learned.adapter import Adapter
from latentwire.wire.learned.shared_message import SharedMessage
from latentwire.wire.message import MessageError

if TYPE_CHECKING:
    from latentwire.wire.learned.shared_wire import SharedWire


@dataclass(frozen=True)
class Values:
    """The contents of a message: the values of its codes, in [-1, 1], and the positions that its
    text takes up in a reader."""

    codes: Float[Tensor, "m c"]
    span: int

    def zeros(self) -> Values:
        """The same with every code at its middle: a control."""
        return replace(self, codes=torch.zeros_like(self.codes))


@dataclass(frozen=True)
class Reader:
    """One reader of a shared wire, with what an evaluation asks of any wire."""

    blanks: ClassVar[Mapping[str, str]] = {"zero_latents": "zeros"}
    message_type: ClassVar[type[SharedMessage]] = SharedMessage

    wire: SharedWire
    reader: str
    """Name of the LM."""
    adapter: Adapter
    number: int
    """Its place among the wire's readers."""

    @property
    def lm(self) -> FrozenLM:
        return self.adapter.lm

    @property
    def format(self) -> Tensor:
        """Soft tokens between context and question."""
        return self.adapter.format

    @property
    def head(self) -> KVPrefix:
        return self.adapter.head

    @property
    def models(self) -> Mapping[str, FrozenLM | SentenceEncoder]:
        """Maps what they do, or a name, to the frozen models that take part."""
        return {"reader": self.lm, "source": self.wire.encoder.lm, **self.wire.encoder.others}

    @property
    def trained(self) -> Mapping[str, Tensor]:
        """Holds what was trained for this reader, beside what its wire's id tells."""
        return self.adapter.state_dict()

    @property
    def id(self) -> bytes:
        return self.wire.id

    @property
    def ratio(self) -> int:
        """Tokens in per latent out."""
        return self.wire.config.sizes.ratio

    @property
    def keep(self) -> None:
        """Nothing is kept as text: a message has codes alone."""

    @property
    def bits(self) -> int:
        """Bits of one code of a message."""
        return self.wire.config.bits

    def evictions(self, also: Sequence[str] = ()) -> dict[str, Reader]:
        """No rows of an evaluation: the reader has no cache of the text to evict from. Raises
        WireError where some are asked for."""
        if also:
            raise WireError("this wire has codes alone; only one of slots is compared by selectors")
        return {}

    def check_bits(self, bits: int | None) -> None:
        """Raises MessageError for other bits than the code was trained with."""
        if bits not in (None, self.bits):
            raise MessageError(f"this wire's codes have {self.bits} bits; got {bits}")

    def latents(self, text: str) -> int:
        """Latents of a text."""
        return self.wire.cost(text)[0]

    def cost(self, text: str, bits: int | None = None) -> tuple[int, int]:
        """Latents and bytes of the message of a text."""
        self.check_bits(bits)
        return self.wire.cost(text)

    def send(self, texts: Sequence[str], bits: int | None = None) -> list[SharedMessage]:
        """Texts as messages, the same for every reader."""
        self.check_bits(bits)
        return self.wire.send(texts)

    def receive(self, messages: Sequence[SharedMessage]) -> KVPrefix:
        """Messages as a cache that the reader continues from. Raises what `open` raises."""
        return self.prefix(self.open(messages))

    def open(self, messages: Sequence[SharedMessage]) -> list[Values]:
        """The contents of messages. Raises MessageError for no messages, for one of another wire,
        and for one that does not fit the reader."""
        if not messages:
            raise MessageError("got no messages; expected at least one")
        wire_id, config = self.wire.id, self.wire.config
        for message in messages:
            if message.wire_id != wire_id:
                raise MessageError(
                    f"message of wire {message.wire_id.hex()}; this is wire {wire_id.hex()}"
                )
            if (message.codes.shape[1], message.bits) != (config.sizes.channels, config.bits):
                raise MessageError("the message was altered: its shape is not this wire's")
            if len(message) > self.adapter.room:
                raise MessageError(
                    f"message has {len(message)} latents; {self.reader} has room for "
                    f"{self.adapter.room}"
                )
        return [Values(fsq.values(m.codes, m.bits), m.span) for m in messages]

    def prefix(self, contents: Sequence[Values]) -> KVPrefix:
        """Contents as a cache that the reader continues from, with gradients."""
        return self.adapter(*self.adapter_inputs(contents))

    def adapter_inputs(
        self, contents: Sequence[Values]
    ) -> tuple[list[Float[Tensor, "_ c"]], list[Float[Tensor, "_ w"]], list[int]]:
        """Values and states of the latents of contents, and their spans."""
        values = [c.codes for c in contents]
        return values, self.wire.states(values), [c.span for c in contents]
