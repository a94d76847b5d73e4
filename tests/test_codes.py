"""Latent codes: the code, its message, decoders, and the fit in closed form."""

from dataclasses import replace

import pytest
import torch
from tiny import tiny_lm

from latentwire.cli.ask import _told
from latentwire.lm import KVPrefix, Prompt
from latentwire.lm.families import rotate
from latentwire.tasks.qa import Passage, Question, ask
from latentwire.wire.codes.attention import attention_losses
from latentwire.wire.codes.code import REACH, Code, CodeConfig, read
from latentwire.wire.codes.decoder import normed
from latentwire.wire.codes.fitting import (
    Fit,
    Sensitivity,
    Sums,
    fit_code,
    fit_decoder,
    pairs,
    reader_cache,
)
from latentwire.wire.codes.message import HEADER_BYTES, CodeMessage
from latentwire.wire.codes.reader import CodeReader, Codes
from latentwire.wire.codes.recording import reader_attention
from latentwire.wire.codes.wire import CodeWire, Source
from latentwire.wire.compressed_kv import head_of
from latentwire.wire.folder import WireError
from latentwire.wire.message import MessageError

TEXT = "The lighthouse was finished in 1759 by John Smeaton."
WORDS = [*TEXT.split(), "a river", "the old town", "1795", "rye bread", "Elm Street", "blue", "who"]


def texts(count: int) -> list[str]:
    """Different texts of a few words."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(len(WORDS), (count, 8), generator=generator).tolist()
    return [" ".join(WORDS[i] for i in row) for row in draws]


def fitted(source, reader, channels: int, bits: int = 8, count: int = 40) -> CodeWire:
    """A wire of one reader, in closed form."""
    config = CodeConfig(source.name, tuple(range(len(source.blocks))), channels, bits)
    code, part = Code(config, source.width), CodeReader(reader, channels, 4, 2)
    torch.nn.init.normal_(part.format)
    sums = Sums(len(code.weight), len(part.decoder.bias))
    sensitivity, start = Sensitivity(reader), len(reader.frame.prefix)
    for text in texts(count):
        with torch.no_grad():
            features = read(source, head_of(source), config, source.tokenize(text))
            prefix = reader.prefill(
                Prompt.from_ids(reader, [reader.tokenize(text)], head_of(reader))
            )
        owner = pairs(source.offsets(text)[:, 1], reader.offsets(text)[:, 1])
        sums.add(features[owner], reader_cache(reader, prefix, start))
        if sensitivity.rows == 0:
            passage = Passage(text, (Question("1", text, "Which?", ("blue",)),))
            sensitivity.add(reader, part.format, passage, prefix, start)
    saved = fit_code(code, [Fit(sums, sensitivity)])
    assert (saved[:-1] >= saved[1:] - 1e-6).all()
    fit_decoder(code, part, sums, sensitivity)
    return CodeWire(code, Source.of(source), [part])


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_a_code_of_its_own_states_is_the_text_to_its_reader(family):
    """A model's keys and values are linear in its normed states, so a code as wide as these, with
    decoders in closed form, must give the logits of the model's own cache."""
    lm = tiny_lm(family)
    wire = fitted(lm, lm, channels=len(lm.blocks) * lm.width)
    (reader,) = wire.readers
    question = lm.tokenize("\n\nWhen was it?")
    (message,) = wire.send([TEXT])
    whole = lm.prefill(Prompt.from_ids(lm, [lm.tokenize(TEXT)], head_of(lm)))
    with torch.no_grad():
        want = lm.head(lm.last_hidden(Prompt.from_ids(lm, [question], whole)))
        got = lm.head(lm.last_hidden(Prompt.from_ids(lm, [question], reader.receive([message]))))
        mean = reader.prefix([content.means() for content in reader.open([message])])
        blank = lm.head(lm.last_hidden(Prompt.from_ids(lm, [question], mean)))
    error, nothing = (got - want).square().mean(), (blank - want).square().mean()
    assert error < 0.01 * nothing, (error, nothing)


def test_attention_to_the_readers_own_cache_costs_nothing():
    """Recorded queries against the keys they were recorded with, each token's at its own place."""
    lm = tiny_lm("gemma3")
    wire = fitted(lm, lm, channels=8)
    (reader,), ids = wire.readers, lm.tokenize(TEXT)
    passage = Passage(TEXT, (Question("1", TEXT, "Who?", ("John",)),))
    recorded = reader_attention(lm, reader.format, lm, len(ids), passage)
    own = lm.prefill(Prompt.from_ids(lm, [ids], head_of(lm)))
    flat = reader_cache(lm, own, len(lm.frame.prefix))
    keys, values = flat.view(len(ids), *reader.decoder.shape).permute(2, 1, 3, 0, 4)
    losses = attention_losses(reader, keys, values, recorded)
    assert all(loss < 2e-3 for loss in losses.values()), losses  # recorded in bfloat16
    further = recorded | {"offsets": recorded["offsets"] + 5}  # a source that splits it into more
    assert all(loss.isfinite() for loss in attention_losses(reader, keys, values, further).values())
    blank = attention_losses(reader, *reader.decoder.mean_slots(len(ids)), recorded)
    assert all(blank[name] > 20 * loss for name, loss in losses.items()), (losses, blank)


