"""Messages: every byte of them, what comes out of damaged ones, and texts that are hard to send."""

import struct
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import CONFIGS, tiny_lm, tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from latentwire.lm import FrozenLM, Prompt
from latentwire.wire.codec import BITS, pack, packed_size, unpack
from latentwire.wire.compressed_kv import CompressedKV
from latentwire.wire.message import Message, MessageError
from latentwire.wire.wire import Wire, WireConfig, WireError

GOLDEN = {
    16: (
        "4c5749520300e33117fc000102030405060700112233aabbccdd01000200020007000000100774696e79"
        "2dc3a903000000010000000000020003000600000000bc003e003c0042003400c8003c004000000040ff"
        "7b0040000000380000"
    ),
    8: (
        "4c574952030087d5f33d000102030405060700112233aabbccdd01000200020007000000080774696e79"
        "2dc3a903000000010000000000020003000600000000bc00c8003c004000000038000006220420000000"
        "000000045c00000000000080ffff9f0000000000ff00000000"
    ),
    6: (
        "4c5749520300551ee2b7000102030405060700112233aabbccdd01000200020007000000060774696e79"
        "2dc3a903000000010000000000020003000600000000bc00c8003c0040000000380000182a1028000000"
        "0000001064000000000000feff09000000fc000000"
    ),
    4: (
        "4c57495203000c9bccb7000102030405060700112233aabbccdd01000200020007000000040774696e79"
        "2dc3a903000000010000000000020003000600000000bc00c8003c004000000038000066324430000000"
        "000000446c0000000000f89f0000f00000"
    ),
}
"""What SMALL travels as."""


def latents(layers=1, heads=1, slots=3, width=2, span=7) -> CompressedKV:
    """Heads with `slots` and with fewer, in turn, anywhere in the span."""
    generator = torch.Generator().manual_seed(0)
    lengths = slots - torch.arange(layers * heads).view(layers, heads) % min(slots, 3)
    keys, values = torch.randn(2, int(lengths.sum()), width, generator=generator)
    places = [
        torch.randint(span, (n,), generator=generator).sort().values
        for n in lengths.flatten().tolist()
    ]
    return CompressedKV(keys * 5 + 3, values, torch.cat(places), lengths, span)


SMALL = Message(
    bytes(range(8)),
    "tiny-é",
    "00112233aabbccdd",
    CompressedKV(
        torch.tensor([[0.0, -1.0], [1.5, 1.0], [3.0, 0.25], [-8.0, 1.0]]),
        torch.tensor([[2.0, 0.0], [2.0, 70000.0], [2.0, 1e-9], [0.5, 0.0]]),
        torch.tensor([0, 2, 5, 6]),
        torch.tensor([[3, 1]]),
        span=7,
    ),
)


