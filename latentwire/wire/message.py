"""A wire message: latents as bytes. `len(message.to_bytes())` is the only byte count we report.

A header of fixed fields, the reader's name, how many slots each head has and where they stand, then
the packed codes of `codec.py`; a checksum covers all of it. docs/wire-format.md gives every byte,
for readers in other languages.

    data = wire.send([text], bits=8)[0].to_bytes()
    wire.receive([Message.from_bytes(data)])
"""

from __future__ import annotations

import struct
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
import torch

from latentwire.lm import FrozenLM
from latentwire.lm.finite import check_finite
from latentwire.reading import InputError
from latentwire.wire.codec import BITS, pack, packed_size, unpack
from latentwire.wire.compressed_kv import CompressedKV

MAGIC, VERSION = b"LWIR", 3
_BEGIN = struct.Struct("<4sHI")
"""Magic, version, CRC-32 of every byte that follows."""
_HEADER = struct.Struct("<8s8sHHHIBB")
"""Wire id, reader's fingerprint, layers, KV heads, head width, span, bits, name's length."""
_NAME = _BEGIN.size + _HEADER.size
GAP = 65_535
"""Most positions between two slots of one head, or before its first."""


class MessageError(InputError):
    """Bytes that are no message, or not one that this wire can read; no latents to send."""


@dataclass(frozen=True)
class Message:
    """Latents of one context with what a reader must know to trust them."""

    wire_id: bytes
    """First 8 bytes of the sha256 of the weights that made it."""
    reader: str
    """Name of the LM that it was made for."""
    fingerprint: str
    """Fingerprint of that LM's weights: 16 hex digits."""
    latents: CompressedKV
    bits: int = 16
    """Bits of one code, one of codec.BITS; below 16 a reader gets latents that are rounded."""

    def __post_init__(self) -> None:
        check_bits(self.bits)
        if self.latents.keys.numel() == 0 or self.latents.span < 1:
            raise MessageError("a message holds at least one latent and a span of 1, got none")
        given = {"a message's key": self.latents.keys, "a message's value": self.latents.values}
        check_finite(given, MessageError)

    def __len__(self) -> int:
        """Latents."""
        return len(self.latents)

    def check_origin(self, wire_id: bytes, reader: str, fingerprint: str) -> None:
        """Raises MessageError for a message of another wire or reader; warns of one that was made
        with another copy of the reader."""
        if (self.wire_id, self.reader) != (wire_id, reader):
            raise MessageError(
                f"message of wire {self.wire_id.hex()} for {self.reader}; this is wire "
                f"{wire_id.hex()} for {reader}"
            )
        if self.fingerprint != fingerprint:
            warnings.warn(
                f"message was made with another copy of {reader} (its weights differ); expect "
                "somewhat lower scores",
                stacklevel=3,
            )

    def to_bytes(self) -> bytes:
        """The message as it travels."""
        z, name = self.latents, self.reader.encode()
        if len(name) > 255:
            raise MessageError(f"the reader's name has {len(name)} bytes; expected at most 255")
        lengths = z.lengths.cpu().numpy()
        gaps = np.diff(z.positions.cpu().numpy(), prepend=0)
        gaps[_first(lengths)] = z.positions.cpu().numpy()[_first(lengths)]
        if gaps.max() > GAP:
            raise MessageError(f"slots stand {gaps.max()} positions apart; expected at most {GAP}")
        rest = _HEADER.pack(
            self.wire_id,
            bytes.fromhex(self.fingerprint),
            *lengths.shape,
            z.keys.shape[1],
            z.span,
            self.bits,
            len(name),
        )
        rest += name + lengths.astype("<u4").tobytes() + gaps.astype("<u2").tobytes()
        rest += pack(z.keys, z.values, lengths, self.bits)
        return _BEGIN.pack(MAGIC, VERSION, zlib.crc32(rest)) + rest

    @classmethod
    def from_bytes(cls, data: bytes) -> Message:
        """The inverse. The length is checked before anything is allocated, then the checksum.

        Raises MessageError for bytes that are no message, that were cut off or altered, or that
        another version wrote.
        """
        check_kind(data, MAGIC)
        if len(data) < 6 or data[:4] != MAGIC:
            raise MessageError(
                f"not a wire message: {len(data)} bytes, expected them to begin with {MAGIC!r}"
            )
        version = int.from_bytes(data[4:6], "little")
        if version != VERSION:
            remedy = "update latentwire" if version > VERSION else "send the text again"
            raise MessageError(
                f"message of version {version}; this release reads version {VERSION}: {remedy}"
            )
        if len(data) < _NAME:
            raise MessageError(f"message has {len(data)} bytes; its header alone has {_NAME}")
        checksum = _BEGIN.unpack_from(data)[2]
        fields = _HEADER.unpack_from(data, _BEGIN.size)
        wire_id, fingerprint, layers, heads, width, span, bits, name_length = fields
        check_bits(bits)
        start = _NAME + name_length
        table = start + 4 * layers * heads
        if layers * heads * width == 0 or span == 0:
            raise MessageError("message holds no latents; expected at least one")
        if len(data) < table:
            raise MessageError(f"message has {len(data)} bytes; its table of heads ends at {table}")
        lengths = np.frombuffer(data, "<u4", layers * heads, start).reshape(layers, heads)
        if lengths.min() == 0:
            raise MessageError("message has a head without latents; expected at least one in each")
        slots = int(lengths.sum(dtype=np.uint64))
        if len(data) != (size := table + 2 * slots + packed_size(lengths, width, bits)):
            raise MessageError(f"message has {len(data)} bytes; its header says {size}")
        if zlib.crc32(memoryview(data)[_BEGIN.size :]) != checksum:
            raise MessageError("message was altered on the way: its checksum differs")
        try:
            reader = data[_NAME:start].decode()
        except UnicodeDecodeError:
            raise MessageError("the reader's name in the message is not UTF-8") from None
        codes = table + 2 * slots
        positions = _positions(np.frombuffer(data, "<u2", slots, table), lengths)
        if positions.max() >= span:
            raise MessageError(f"message has a latent at position {positions.max()} of {span}")
        keys, values = unpack(memoryview(data)[codes:], lengths, width, bits)
        counts = torch.from_numpy(lengths.astype(np.int64))
        latents = CompressedKV(keys, values, torch.from_numpy(positions), counts, span)
        return cls(wire_id, reader, fingerprint.hex(), latents, bits)