def test_who_read_is_told_apart_from_who_answers():
    source, reader = tiny_lm("llama"), tiny_lm("gemma3")
    wire = fitted(source, reader, channels=8)
    tokens, at_half = len(source.tokenize(TEXT)), wire.at(2)
    prefix = at_half.readers[0].receive(at_half.send([TEXT]))
    words = (
        f"{source.name} read {tokens} tokens; {reader.name} answered from {-(-tokens // 2)} latents"
    )
    assert _told(wire, at_half.readers[0], prefix, []) == words


@pytest.mark.parametrize("families", [("llama", "gemma3"), ("gemma3", "qwen2")])
def test_another_family_reads_better_from_codes_than_from_the_mean(families):
    source, lm = (tiny_lm(family) for family in families)
    wire = fitted(source, lm, channels=64)
    (reader,) = wire.readers
    own = lm.prefill(Prompt.from_ids(lm, [lm.tokenize(TEXT)], head_of(lm)))
    want = reader_cache(lm, own, len(lm.frame.prefix))
    (content,) = reader.open(wire.send([TEXT]))

    def error(slots) -> float:
        keys, values = slots
        flat = torch.stack([keys, values], 1).permute(3, 0, 1, 2, 4).flatten(1)
        return ((flat - want) / reader.decoder.scale).square().mean().item()

    with torch.no_grad():
        mapped, mean = reader.decoder(content.values), reader.decoder.mean_slots(len(want))
        assert error(mapped) < 0.5 * error(mean)


