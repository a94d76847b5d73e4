"""One reader of a code wire: a frozen LM with its decoder and its soft prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor, nn

from latentwire.lm import Dtype, FrozenLM, KVPrefix
from latentwire.lm.families import rotate
from latentwire.wire.codes.decoder import Decoder
from latentwire.wire.codes.message import HEADER_BYTES, CodeMessage
from latentwire.wire.compressed_kv import CompressedKV, as_prefix, head_of
from latentwire.wire.compressor import chosen
from latentwire.wire.config import Measured
from latentwire.wire.folder import WireError
from latentwire.wire.message import MessageError
from latentwire.wire.windows import room_of

if TYPE_CHECKING:
    from latentwire.wire.codes.wire import CodeWire


@dataclass(frozen=True)
class Codes:
    """The contents of a message: the numbers [n, c] that its levels stand for. blank: each slot is
    read as the mean key and value, a control."""

    values: Float[Tensor, "n c"]
    blank: bool = False

    def zeros(self) -> Codes:
        """The same with every number at the middle of its channel: a control."""
        return replace(self, values=torch.zeros_like(self.values))

    def means(self) -> Codes:
        """The same with every slot at the reader's mean: a control."""
        return replace(self, blank=True)


class CodeReader(nn.Module):
    """One reader of a code wire: a frozen LM with its decoder and its soft prompt."""

    keep = None
    """No span is kept as text: a message has codes alone."""
    blanks: ClassVar[Mapping[str, str]] = {"zero_latents": "zeros", "mean_slots": "means"}
    message_type: ClassVar[type[CodeMessage]] = CodeMessage

    def __init__(self, lm: FrozenLM, channels: int, hidden: int, format_tokens: int):
        super().__init__()
        self.lm, self.ratio = lm, 1
        self.decoder = Decoder(lm, channels, hidden)
        self.format = nn.Parameter(torch.zeros(format_tokens, lm.width))
        self.to(lm.device)
        self._wire: CodeWire | None = None
        self.measured = Measured()

    @property
    def reader(self) -> str:
        """Name of the LM."""
        return self.lm.name

    @property
    def dtype(self) -> Dtype:
        """Number type of the LM's weights."""
        return self.lm.dtype_name

    @property
    def models(self) -> Mapping[str, FrozenLM]:
        """The frozen models that its answers rest on, by name."""
        return {self.wire.source.name: self.wire.source, self.reader: self.lm}

    @property
    def trained(self) -> Mapping[str, Tensor]:
        """The tensors that were trained for it."""
        return self.state_dict()

    @property
    def wire(self) -> CodeWire:
        """The wire that it is a reader of."""
        assert self._wire is not None
        return self._wire

    @property
    def id(self) -> bytes:
        """First 8 bytes of the sha256 of its weights and of the code that it decodes."""
        return hashlib.sha256(self.wire.id + weights(self)).digest()[:8]

    @property
    def bits(self) -> int:
        """Bits of one number of a message."""
        return self.wire.code.config.bits

    @cached_property
    def head(self) -> KVPrefix:
        """Cache of what every prompt begins with, one row."""
        return head_of(self.lm)

    def at(self, ratio: int) -> CodeReader:
        """The same weights at another ratio of tokens to slots; messages are the same. Raises
        WireError for a ratio below 1."""
        if type(ratio) is not int or ratio < 1:
            raise WireError(f"ratio is {ratio!r}; expected a whole number >= 1")
        reader = copy(self)
        reader.ratio = ratio
        return reader

    def evictions(self, also: Sequence[str] = ()) -> dict[str, CodeReader]:
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
        """Slots of a head, on average, that a text becomes."""
        return -(-len(self.wire.tokenize(text)) // self.ratio)

    def cost(self, text: str, bits: int | None = None) -> tuple[int, int]:
        """Slots of a head that a text becomes, and bytes of its message."""
        self.check_bits(bits)
        numbers = len(self.wire.tokenize(text)) * self.wire.code.config.channels
        return self.latents(text), HEADER_BYTES + -(-numbers * self.bits // 8)

    def send(self, texts: Sequence[str], bits: int | None = None) -> list[CodeMessage]:
        """Texts as messages, the same for every reader."""
        self.check_bits(bits)
        return self.wire.send(texts)

    def open(self, messages: Sequence[CodeMessage]) -> list[Codes]:
        """The contents of messages. Raises MessageError for no messages, for one of another code,
        and for one whose text does not fit the reader's context."""
        if not messages:
            raise MessageError("got no messages; expected at least one")
        code, room = self.wire.code, room_of(self.lm)
        for message in messages:
            if message.code_id != self.wire.id:
                raise MessageError(
                    f"message in the code {message.code_id.hex()}; this wire reads "
                    f"{self.wire.id.hex()} of {code.config.source}: another copy of the source, or "
                    "another training, wrote it"
                )
            if (message.levels.shape[1], message.bits) != (code.config.channels, code.config.bits):
                raise MessageError("the message was altered: its shape is not this wire's")
            if len(message) > room:
                raise MessageError(
                    f"message spans {len(message)} positions; {self.reader} has room for {room}"
                )
            self.measured.warn_beyond(len(message), self.ratio)
        device = self.lm.device
        return [Codes(code.values(message.levels.to(device))) for message in messages]

    def receive(self, messages: Sequence[CodeMessage]) -> KVPrefix:
        """Messages as a cache that the reader continues from. Raises what `open` raises."""
        return self.prefix(self.open(messages))

    def prefix(self, contents: Sequence[Codes]) -> KVPrefix:
        """Contents as a cache that the reader continues from, with gradients."""
        return as_prefix(self.head, self.compress(contents))

    def compress(self, contents: Sequence[Codes]) -> list[CompressedKV]:
        """Contents as the slots that the reader's heads need most: all heads of all layers compete,
        as in compressor.py, by scores that are read from the codes."""
        lm, sizes = self.lm, [len(content.values) for content in contents]
        values = torch.cat([content.values for content in contents]).to(lm.device)
        k, v = self.decoder(values)
        blank = torch.tensor([content.blank for content in contents], device=lm.device)
        if blank.any():
            means = self.decoder.mean_slots(len(values))
            where = blank.repeat_interleave(torch.tensor(sizes, device=lm.device))[:, None]
            k, v = (torch.where(where, mean, x) for mean, x in zip(means, (k, v), strict=True))
        places = torch.cat([torch.arange(n, device=lm.device) for n in sizes])
        positions = (places + len(lm.frame.prefix)).expand(1, k.shape[1], -1)
        k = torch.stack([rotate(lm.model, i, x[None], positions)[0] for i, x in enumerate(k)])
        rows = (x.split(sizes, 2) for x in (k, v, self.decoder.scores(values)))
        return [self._latents(*row) for row in zip(*rows, strict=True)]

    def _latents(self, keys: Tensor, values: Tensor, scores: Tensor) -> CompressedKV:
        """The slots to keep of one row: keys and values [l, h, n, e], scores [l, h, n]."""
        n = scores.shape[-1]
        count = torch.tensor([-(-n // self.ratio)], device=scores.device)
        mask = torch.ones(1, n, dtype=torch.bool, device=scores.device)
        kept = chosen(scores[:, None].detach(), mask, count)[:, 0]
        return CompressedKV(keys[kept], values[kept], kept.nonzero()[:, 2], kept.sum(-1), n)


def weights(module: nn.Module) -> bytes:
    """A module's tensors in bfloat16, as they are saved."""
    state = {k: v.detach().to("cpu", torch.bfloat16) for k, v in module.state_dict().items()}
    return save(state)