def _first(lengths: np.ndarray) -> np.ndarray:
    """The first slot of each head."""
    return lengths.flatten().cumsum() - lengths.flatten()


def _positions(gaps: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Positions of slots from how far each stands from the one before it in its head."""
    sums = gaps.cumsum(dtype=np.int64)
    before = (sums - gaps)[_first(lengths)]
    return sums - before.repeat(lengths.flatten())


def check_bits(bits: int) -> None:
    """Raises MessageError for bits that no codec has."""
    if bits not in BITS:
        raise MessageError(f"no codec has {bits} bits; expected one of {', '.join(map(str, BITS))}")


def check_kind(data: bytes, magic: bytes) -> None:
    """Raises MessageError for bytes of another kind of message than the one of this magic."""
    if data[:2] == magic[:2] and data[:4] != magic:
        raise MessageError("a message of another kind of wire; read it with the wire that sent it")


def check_readable(latents: CompressedKV, lm: FrozenLM, ratio: int) -> None:
    """Raises MessageError for latents that are not of this model's shape, or have no room in it."""
    if (*latents.lengths.shape, latents.keys.shape[1]) != (len(lm.blocks), *lm.kv_shape):
        raise MessageError("the message was altered: its shape is not this wire's")
    room = lm.context_length - len(lm.frame.prefix)
    if max(latents.span, len(latents)) > room:
        raise MessageError(
            f"message takes up {latents.span} positions with {len(latents)} latents; "
            f"{lm.name} has room for {room}"
        )
    if (most := int(latents.lengths.max())) > room * ratio:
        raise MessageError(
            f"message has a head with {most} slots; at {ratio}x a text has at most "
            f"{room * ratio} tokens"
        )
