"""A message that carries a text in the code of `text_code.py`; its bytes: docs/wire-format.md."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from latentwire.wire.envelope import BEGIN_BYTES, check_begin, check_sum, sealed
from latentwire.wire.message import MessageError

MAGIC, VERSION = b"LWTX", 1
_HEADER = struct.Struct("<8sII")
"""Fingerprint of the source's weights, CRC-32 of the text, tokens."""
HEADER_BYTES = BEGIN_BYTES + _HEADER.size


@dataclass(frozen=True)
class TextMessage:
    """The code of one text, with what a receiver must know to trust what comes out."""

    source: str
    """Fingerprint of the LM whose code it is: 16 hex digits."""
    checksum: int
    """CRC-32 of the text in UTF-8."""
    tokens: int
    """Number of the source's tokens."""
    code: bytes

    def to_bytes(self) -> bytes:
        """The message as it travels."""
        rest = _HEADER.pack(bytes.fromhex(self.source), self.checksum, self.tokens) + self.code
        return sealed(MAGIC, VERSION, rest)

    @classmethod
    def from_bytes(cls, data: bytes) -> TextMessage:
        """The inverse. Raises MessageError for bytes that are no such message, that were cut off or
        altered, or that another version wrote."""
        check_begin(data, "text", MAGIC, VERSION, HEADER_BYTES)
        check_sum(data)
        source, checksum, tokens = _HEADER.unpack_from(data, BEGIN_BYTES)
        code = data[HEADER_BYTES:]
        if not 1 <= tokens <= 8 * len(code):  # no token takes less than a bit
            raise MessageError(f"message holds {tokens} tokens in {len(code)} bytes of code")
        return cls(source.hex(), checksum, tokens, code)
