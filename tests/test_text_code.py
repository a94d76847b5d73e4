"""The text code and its message: lossless on both sides of a float, whatever the text, and every
damaged message an error."""

import random
import struct
import zlib
from dataclasses import replace

import pytest
import torch
from tiny import CONFIGS, tiny_lm

from latentwire.lm import FrozenLM
from latentwire.wire import text_code
from latentwire.wire.message import MessageError
from latentwire.wire.text_code import CODES, LENGTHS, MARGIN, TextCode, certain_ranks
from latentwire.wire.text_message import HEADER_BYTES, TextMessage
from latentwire.wire.text_wire import TextWire
from latentwire.wire.wire import Wire, WireConfig, WireError

TEXTS = [
    "The lighthouse was finished in 1759 by John Smeaton.",
    "x",
    " \n\ttabs and  spaces \r\n",
    "東京は日本の首都です 😀 naïve <eos> </s>",
    "A text of more than one window. " * 20,
]
DOCUMENTED = (
    "0 100 1010 1011 1100 11100 11101 11110 111110 1111110 11111110 111111110 111111111 1101"
)
"""The prefix code as docs/wire-format.md has it."""


@pytest.fixture(scope="module")
def llama() -> FrozenLM:
    return tiny_lm("llama")


@pytest.fixture
def short_windows(monkeypatch) -> int:
    """Windows of 32 tokens: decoding takes as many passes as a window has tokens."""
    monkeypatch.setattr(text_code, "CHUNK", 32)
    return 32


def wire_of(lm: FrozenLM) -> TextWire:
    return TextWire(lm, [Wire(lm, WireConfig(lm.name, rank=4, window=64))])