def read_as_documented(data: bytes) -> tuple[dict, np.ndarray, np.ndarray]:
    """A reader written from docs/wire-format.md alone: header, keys and values [S, E]."""
    magic, version, checksum = struct.unpack_from("<4sHI", data, 0)
    assert magic == b"LWIR" and version == 3 and checksum == zlib.crc32(data[10:])
    wire_id, fingerprint = data[10:18], data[18:26]
    layers, heads, width, span, bits, n = struct.unpack_from("<HHHIBB", data, 26)
    name, at = data[38 : 38 + n].decode("utf-8"), 38 + n
    lengths = struct.unpack_from(f"<{layers * heads}I", data, at)
    slots, at = sum(lengths), at + 4 * layers * heads
    gaps, at = struct.unpack_from(f"<{slots}H", data, at), at + 2 * slots
    places, groups, group_of = [], 0, []
    for length in lengths:
        position = 0
        for i in range(length):
            position += gaps[len(places)]
            places.append(position)
            group_of.append(groups + i // 64)
        groups += -(-length // 64)
    count = 2 * slots * width
    if bits == 16:
        x = np.array(struct.unpack_from(f"<{count}e", data, at), dtype=np.float32)
        assert len(data) == at + 2 * count
    else:
        scales = 2 * groups * width
        lowest = struct.unpack_from(f"<{scales}e", data, at)
        step = struct.unpack_from(f"<{scales}e", data, at + 2 * scales)
        stream = int.from_bytes(data[at + 4 * scales :], "little")
        assert len(data) == at + 4 * scales + -(-count * bits // 8)
        x = np.empty(count, dtype=np.float32)
        for i in range(count):
            code = (stream >> (i * bits)) & (2**bits - 1)
            half, slot, channel = i // (slots * width), i // width % slots, i % width
            scale = (half * groups + group_of[slot]) * width + channel
            x[i] = np.float32(lowest[scale]) + np.float32(code) * np.float32(step[scale])
    both = x.reshape(2, slots, width)
    header = {"wire_id": wire_id, "fingerprint": fingerprint, "name": name, "span": span}
    header |= {"bits": bits, "lengths": lengths, "positions": places}
    return header, both[0], both[1]


@pytest.mark.parametrize("bits", BITS)
def test_golden_bytes(bits):
    data = replace(SMALL, bits=bits).to_bytes()
    assert data.hex() == GOLDEN[bits]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("slots", [1, 3, 64, 65, 130])
def test_a_reader_of_the_document_reads_the_same(bits, slots):
    sent = Message(b"wire-id.", "tiny", "0123456789abcdef", latents(2, 3, slots, 5, 999), bits)
    data = sent.to_bytes()
    header, keys, values = read_as_documented(data)
    assert header == {
        "wire_id": b"wire-id.",
        "fingerprint": bytes.fromhex("0123456789abcdef"),
        "name": "tiny",
        "span": 999,
        "bits": bits,
        "lengths": tuple(sent.latents.lengths.flatten().tolist()),
        "positions": sent.latents.positions.tolist(),
    }
    read = Message.from_bytes(data)
    assert (read.wire_id, read.reader, read.fingerprint) == (b"wire-id.", "tiny", sent.fingerprint)
    assert read.bits == bits and read.latents.span == 999
    assert torch.equal(read.latents.lengths, sent.latents.lengths)
    assert torch.equal(read.latents.positions, sent.latents.positions)
    np.testing.assert_array_equal(read.latents.keys.numpy(), keys)
    np.testing.assert_array_equal(read.latents.values.numpy(), values)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_no_value_is_off_by_more_than_half_a_step(bits, scale):
    sent = latents(2, 2, 100, 8)
    x = torch.stack([sent.keys, sent.values]) * scale
    lengths = sent.lengths.numpy()
    codes = pack(*x, lengths, bits)
    assert len(codes) == packed_size(lengths, 8, bits)
    error = (torch.stack(unpack(codes, lengths, 8, bits)) - x).abs()
    # A half float has 11 binary digits and nothing below 2**-24, which 255 steps add up to 2**-16.
    rounding = x.abs().amax() * 2**-10 + 2**-16
    spread = 0.0 if bits == 16 else (x.amax(1) - x.amin(1)).amax() / (2**bits - 1) / 2
    assert error.max() <= spread + rounding


def test_what_no_half_float_holds_is_the_largest_one_and_equal_values_stay_equal():
    for bits in BITS:
        read = Message.from_bytes(replace(SMALL, bits=bits).to_bytes()).latents
        assert read.values[:3, 0].tolist() == [2.0, 2.0, 2.0]
        assert read.values[1, 1] == pytest.approx(65504, rel=2**-10)
    with pytest.raises(MessageError, match="a message's key has NaN or infinite"):
        replace(
            SMALL, latents=replace(SMALL.latents, keys=torch.full((4, 2), torch.nan))
        ).to_bytes()
    far = replace(SMALL.latents, positions=torch.tensor([0, 2, 65_538, 6]), span=70_000)
    with pytest.raises(MessageError, match="65536 positions apart; expected at most 65535"):
        replace(SMALL, latents=far).to_bytes()


def sealed(data: bytes) -> bytes:
    """With the checksum that these bytes should have: damage done on purpose."""
    return data[:6] + struct.pack("<I", zlib.crc32(data[10:])) + data[10:]


def edited(offset: int, form: str, value: int) -> bytes:
    data = bytearray(SMALL.to_bytes())
    struct.pack_into(form, data, offset, value)
    return sealed(bytes(data))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a wire message: 0 bytes"),
        (b"PK\x03\x04" + bytes(60), "not a wire message: 64 bytes"),
        (b"LWTX" + bytes(60), "a message of another kind of wire"),
        (SMALL.to_bytes()[:37], "its header alone has 38"),
        (SMALL.to_bytes()[:50], "its table of heads ends at 53"),
        (SMALL.to_bytes()[:-1], "message has 92 bytes; its header says 93"),
        (SMALL.to_bytes() + b"\0", "message has 94 bytes; its header says 93"),
        (SMALL.to_bytes()[:-1] + b"\1", "altered on the way: its checksum differs"),
        (edited(4, "<H", 4), "version 4; this release reads version 3: update latentwire"),
        (edited(4, "<H", 2), "version 2; this release reads version 3: send the text again"),
        (edited(30, "<H", 0), "holds no latents"),
        (edited(32, "<I", 0), "holds no latents"),
        (edited(36, "<B", 5), "no codec has 5 bits; expected one of 16, 8, 6, 4"),
        (edited(38, "<B", 255), "name in the message is not UTF-8"),
        (edited(49, "<I", 0), "has a head without latents"),
        (edited(53, "<H", 7), "a latent at position 12 of 7"),
        (edited(61, "<H", 0x7C00), "NaN or infinite"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(data, said):
    with pytest.raises(MessageError, match=said) as error:
        Message.from_bytes(data)
    assert "\n" not in str(error.value)


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
        elif kind == 3 and len(changed) >= 53:
            form, offset = [("<H", 26), ("<H", 28), ("<H", 30), ("<I", 32), ("<B", 36), ("<I", 45)][
                int(random.integers(6))
            ]
            most = 256 ** struct.calcsize(form) - 1
            struct.pack_into(form, changed, offset, int(random.choice([0, 1, 2, 3, 4, 6, 8, most])))
    return sealed(bytes(changed)) if random.random() < 0.7 else bytes(changed)


def test_two_thousand_mutated_messages_are_read_rightly_or_refused():
    random = np.random.default_rng(0)
    whole = [replace(SMALL, latents=latents(2, 2), bits=bits).to_bytes() for bits in BITS]
    read = 0
    tracemalloc.start()
    for i in range(2_000):
        data = mutated(whole[i % 4], random)
        try:
            got = Message.from_bytes(data).latents
        except MessageError as error:
            assert "\n" not in str(error)
        else:
            read += 1
            layers, heads, width, span = struct.unpack_from("<HHHI", data, 26)
            assert got.lengths.shape == (layers, heads) and got.lengths.min() >= 1
            assert got.keys.shape == got.values.shape == (got.lengths.sum(), width)
            assert len(got.positions) == len(got.keys) and got.positions.min() >= 0
            assert got.span == span > got.positions.max() and torch.isfinite(got.keys).all()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert read > 100  # else only the header's checks were tried
    assert peak < 1_000_000


@pytest.mark.parametrize("bits", BITS)
def test_reading_takes_memory_in_proportion_to_the_message(bits):
    data = replace(SMALL, latents=latents(4, 4, 70, 64), bits=bits).to_bytes()
    tracemalloc.start()
    Message.from_bytes(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 * len(data)


def make_wire(lm: FrozenLM, **config) -> Wire:
    config = {"window": 64, "rank": 4, "format_tokens": 3} | config
    wire = Wire(lm, WireConfig(lm.name, **config))
    torch.nn.init.normal_(wire.scorer.weight, generator=torch.Generator().manual_seed(1))
    return wire


@pytest.mark.parametrize("family", CONFIGS)
def test_a_wires_messages_are_as_long_as_it_says_and_are_read(family):
    lm = tiny_lm(family)
    wire, text = make_wire(lm), "The lighthouse was built in 1759 by John Smeaton."
    sent = wire.encode([text])[0]
    for bits in BITS:
        message = wire.send([text], bits)[0]
        data = message.to_bytes()
        assert wire.cost(text, bits) == (len(sent), len(data)) == (wire.latents(text), len(data))
        assert (message.fingerprint, message.reader) == (lm.fingerprint, lm.name)
        prefix = wire.receive([Message.from_bytes(data)])
        got = torch.cat([slots.keys for slots in prefix.ragged])
        torch.testing.assert_close(got, sent.keys, atol=8 * 2.0**-bits + 1e-3, rtol=0)
        places = torch.cat([slots.positions for slots in prefix.ragged])
        assert torch.equal(places, sent.positions + len(wire.head))
    with pytest.raises(MessageError, match="no codec has 5 bits"):
        wire.send([text], 5)


def test_a_message_for_another_is_refused():
    lm = tiny_lm("llama")
    wire = make_wire(lm)
    message = wire.send(["Short one."])[0]
    with pytest.raises(MessageError, match=r"message of wire .* for tiny-llama; this is wire"):
        make_wire(lm, rank=5).receive([message])
    with pytest.raises(MessageError, match=r"for gemma3-270m; this is wire .* for tiny-llama"):
        wire.receive([replace(message, reader="gemma3-270m")])
    with pytest.raises(MessageError, match="shape is not this wire's"):
        wire.receive([replace(message, latents=latents())])
    with pytest.raises(MessageError, match="takes up 4294967295 positions with 3 latents"):
        wire.receive([replace(message, latents=replace(message.latents, span=2**32 - 1))])
    most = 4 * (lm.context_length - len(wire.head))
    lengths, n = message.latents.lengths.clone(), int(message.latents.lengths.sum())
    lengths[0, 0] += most
    forged = CompressedKV(
        torch.zeros(n + most, 8), torch.zeros(n + most, 8),
        torch.zeros(n + most, dtype=torch.long), lengths, 1,
    )  # fmt: skip
    data = replace(message, latents=forged, bits=4).to_bytes()
    with pytest.raises(MessageError, match=f"slots; at 4x a text has at most {most} tokens"):
        wire.receive([Message.from_bytes(data)])
    with pytest.raises(WireError, match="window is 40000; expected at most 32767"):
        make_wire(lm, window=40_000)
    with pytest.raises(MessageError, match="no messages; expected at least one"):
        wire.receive([])
    with pytest.raises(MessageError, match="at least one latent"):
        none = message.latents.keys[:0]
        where = torch.zeros(0, dtype=torch.long)
        replace(message, latents=CompressedKV(none, none, where, message.latents.lengths * 0, 1))
    with pytest.raises(MessageError, match="name has 300 bytes; expected at most 255"):
        replace(message, reader="x" * 300).to_bytes()
    with pytest.warns(UserWarning, match="made with another copy of tiny-llama"):
        wire.receive([replace(message, fingerprint="0" * 16)])


def test_a_hundred_thousand_characters():
    text = ("Of lighthouses, the one at Eddystone is the best known. " * 2000)[:100_000]
    small = make_wire(tiny_lm("llama"))
    with pytest.raises(WireError, match="context has 100000 tokens; at most") as error:
        small.send([text])
    assert "\n" not in str(error.value)
    torch.manual_seed(0)
    config = LlamaConfig(**CONFIGS["llama"].to_dict() | {"max_position_embeddings": 30_000})
    lm = FrozenLM(AutoModelForCausalLM.from_config(config), tokenizer(), "tiny-long")
    wire = make_wire(lm, window=512)
    data = wire.send([text], 4)[0].to_bytes()
    assert wire.cost(text, 4) == (25_000, len(data))
    message = Message.from_bytes(data)
    assert len(message.latents) == 25_000 >= message.latents.span / 4
    prefix = wire.receive([message])
    with torch.no_grad():
        assert lm.last_hidden(Prompt.from_ids(lm, [lm.tokenize("?")], prefix)).isfinite().all()


def test_texts_that_the_tokenizer_cannot_hold():
    wire = make_wire(tiny_lm("llama"))
    with pytest.raises(WireError, match="context 1 is empty"):
        wire.send(["full", ""])
    # What any encoding can write goes through: scripts, control characters, unmatched accents.
    odd = ["灯台は1759年に", "\x00\x07\ufeff", "e\u0301\u0301 \U0001f980", " \n"]
    spans = [m.latents.span for m in wire.send(odd)]
    assert spans == [len(text.encode()) for text in odd]
    with pytest.raises(ValueError, match=r"text has '\\ud800' at character 1, half of a surrogate"):
        wire.send(["a\ud800"])
    known = {"<unk>": 0, "<bos>": 1, "<eos>": 2, "built": 3, "in": 4}
    words = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    lm = tiny_lm("llama")
    lm.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<bos>", eos_token="<eos>"
    )
    with pytest.raises(WireError, match="context 0: tiny-llama's tokenizer cannot hold all of it"):
        make_wire(lm).send(["built in Rome"])
    assert len(make_wire(lm).send(["built  in"])[0].latents) == 1
