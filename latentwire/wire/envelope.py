"""The begin of messages for several readers: a magic, a version, a checksum of what follows."""

from __future__ import annotations

import struct
import zlib

from latentwire.wire.message import MessageError, check_kind

_BEGIN = struct.Struct("<4sBI")
BEGIN_BYTES = _BEGIN.size


def sealed(magic: bytes, version: int, rest: bytes) -> bytes:
    """A message as it travels."""
    return _BEGIN.pack(magic, version, zlib.crc32(rest)) + rest


def check_begin(data: bytes, kind: str, magic: bytes, version: int, header: int) -> None:
    """Raises MessageError for bytes that do not begin as a message of this kind and version, or
    have less than `header` bytes."""
    check_kind(data, magic)
    if len(data) < 5 or data[:4] != magic:
        raise MessageError(
            f"not a {kind} message: {len(data)} bytes, expected them to begin with {magic!r}"
        )
    if data[4] != version:
        raise MessageError(
            f"{kind} message of version {data[4]}; this release reads version {version}: "
            + ("update latentwire" if data[4] > version else "send the text again")
        )
    if len(data) < header:
        raise MessageError(f"message has {len(data)} bytes; its header alone has {header}")


def check_sum(data: bytes) -> None:
    """Raises MessageError where anything behind the checksum was changed."""
    if zlib.crc32(memoryview(data)[_BEGIN.size :]) != _BEGIN.unpack_from(data)[2]:
        raise MessageError("message was altered on the way: its checksum differs")
