"""A message of latent codes: what one source read, for every reader that has a decoder for it.

    data = wire.send([text])[0].to_bytes()
    wire.reader("gemma3-270m").receive([CodeMessage.from_bytes(data)])

docs/wire-format.md gives every byte.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor
from zstandard import ZstdError, compress, decompress, get_frame_parameters

from latentwire.wire.envelope import BEGIN_BYTES, check_begin, check_sum, sealed
from latentwire.wire.message import MessageError
from latentwire.wire.packing import pack, unpack

MAGIC, VERSION = b"LWLC", 1
_HEADER = struct.Struct("<8sIHBI")
"""Code id, tokens, channels, bits, bytes of the text that travels beside the codes (0 for none)."""
HEADER_BYTES = BEGIN_BYTES + _HEADER.size
TEXT_BYTES = 2**24
"""Most bytes of a text that travels beside its codes, in UTF-8."""


@dataclass(frozen=True)
class CodeMessage:
    """Codes of one context, with what a reader must know to trust them."""

    code_id: bytes
    """First 8 bytes of the sha256 of the code's weights and of its source's fingerprint."""
    levels: Int[Tensor, "n c"]
    """0 to 2**bits - 1, for each of the source's tokens."""
    bits: int
    """Bits of one level, 1 to 8."""
    text: str | None = None
    """The context itself, where the sender was asked for it."""

    def __post_init__(self) -> None:
        if self.levels.numel() == 0:
            raise MessageError("a message holds codes of at least one token, got none")

    def __len__(self) -> int:
        """Tokens of the source."""
        return len(self.levels)

    def to_bytes(self) -> bytes:
        """The message as it travels."""
        tokens, channels = self.levels.shape
        text = b"" if self.text is None else compress(self.text.encode(), 19)
        rest = _HEADER.pack(self.code_id, tokens, channels, self.bits, len(text))
        return sealed(MAGIC, VERSION, rest + pack(self.levels, self.bits) + text)

    @classmethod
    def from_bytes(cls, data: bytes) -> CodeMessage:
        """The inverse. The length is checked before anything is allocated, then the checksum.

        Raises MessageError for bytes that are no such message, that were cut off or altered, or
        that another version wrote.
        """
        check_begin(data, "code", MAGIC, VERSION, HEADER_BYTES)
        code_id, tokens, channels, bits, text_bytes = _HEADER.unpack_from(data, BEGIN_BYTES)
        if not 1 <= bits <= 8 or tokens * channels == 0:
            raise MessageError(
                f"message holds {tokens} tokens of {channels} codes of {bits} bits; expected at "
                "least one of each and at most 8 bits"
            )
        end = HEADER_BYTES + -(-tokens * channels * bits // 8)
        if len(data) != end + text_bytes:
            raise MessageError(f"message has {len(data)} bytes; its header says {end + text_bytes}")
        check_sum(data)
        levels = unpack(memoryview(data)[HEADER_BYTES:end], tokens, channels, bits)
        return cls(code_id, levels, bits, _text(data[end:]) if text_bytes else None)


def _text(data: bytes) -> str:
    try:
        if not 0 < get_frame_parameters(data).content_size <= TEXT_BYTES:
            raise MessageError(f"the text beside the codes is over {TEXT_BYTES} bytes")
        return decompress(data).decode()
    except (ZstdError, UnicodeDecodeError):
        raise MessageError("the text beside the codes cannot be read: it was altered") from None
