"""Encoders and poolings of a shared wire by value, and what their adapters do to a shared LM."""

import gc
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import sentence_folder, tiny_lm, write_sentences
from transformers import AutoModel, AutoTokenizer

from latentwire.lm import FrozenLM, Prompt
from latentwire.lm.sentences import SentenceEncoder
from latentwire.lm.zoo import ZooError
from latentwire.wire.folder import WireError
from latentwire.wire.learned.encoders.base import EncoderConfig
from latentwire.wire.learned.pooling import POOLINGS
from latentwire.wire.learned.shared_wire import SharedConfig, SharedWire

TEXTS = ["The lighthouse was built in 1759 by John Smeaton.", "Short one."]
SIZES = EncoderConfig(4, 32, channels=8, width=64, layers=1, sentence_encoder=sentence_folder())


@pytest.fixture
def lm() -> FrozenLM:
    return tiny_lm("llama")


def make_wire(lm: FrozenLM, encoder: str, **sizes) -> SharedWire:
    torch.manual_seed(0)
    config = SharedConfig(
        (lm.name,), lm.name, encoder, sizes=replace(SIZES, **sizes), trunk_layers=1, format_tokens=2
    )
    return SharedWire(config, {lm.name: lm}).eval()


def trained(wire: SharedWire) -> SharedWire:
    """With a LoRA that is no longer zero."""
    for parameter in wire.encoder.lora.values():
        torch.nn.init.normal_(parameter, std=0.3)
    return wire


# Poolings


@pytest.mark.parametrize("name", ["strided", "windows", "hierarchical"])
def test_what_begins_as_the_mean_of_windows(name):
    states = torch.randn(11, 6)
    expected = torch.stack([states[:4].mean(0), states[4:8].mean(0), states[8:].mean(0)])
    torch.testing.assert_close(POOLINGS[name](6, 4)(states), expected)