@torch.no_grad()
def read_as_documented(data: bytes, lm: FrozenLM) -> str:
    """A receiver written from docs/wire-format.md alone, on Hugging Face's own forward."""
    magic, version, checksum = struct.unpack_from("<4sBI", data, 0)
    assert magic == b"LWTX" and version == 1 and checksum == zlib.crc32(data[9:])
    source, text_checksum, tokens = struct.unpack_from("<8sII", data, 9)
    assert source.hex() == lm.fingerprint
    stream = "".join(f"{byte:08b}" for byte in data[25:])
    classes = {code: c for c, code in enumerate(DOCUMENTED.split())}
    id_bits, ids, place = (CONFIGS["llama"].vocab_size - 1).bit_length(), [], 0

    def take(count: int) -> str:
        nonlocal place
        place += count
        return stream[place - count : place]

    for i in range(tokens):
        code = take(1)
        while code not in classes:
            code += take(1)
        if classes[code] == 13:
            ids.append(int(take(id_bits), 2))
            continue
        rank = 2 ** classes[code] - 1 + int("0" + take(classes[code]), 2)
        before = [2, *ids[i // 256 * 256 :]]
        logits = lm.model(input_ids=torch.tensor([before])).logits[0, -1]
        ids.append(logits.sort(descending=True).indices[rank].item())
    assert set(stream[place:]) <= {"0"} and len(stream) - place < 8
    text = lm.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert zlib.crc32(text.encode()) == text_checksum
    return text


@pytest.mark.parametrize("family", CONFIGS)
def test_every_text_comes_back_to_the_letter(family):
    wire = wire_of(tiny_lm(family))
    messages = [TextMessage.from_bytes(m.to_bytes()) for m in wire.send(TEXTS)]
    assert wire.texts(messages[::-1]) == TEXTS[::-1]  # windows of several lengths in any order


@pytest.mark.parametrize("text", TEXTS)
def test_a_receiver_of_the_document_reads_the_same(llama, text):
    assert read_as_documented(wire_of(llama).send([text])[0].to_bytes(), llama) == text


def test_the_prefix_code_is_the_documents_and_complete():
    assert DOCUMENTED.split() == CODES
    assert sum(2**-n for n in LENGTHS) == 1


def test_golden_bytes():
    message = TextMessage("00" * 8, 0x01020304, 3, b"\xab\xcd")
    rest = bytes(8) + bytes([4, 3, 2, 1, 3, 0, 0, 0, 0xAB, 0xCD])
    assert message.to_bytes() == b"LWTX\x01" + struct.pack("<I", zlib.crc32(rest)) + rest
    assert TextMessage.from_bytes(message.to_bytes()) == message


@pytest.mark.usefixtures("short_windows")
def test_float64_reads_what_float32_wrote_and_the_other_way_round(llama):
    double = tiny_lm("llama", torch.float64)
    double.model.load_state_dict(llama.model.state_dict())
    for sender, receiver in ((llama, double), (double, llama)):
        messages = wire_of(sender).send(TEXTS)
        assert TextCode(receiver).decode([(m.tokens, m.code) for m in messages]) == TEXTS


@pytest.mark.usefixtures("short_windows")
def test_only_the_margin_saves_a_receiver_whose_logits_differ(monkeypatch):
    lm = tiny_lm("llama")
    head = lm.model.get_output_embeddings().weight.data
    head[1::2] = head[::2] + 1e-6 * torch.randn_like(head[::2])  # each token has a near twin
    exact = lm.head

    def shaken(final):
        logits = exact(final)
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(logits.shape, generator=generator) - 0.5
        return logits + 0.99 * MARGIN * logits.abs().amax(-1, keepdim=True) * noise

    def through(margin: float) -> list[str]:
        monkeypatch.setattr(text_code, "MARGIN", margin)
        monkeypatch.setattr(lm, "head", exact)
        coded = [TextCode(lm).encode(text) for text in TEXTS]
        monkeypatch.setattr(lm, "head", shaken)
        return TextCode(lm).decode(coded)

    assert through(MARGIN) == TEXTS
    assert through(0.0) != TEXTS


def test_ranks_by_hand():
    logits = torch.tensor([[5.0, 9.0, 1.0, 7.0], [5.0, 9.0, 1.0, 5.0], [5.0, 9.0, 1.0, 5.0 + 1e-4]])
    assert list(certain_ranks(logits, torch.tensor([0, 0, 0]))) == [2, None, None]
    assert list(certain_ranks(logits, torch.tensor([1, 2, 1]))) == [0, 3, 0]


def test_windows_are_decoded_side_by_side(llama, short_windows, monkeypatch):
    code, text, rows = TextCode(llama), "word " * 36, []
    tokens, data = code.encode(text)
    head = llama.head
    monkeypatch.setattr(llama, "head", lambda final: rows.append(len(final)) or head(final))
    assert tokens == 180 and code.decode([(tokens, data)]) == [text]
    assert rows == [6] * short_windows
    monkeypatch.setattr(text_code, "BATCH", 4)
    rows.clear()
    assert code.decode([(tokens, data)]) == [text]
    assert rows == [4] * short_windows + [2] * short_windows


def test_a_message_with_one_bit_changed_cut_off_or_of_another_end_is_refused(llama):
    whole = wire_of(llama).send(TEXTS[:1])[0].to_bytes()
    rng = random.Random(0)
    damaged = [
        whole[:i] + bytes([whole[i] ^ 1 << bit]) + whole[i + 1 :]
        for i in range(len(whole))
        for bit in range(8)
    ]
    damaged += [whole[:i] for i in range(len(whole))]
    damaged += [whole[: rng.randrange(len(whole))] + rng.randbytes(20) for _ in range(1_000)]
    for data in damaged:
        with pytest.raises(MessageError):
            TextMessage.from_bytes(data)


def test_altered_codes_under_a_right_checksum_are_seen(llama):
    wire = wire_of(llama)
    message, rng = wire.send(TEXTS[:1])[0], random.Random(0)
    for _ in range(100):
        code = bytearray(message.code)
        code[rng.randrange(len(code))] ^= 1 << rng.randrange(8)
        tokens = message.tokens + rng.choice((-1, 0, 0, 1))
        with pytest.raises(MessageError):
            wire.texts([replace(message, code=bytes(code), tokens=tokens)])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a text message: 0 bytes"),
        (b"LWSH" + bytes(30), "a message of another kind of wire"),
        (b"LWIR" + bytes(30), "a message of another kind of wire"),
        (
            b"LWTX\x02" + bytes(30),
            "text message of version 2; this release reads version 1: update latentwire",
        ),
        (b"LWTX\x01" + bytes(5), f"message has 10 bytes; its header alone has {HEADER_BYTES}"),
    ],
)
def test_bytes_that_are_no_such_message(data, said):
    with pytest.raises(MessageError, match=said):
        TextMessage.from_bytes(data)


def test_no_header_claims_more_than_its_bytes_hold():
    for tokens in (0, 17, 2**32 - 1):
        data = TextMessage("00" * 8, 0, tokens, b"\0\0").to_bytes()
        with pytest.raises(MessageError, match=f"{tokens} tokens in 2 bytes of code"):
            TextMessage.from_bytes(data)


def test_what_cannot_be_coded_says_why(llama, monkeypatch):
    with pytest.raises(WireError, match="the text is empty"):
        wire_of(llama).send([""])
    wire = wire_of(llama)
    with pytest.raises(MessageError, match="of 0 tokens"):
        wire.texts([replace(wire.send(["x"])[0], tokens=0)])
    with pytest.raises(MessageError, match="a text of 8193 tokens; tiny-llama holds 8192"):
        wire.readers[0].open([replace(wire.send(["x"])[0], tokens=8193)])
    with pytest.raises(ValueError, match="half of a surrogate"):
        wire_of(llama).send(["\ud800"])
    monkeypatch.setattr(llama.tokenizer, "decode", lambda *_, **__: "X")
    with pytest.raises(WireError, match="does not give the text back to the letter"):
        wire_of(llama).send(["x"])
    monkeypatch.undo()
    with pytest.raises(WireError, match=r"its code needs torch\.float32"):
        TextCode(tiny_lm("llama", torch.bfloat16))
    other = tiny_lm("qwen2")
    assert other.fingerprint != llama.fingerprint
    with pytest.raises(MessageError, match="source is tiny-qwen2"):
        wire_of(other).texts(wire_of(llama).send(["x"]))
