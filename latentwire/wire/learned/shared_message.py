"""A message that several readers read: the codes of a text's latents, and nothing of any reader.

    data = wire.send([text])[0].to_bytes()
    wire.reader("gemma3-270m").receive([SharedMessage.from_bytes(data)])

docs/wire-format.md gives every byte.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from latentwire.wire.envelope import BEGIN_BYTES, check_begin, check_sum, sealed
from latentwire.wire.message import MessageError
from latentwire.wire.packing import pack, unpack

MAGIC, VERSION = b"LWSH", 1
_HEADER = struct.Struct("<8sHIBB")
"""Wire id, latents, span, channels, bits."""
HEADER_BYTES = BEGIN_BYTES + _HEADER.size


@dataclass(frozen=True)
class SharedMessage:
    """Codes of one context, with what a reader must know to trust them."""

    wire_id: bytes
    """First 8 bytes of the sha256 of the wire's weights, less the readers' adapters."""
    codes: Int[Tensor, "m c"]
    """0 to 2**bits - 1."""
    bits: int
    """Bits of one code, 1 to 8."""
    span: int
    """Positions that the context takes up in a reader."""

    def __post_init__(self) -> None:
        if self.codes.numel() == 0 or self.span < 1:
            raise MessageError("a message holds at least one latent and a span of 1, got none")
        if len(self.codes) > 0xFFFF or self.span > 0xFFFFFFFF:
            raise MessageError(f"message has {len(self.codes)} latents; expected at most 65535")

    def __len__(self) -> int:
        """Latents."""
        return len(self.codes)

    def to_bytes(self) -> bytes:
        """The message as it travels."""
        latents, channels = self.codes.shape
        rest = _HEADER.pack(self.wire_id, latents, self.span, channels, self.bits)
        rest += pack(self.codes, self.bits)
        return sealed(MAGIC, VERSION, rest)

    @classmethod
    def from_bytes(cls, data: bytes) -> SharedMessage:
        """The inverse. The length is checked before anything is allocated, then the checksum.

        Raises MessageError for bytes that are no message, that were cut off or altered, or that
        another version wrote.
        """
        check_begin(data, "shared", MAGIC, VERSION, HEADER_BYTES)
        wire_id, latents, span, channels, bits = _HEADER.unpack_from(data, BEGIN_BYTES)
        if not 1 <= bits <= 8 or latents * channels * span == 0:
            raise MessageError(
                f"message holds {latents} latents of {channels} codes of {bits} bits over {span} "
                "positions; expected at least one of each and at most 8 bits"
            )
        expected = message_size(latents, channels, bits)
        if len(data) != expected:
            raise MessageError(f"message has {len(data)} bytes; its header says {expected}")
        check_sum(data)
        codes = unpack(memoryview(data)[HEADER_BYTES:], latents, channels, bits)
        return cls(wire_id, codes, bits, span)


def message_size(latents: int, channels: int, bits: int) -> int:
    """Bytes of a message."""
    return HEADER_BYTES + -(-latents * channels * bits // 8)