def test_slots_stand_where_the_source_reads_their_tokens():
    """At 1x the ragged cache must be the plain one: decoded keys, rotated to the positions after
    the reader's head, in every head."""
    lm = tiny_lm("gemma3")
    wire = fitted(lm, lm, channels=16)
    (reader,), n = wire.readers, len(lm.tokenize(TEXT))
    (content,) = reader.open(wire.send([TEXT]))
    head = head_of(lm)
    with torch.no_grad():
        k, v = reader.decoder(content.values)
        at = torch.arange(len(head), len(head) + n).expand(1, k.shape[1], n)
        k = [rotate(lm.model, i, x[None], at) for i, x in enumerate(k)]
        plain = KVPrefix(
            tuple(torch.cat(pair, 2) for pair in zip(head.keys, k, strict=True)),
            tuple(torch.cat([a, b[None]], 2) for a, b in zip(head.values, v, strict=True)),
            torch.ones(1, len(head) + n, dtype=torch.bool),
            torch.arange(len(head) + n)[None],
            torch.tensor([len(head) + n]),
        )
        ids = lm.tokenize("Who?")
        got, want = (
            lm.last_hidden(Prompt.from_ids(lm, [ids], p)) for p in (reader.prefix([content]), plain)
        )
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_a_ratio_keeps_the_slots_with_the_highest_scores():
    lm = tiny_lm("llama")
    wire = fitted(lm, lm, channels=16)
    reader = wire.readers[0].at(4)
    (content,) = reader.open(wire.send([TEXT]))
    reader.decoder.score_weight.normal_(generator=torch.Generator().manual_seed(1))
    (latents,) = reader.compress([content])
    n = len(lm.tokenize(TEXT))
    assert len(latents) == -(-n // 4) == reader.latents(TEXT)
    assert latents.span == n
    scores = reader.decoder.scores(content.values).flatten().sort(descending=True).values
    kept, heads = len(latents.keys), latents.lengths.numel()
    assert kept == len(latents) * heads
    # Each head's best slot stays whatever its score; the others are the best of all heads.
    by_head = reader.decoder.scores(content.values).flatten(0, 1)
    least = torch.stack(
        [
            row[place - 0].min()
            for row, place in zip(
                by_head,
                latents.positions.split(latents.lengths.flatten().tolist()),
                strict=True,
            )
            if len(place) > 1
        ]
    ).min()
    assert least >= scores[kept - 1] - 1e-6


def test_levels_are_even_and_values_are_their_inverse():
    code = Code(CodeConfig("x", (0,), 3, bits=2), 2)
    levels = torch.arange(4)[:, None].expand(4, 3)
    assert code.values(levels)[:, 0].tolist() == pytest.approx(
        [-REACH, -REACH / 3, REACH / 3, REACH]
    )
    assert torch.equal(code.nearest(code.values(levels)), levels)
    code.weight.data.fill_(1.0)
    code(torch.tensor([[0.1, 0.2]])).sum().backward()
    assert code.weight.grad is not None and (code.weight.grad != 0).all()


def test_golden_bytes():
    message = CodeMessage(bytes(range(8)), torch.tensor([[1, 2, 15], [0, 7, 8]]), 4)
    data = message.to_bytes()
    assert data.hex() == GOLDEN
    assert len(data) == HEADER_BYTES + 3
    back = CodeMessage.from_bytes(data)
    assert torch.equal(back.levels, message.levels) and back.text is None and len(back) == 2


GOLDEN = "4c574c4301e0c8252a00010203040506070200000003000400000000210f87"


def test_text_travels_beside_where_it_is_asked_for():
    wire = fitted(tiny_lm("llama"), tiny_lm("llama"), channels=8, count=4)
    (plain,), (both,) = wire.send([TEXT]), wire.send([TEXT], with_text=True)
    assert plain.text is None
    assert CodeMessage.from_bytes(both.to_bytes()).text == TEXT
    assert torch.equal(plain.levels, both.levels)


@pytest.mark.parametrize("text", [None, TEXT])
def test_no_altered_message_is_read(text):
    data = CodeMessage(bytes(8), torch.randint(16, (5, 8)), 4, text).to_bytes()
    for i in range(len(data)):
        for flip in (1, 128):
            with pytest.raises(MessageError):
                CodeMessage.from_bytes(data[:i] + bytes([data[i] ^ flip]) + data[i + 1 :])
        with pytest.raises(MessageError):
            CodeMessage.from_bytes(data[:i])
    with pytest.raises(MessageError):
        CodeMessage.from_bytes(data + b"\0")


def test_messages_of_another_code_and_beyond_the_context_are_refused_in_words():
    lm = tiny_lm("llama")
    wire = fitted(lm, lm, channels=8, count=4)
    (reader,) = wire.readers
    (message,) = wire.send([TEXT])
    with pytest.raises(MessageError, match="another copy of the source"):
        reader.open([replace(message, code_id=bytes(8))])
    with pytest.raises(MessageError, match="shape"):
        reader.open([replace(message, bits=5)])
    with pytest.raises(MessageError, match="has room for"):
        reader.open([replace(message, levels=torch.zeros(400, 8, dtype=torch.long))])
    with pytest.raises(MessageError, match="at least one"):
        reader.open([])
    with pytest.raises(WireError, match=r"no decoder for gpt.*tiny-llama.*add-reader"):
        wire.reader("gpt")
    with pytest.raises(WireError, match="tokens"):
        wire.send([""])


def test_normed_keys_have_the_size_of_the_readers_own():
    """By hand: gains 2 and 0 (invisible), keys (4, 9): before the norm (2, ?), so the root mean
    square is 2 and everything is halved."""
    got = normed(torch.tensor([[[4.0, 9.0]]]), torch.tensor([2.0, 0.0]))
    assert got.flatten().tolist() == pytest.approx([2.0, 4.5], rel=1e-4)


def test_pairs_go_to_the_token_that_ends_there_or_later():
    assert pairs(torch.tensor([2, 5, 9]), torch.tensor([1, 2, 3, 5, 8, 9, 10])).tolist() == [
        *(0, 0, 1, 1, 2, 2),
        2,
    ]


def test_sums_are_a_ridge_regression():
    """Against the normal equations of the stacked rows, the constant free of the penalty."""
    x, y = torch.randn(50, 4), torch.randn(50, 3)
    sums = Sums(4, 3)
    sums.add(x[:20], y[:20])
    sums.add(x[20:], y[20:])
    given = torch.cat([x, torch.ones(50, 1)], 1).double()
    penalty = torch.diag(torch.tensor([0.05] * 4 + [0.0])).double()
    want = torch.linalg.solve(given.T @ given + penalty, given.T @ y.double())
    torch.testing.assert_close(sums.solve().double(), want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sums.deviation, y.std(0, correction=0), atol=1e-4, rtol=1e-4)
    whole = sums.projected(torch.eye(4), torch.zeros(4))
    torch.testing.assert_close(whole, sums.solve(), atol=1e-4, rtol=1e-4)


def test_readers_answer_from_a_message():
    wire = fitted(tiny_lm("llama"), tiny_lm("gemma3"), channels=16, count=6)
    (message,) = wire.send([TEXT])
    data = CodeMessage.from_bytes(message.to_bytes())
    answers = ask(wire.readers[0], data, ["When?", "Who?"])
    assert len(answers) == 2
    contents = wire.readers[0].open([data])
    assert isinstance(contents[0], Codes)
    assert (contents[0].zeros().values == 0).all()


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "gpt2"])
def test_attention_is_computed_from_what_is_seen(family):
    """Softmax of queries by keys, where they may be seen, is Hugging Face's own attention."""
    lm = tiny_lm(family)
    prefix = lm.prefill(Prompt.from_ids(lm, [lm.tokenize(TEXT)] * 2))
    prompt = Prompt.from_ids(lm, [lm.tokenize("Who finished it?"), lm.tokenize("When?")], prefix)
    layers = [0, 2]
    with torch.no_grad():
        final, seen = lm.attention_inputs(prompt, layers)
        maps = lm.attentions(prompt)
        torch.testing.assert_close(final, lm.last_hidden(prompt))
    for layer, (queries, keys, _, visible) in zip(layers, seen, strict=True):
        keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1)
        logits = (queries @ keys.transpose(-1, -2)).masked_fill(~visible, -torch.inf)
        real = prompt.mask[:, None, :, None]
        torch.testing.assert_close(logits.softmax(-1) * real, maps[layer] * real)