@pytest.mark.parametrize("name", POOLINGS)
@pytest.mark.parametrize(("n", "size"), [(1, 4), (8, 4), (9, 4), (5, 1)])
def test_every_pooling_makes_a_latent_of_size_states(name, n, size):
    assert POOLINGS[name](64, size)(torch.randn(n, 64)).shape == (-(-n // size), 64)


def test_a_merge_by_hand():
    pool, states = POOLINGS["hierarchical"](2, 2), torch.randn(3, 2)
    last = pool.merges[0][-1]
    torch.nn.init.eye_(last.weight)
    pairs = torch.stack([states[:2].flatten(), torch.cat([states[2], torch.zeros(2)])])
    inside = torch.nn.functional.gelu(pool.merges[0][1](torch.layer_norm(pairs, (4,))))
    expected = torch.stack([states[:2].mean(0), states[2]]) + inside
    torch.testing.assert_close(pool(states), expected)


@torch.no_grad()
def test_a_query_by_hand():
    pool, states, start = POOLINGS["queries"](2, 2), torch.randn(3, 2), torch.randn(2)
    places = torch.stack([torch.tensor([1.0, 3.0]).sin(), torch.tensor([1.0, 3.0]).cos()], 1)
    asked = pool.query + places + start
    to_q, to_k, to_v = pool.attention.in_proj_weight.chunk(3)
    weights = (asked @ to_q.T @ (states @ to_k.T).T / 2**0.5).softmax(-1)
    read = weights @ states @ to_v.T @ pool.attention.out_proj.weight.T
    torch.testing.assert_close(pool(states, start), read + places + start)


# The LoRA of a source


def test_lora_states_begin_as_lm_states_and_train_nothing_else(lm):
    plain, lora = make_wire(lm, "lm_states"), make_wire(lm, "lora_states")
    assert not lora.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    for ours, theirs in zip(lora.encode(TEXTS), plain.encode(TEXTS), strict=True):
        assert torch.equal(ours, theirs)
    parts = [f"self_attn/{p}_proj/lora_{m}" for p in "qkvo" for m in "AB"]
    expected = {f"model/layers/{i}/{part}" for i in range(len(lm.blocks)) for part in parts}
    assert set(lora.encoder.lora) == expected

    trained(lora)
    torch.cat(lora.encode(TEXTS)).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in lora.encoder.lora.values())
    assert all(p.grad is None for n, p in lm.model.named_parameters() if "lora_" not in n)
    assert not torch.equal(torch.cat(lora.encode(TEXTS)), torch.cat(plain.encode(TEXTS)))
    lora.requires_grad_(False)  # as when a reader is added
    assert not torch.cat(lora.encode(TEXTS)).requires_grad


def test_a_source_that_reads_too_reads_without_its_lora(lm):
    prompt = Prompt.from_text(lm, TEXTS)
    before = lm.head(lm.last_hidden(prompt))
    wire = trained(make_wire(lm, "lora_states"))
    for _ in range(2):  # before the first text is encoded, and after
        reader = wire.readers[0].lm
        assert torch.equal(reader.head(reader.last_hidden(prompt)), before)
        wire.encode(TEXTS)


def test_wires_on_one_source_have_a_lora_each_and_save_it(lm, tmp_path):
    first, second = make_wire(lm, "lora_states"), make_wire(lm, "lora_states")
    own = second.encode(TEXTS)
    trained(first)
    assert torch.equal(torch.cat(second.encode(TEXTS)), torch.cat(own))
    assert not torch.equal(torch.cat(first.encode(TEXTS)), torch.cat(own))
    first.save(tmp_path)
    loaded = SharedWire.from_pretrained(tmp_path, {lm.name: lm})
    assert loaded.id == first.id != second.id
    more = loaded.with_reader("other", tiny_lm("gpt2")).eval()
    for ours, theirs in zip(more.encode(TEXTS), loaded.encode(TEXTS), strict=True):
        assert torch.equal(ours, theirs)


def test_a_lora_is_float32_on_a_model_in_bfloat16():
    wire = trained(make_wire(tiny_lm("gpt2", torch.bfloat16), "lora_states"))
    assert {p.dtype for p in wire.encoder.lora.values()} == {torch.float32}
    torch.cat(wire.encode(TEXTS)).sum().backward()
    assert len(wire.encoder.lora) == 3 * 2 * 2  # of three blocks: c_attn and the attention's c_proj


def test_wires_that_are_gone_leave_no_adapters_on_the_lm(lm, tmp_path):
    wire = make_wire(lm, "lora_states")
    config = replace(wire.config, ways_in=("lora",))
    wire = trained(SharedWire(config, {lm.name: lm}).eval())
    own = torch.cat(wire.encode(TEXTS))
    wire.save(tmp_path)
    for _ in range(3):
        loaded = SharedWire.from_pretrained(tmp_path, {lm.name: lm})
        del loaded
        gc.collect()
    assert len(lm.model.peft_config) == 4  # the wire's two, and the last one's, which go next
    left = {n for n, _ in lm.model.named_parameters() if "lora_" in n}
    assert {n.split(".")[-2] for n in left} == set(lm.model.peft_config)
    assert torch.equal(torch.cat(wire.encode(TEXTS)), own)
    assert all(p.requires_grad for p in wire.encoder.lora.values())


# The sentence encoder


def test_sentence_vectors_are_hugging_faces_own():
    folder = sentence_folder()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    batch = tokenizer(["A b, c.", "Longer than it"], return_tensors="pt", padding=True)
    with torch.no_grad():
        states = model.eval()(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    expected = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    ours = SentenceEncoder.from_pretrained(folder)
    torch.testing.assert_close(ours.vectors(["A b, c.", "Longer than it"]), expected)
    assert ours.room == 30  # of 32 positions
    long = "it is " * 20
    parts = torch.cat(ours.states(ours.tokenize(long).split(30)))
    expected = torch.nn.functional.normalize(parts.mean(0), dim=0)
    torch.testing.assert_close(ours.vectors([long])[0], expected)


def test_word_pieces_lose_what_a_text_is_not_refused_for(lm):
    wire = make_wire(lm, "minilm", window=512)
    units = wire.encoder.units
    assert units("Ab [SEP] ☃").tolist() == units("ab [sep] ☂").tolist()
    assert len(wire.send(["Snow ☃"])[0]) == 2  # five pieces
    assert (wire.encoder.per_window, wire.block) == (28, 7)  # the ratio's multiple below 30
    assert wire.encoder.lengths("a" * 60) == [7, 7, 1]
    with pytest.raises(WireError, match="context 0 is empty"):
        wire.send(["\u200b"])
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        wire.send(["\ud800"])
    with pytest.raises(WireError, match=r"ratio is 32; .* reads 30 tokens at a time"):
        make_wire(lm, "minilm", ratio=32)
    with pytest.raises(ZooError, match=r"tokenizer has no \[CLS\] and \[SEP\]"):
        SentenceEncoder(lm.model, lm.tokenizer, lm.name)


@torch.no_grad()
def test_latents_of_an_anchor_are_residuals_around_it(lm):
    wire = make_wire(lm, "anchor")
    encoder, ids = wire.encoder, lm.tokenize(TEXTS[1])
    vector = encoder.sentences.vectors([TEXTS[1]])[0]
    torch.nn.init.zeros_(encoder.pool.attention.out_proj.weight)  # nothing is read
    first, last = encoder.pooled([ids], [torch.randn(8, 64)])[0]
    angles = torch.tensor([[2.0], [6.0]]) * 10000.0 ** (-torch.arange(32) / 32)
    codes = torch.cat([angles.sin(), angles.cos()], 1)
    anchor = encoder.anchor.weight @ vector * 32**0.5 + encoder.anchor.bias
    torch.testing.assert_close(torch.stack([first, last]), anchor + codes)


@pytest.mark.parametrize("encoder", ["minilm", "anchor"])
def test_a_sentence_encoder_is_not_saved_and_another_copy_is_noticed(lm, encoder, tmp_path):
    folder = write_sentences(tmp_path / "sentences", seed=1)
    wire = make_wire(lm, encoder, sentence_encoder=folder)
    assert not [name for name in wire.state_dict() if "sentences" in name]
    wire.save(tmp_path / "wire")
    assert SharedWire.from_pretrained(tmp_path / "wire", {lm.name: lm}).id == wire.id
    write_sentences(Path(folder), seed=2)
    with pytest.raises(WireError, match=r"was trained for .*sentences bert-2x32-v"):
        SharedWire.from_pretrained(tmp_path / "wire", {lm.name: lm})


# Configs


def test_a_config_from_before_these_fields_loads(lm, tmp_path):
    wire = make_wire(lm, "lm_states", sentence_encoder=EncoderConfig().sentence_encoder)
    wire.save(tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    del record["config"]["sizes"]["pooling"], record["config"]["sizes"]["sentence_encoder"]
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert SharedWire.from_pretrained(tmp_path, {lm.name: lm}).config == wire.config


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("encoder", ["lm_states", "lora_states"])
def test_encoders_of_states_take_every_pooling(lm, encoder, pooling):
    wire = make_wire(lm, encoder, pooling=pooling)
    assert len(wire.send(TEXTS)[0]) == 13  # 49 bytes
