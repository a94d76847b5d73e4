"""Encoders and poolings of a shared wire by value, and what their adapters do to a shared LM."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import sentence_folder, tiny_lm, write_sentences
from transformers import AutoModel, AutoTokenizer

from latentwire.lm import FrozenLM
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
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        ours.vectors(["\ud800"])
    lm = tiny_lm("llama")
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


def test_a_sentence_encoder_is_not_saved_and_another_copy_is_noticed(lm, tmp_path):
    folder = write_sentences(tmp_path / "sentences", seed=1)
    wire = make_wire(lm, "anchor", sentence_encoder=folder)
    assert not [name for name in wire.state_dict() if "sentences" in name]
    wire.save_pretrained(tmp_path / "wire")
    again = SharedWire.from_pretrained(tmp_path / "wire", {lm.name: lm})
    assert again.id == wire.id
    again.save_pretrained(tmp_path / "wire")
    record = json.loads((tmp_path / "wire" / "config.json").read_text())
    assert record.pop("folders") == {"sentences": folder} and folder not in json.dumps(record)
    write_sentences(Path(folder), seed=2)
    with pytest.raises(WireError, match=r"was trained for .*sentences bert-2x32-v"):
        SharedWire.from_pretrained(tmp_path / "wire", {lm.name: lm})


# Configs


def test_a_config_from_before_these_fields_loads(lm, tmp_path):
    wire = make_wire(lm, "lm_states", sentence_encoder=EncoderConfig().sentence_encoder)
    wire.save_pretrained(tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    del record["config"]["sizes"]["pooling"], record["config"]["sizes"]["sentence_encoder"]
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert SharedWire.from_pretrained(tmp_path, {lm.name: lm}).config == wire.config


@pytest.mark.parametrize("pooling", POOLINGS)
def test_states_take_every_pooling(lm, pooling):
    wire = make_wire(lm, "lm_states", pooling=pooling)
    assert len(wire.send(TEXTS)[0]) == 13  # 49 bytes
