"""A message that carries a text in the code of `text_code.py`; its bytes: docs/wire-format.md."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from latentwire.wire.message import MessageError

MAGIC, VERSION = b"LWTX", 1
_BEGIN = struct.Struct("<4sBI")
"""Magic, version, CRC-32 of every byte that follows."""
_HEADER = struct.Struct("<8sII")
"""Fingerprint of the source's weights, CRC-32 of the text, tokens."""
HEADER_BYTES = _BEGIN.size + _HEADER.size


@dataclass(frozen=True)
class TextMessage:
    """The code of one text, with what a receiver must know to trust what comes out."""

    source: str
    """Fingerprint of the LM whose code it is: 16 hex digits."""
    checksum: int
    """CRC-32 of the text in UTF-8."""
    tokens: int
    """Of the source."""
    code: bytes

    def to_bytes(self) -> bytes:
        """The message as it travels."""
        rest = _HEADER.pack(bytes.fromhex(self.source), self.checksum, self.tokens) + self.code
        return _BEGIN.pack(MAGIC, VERSION, zlib.crc32(rest)) + rest

    @classmethod
    def from_bytes(cls, data: bytes) -> TextMessage:
        """The inverse. Raises MessageError for bytes that are no such message, that were cut off or
        altered, or that another version wrote."""
        if len(data) < 5 or data[:4] != MAGIC:
            raise MessageError(
                f"not a message of a text: {len(data)} bytes, expected them to begin with {MAGIC!r}"
            )
        if data[4] != VERSION:
            raise MessageError(
                f"message of a text, version {data[4]}; this release reads version {VERSION}: "
                + ("update latentwire" if data[4] > VERSION else "send the text again")
            )
        if len(data) < HEADER_BYTES:
            raise MessageError(
                f"message has {len(data)} bytes; its header alone has {HEADER_BYTES}"
            )
        if zlib.crc32(memoryview(data)[_BEGIN.size :]) != _BEGIN.unpack_from(data)[2]:
            raise MessageError("message was cut off or altered on the way: its checksum differs")
        source, checksum, tokens = _HEADER.unpack_from(data, _BEGIN.size)
        code = data[HEADER_BYTES:]
        if not 1 <= tokens <= 8 * len(code):  # no token takes less than a bit
            raise MessageError(f"message holds {tokens} tokens in {len(code)} bytes of code")
        return cls(source.hex(), checksum, tokens, code)
