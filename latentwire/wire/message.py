"""A wire message: latents as bytes. `len(message.to_bytes())` is the only byte count we report.

Layout, little-endian: magic "LWIR", then u16 version, 8 bytes wire id (the start of the weights'
sha256), u16 layers, u16 KV heads, u16 head width, u32 slots, u32 span, u8 bits per value, u8 length
of the reader's name, the name in UTF-8; then all keys and all values, [layer, head, slot, width]
each, as IEEE half floats. docs/wire-format.md says the same for other languages.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import torch

from latentwire.wire.latents import Latents

MAGIC, VERSION, BITS = b"LWIR", 1, 16
_HEADER = struct.Struct("<4sH8sHHHIIBB")


class MessageError(ValueError):
    """Bytes that are no message, or not one that this wire can read."""


@dataclass(frozen=True)
class Message:
    """Latents of one context with what a reader must know to trust them."""

    wire_id: bytes
    """First 8 bytes of the sha256 of the weights that made it."""
    reader: str
    """Name of the LM that it was made for."""
    latents: Latents

    def to_bytes(self) -> bytes:
        """The message as it travels."""
        layers, heads, slots, width = self.latents.keys.shape
        name = self.reader.encode()
        header = _HEADER.pack(
            MAGIC,
            VERSION,
            self.wire_id,
            layers,
            heads,
            width,
            slots,
            self.latents.span,
            BITS,
            len(name),
        )
        both = torch.stack([self.latents.keys, self.latents.values]).detach().cpu()
        # Past the largest half float a value would become infinite and poison every answer.
        return header + name + both.clamp(-65504, 65504).numpy().astype("<f2").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Message:
        """The inverse; lengths are checked before anything is allocated. Raises MessageError."""
        if len(data) < _HEADER.size or data[:4] != MAGIC:
            raise MessageError(
                f"not a wire message: {len(data)} bytes, expected a header {MAGIC!r}"
            )
        fields = _HEADER.unpack_from(data)
        _, version, wire_id, layers, heads, width, slots, span, bits, name_length = fields
        if version != VERSION or bits != BITS:
            raise MessageError(
                f"message version {version} with {bits} bits; this release reads version {VERSION} "
                f"with {BITS}"
            )
        start = _HEADER.size + name_length
        values = 2 * layers * heads * slots * width
        if values == 0 or len(data) != start + 2 * values:
            raise MessageError(
                f"message has {len(data)} bytes; its header says {start + 2 * values}"
            )
        try:
            reader = data[_HEADER.size : start].decode()
        except UnicodeDecodeError:
            raise MessageError("the reader's name in the message is not UTF-8") from None
        both = np.frombuffer(data, "<f2", values, start).astype(np.float32)
        if not np.isfinite(both).all():
            raise MessageError(
                "message holds values that are not finite; it was altered on the way"
            )
        keys, vals = torch.from_numpy(both).view(2, layers, heads, slots, width)
        return cls(wire_id, reader, Latents(keys, vals, span))


def size_of(reader: str, values: int) -> int:
    """Bytes of a message with so many values, keys and values together."""
    return _HEADER.size + len(reader.encode()) + values * BITS // 8
