"""Shared messages and their code: every byte, and what comes out of damaged ones."""

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from vector_quantize_pytorch import FSQ

from latentwire.wire.learned import fsq
from latentwire.wire.learned.shared_message import HEADER_BYTES, SharedMessage, message_size
from latentwire.wire.message import MessageError

SMALL = SharedMessage(
    bytes(range(8)), torch.tensor([[0, 15, 3], [8, 7, 1], [2, 4, 9]]), bits=4, span=11
)
GOLDEN = "4c57534801ea7b87d5000102030405060703000b0000000304f083174209"
"""What SMALL travels as."""


def read_as_documented(data: bytes) -> dict:
    """A reader written from docs/wire-format.md alone."""
    magic, version, checksum = struct.unpack_from("<4sBI", data, 0)
    assert magic == b"LWSH" and version == 1 and checksum == zlib.crc32(data[9:])
    latents, span, channels, bits = struct.unpack_from("<HIBB", data, 17)
    stream = int.from_bytes(data[25:], "little")
    assert len(data) == 25 + -(-latents * channels * bits // 8)
    codes = [(stream >> (i * bits)) & (2**bits - 1) for i in range(latents * channels)]
    return {
        "wire_id": data[9:17],
        "span": span,
        "bits": bits,
        "codes": np.array(codes).reshape(latents, channels),
    }


def test_golden_bytes():
    assert SMALL.to_bytes().hex() == GOLDEN
    assert len(SMALL.to_bytes()) == message_size(3, 3, 4) == HEADER_BYTES + 5


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_reader_of_the_document_reads_the_same(bits):
    codes = torch.randint(2**bits, (7, 5), generator=torch.Generator().manual_seed(bits))
    sent = SharedMessage(b"wire-id.", codes, bits, 70_000)
    told, read = read_as_documented(sent.to_bytes()), SharedMessage.from_bytes(sent.to_bytes())
    assert (told["wire_id"], told["span"], told["bits"]) == (b"wire-id.", 70_000, bits)
    assert (read.wire_id, read.span, read.bits) == (b"wire-id.", 70_000, bits)
    assert torch.equal(read.codes, codes) and (told["codes"] == codes.numpy()).all()


def test_a_thousand_bytes_of_text_fit_in_250():
    # 1,000 bytes are about 220 tokens; a latent of 8 codes of 4 bits stands for 4 of them.
    assert message_size(55, 8, 4) == 245


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_code_is_the_librarys(bits):
    x = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    library = FSQ([2**bits] * 4, preserve_symmetry=True, return_indices=False)
    expected, got = library(theirs)[0], fsq.bounded(ours, bits)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    (expected * weight).sum().backward()
    (got * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(fsq.values(fsq.nearest(got, bits), bits), got.detach())


def sealed(data: bytes) -> bytes:
    """With the checksum that these bytes should have: damage done on purpose."""
    return data[:5] + struct.pack("<I", zlib.crc32(data[9:])) + data[9:]


def edited(offset: int, form: str, value: int) -> bytes:
    data = bytearray(SMALL.to_bytes())
    struct.pack_into(form, data, offset, value)
    return sealed(bytes(data))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a shared message: 0 bytes"),
        (b"LWIR" + bytes(50), "a message of another kind of wire"),
        (SMALL.to_bytes()[:24], "its header alone has 25"),
        (SMALL.to_bytes()[:-1], "message has 29 bytes; its header says 30"),
        (SMALL.to_bytes() + b"\0", "message has 31 bytes; its header says 30"),
        (SMALL.to_bytes()[:-1] + b"\1", "altered on the way: its checksum differs"),
        (edited(4, "<B", 2), "version 2; this release reads version 1: update latentwire"),
        (edited(4, "<B", 0), "version 0; this release reads version 1: send the text again"),
        (edited(17, "<H", 0), "holds 0 latents"),
        (edited(19, "<I", 0), "over 0 positions"),
        (edited(23, "<B", 0), "of 0 codes"),
        (edited(24, "<B", 9), "of 9 bits"),
    ],
)
def test_what_is_no_message_is_refused_in_one_line(data, said):
    with pytest.raises(MessageError, match=said) as error:
        SharedMessage.from_bytes(data)
    assert "\n" not in str(error.value)


def test_every_flipped_bit_is_seen():
    whole = SMALL.to_bytes()
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(MessageError):
            SharedMessage.from_bytes(bytes(data))


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """Cut off, longer, with bits flipped, or with a field of the header set to an extreme."""
    changed = bytearray(data)
    for _ in range(int(random.integers(1, 4))):
        kind, place = random.integers(4), int(random.integers(len(changed) or 1))
        if kind == 0:
            del changed[place:]
        elif kind == 1:
            changed += random.bytes(int(random.integers(1, 9)))
        elif kind == 2 and changed:
            changed[place] ^= 1 << int(random.integers(8))
        elif kind == 3 and len(changed) >= HEADER_BYTES:
            forms = [("<H", 17), ("<I", 19), ("<B", 23), ("<B", 24)]
            form, offset = forms[int(random.integers(4))]
            most = 256 ** struct.calcsize(form) - 1
            struct.pack_into(form, changed, offset, int(random.choice([0, 1, 2, 3, 4, 8, most])))
    return sealed(bytes(changed)) if random.random() < 0.7 else bytes(changed)


def test_two_thousand_mutated_messages_are_read_rightly_or_refused():
    random, read = np.random.default_rng(0), 0
    whole = [
        SharedMessage(b"wire-id.", torch.randint(2**bits, (6, 4)), bits, 20).to_bytes()
        for bits in range(1, 9)
    ]
    tracemalloc.start()
    for i in range(2_000):
        data = mutated(whole[i % 8], random)
        try:
            got = SharedMessage.from_bytes(data)
        except MessageError as error:
            assert "\n" not in str(error)
        else:
            read += 1
            latents, span, channels, bits = struct.unpack_from("<HIBB", data, 17)
            assert got.codes.shape == (latents, channels) and (got.span, got.bits) == (span, bits)
            assert 0 <= int(got.codes.min()) <= int(got.codes.max()) < 2**bits
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert read > 100  # else only the header's checks were tried
    assert peak < 1_000_000
