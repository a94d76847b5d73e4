"""A loaded model with its tokenizer goes wherever a model's name does."""

from inspect import unwrap

import pytest
import torch
from test_codes import fitted
from test_lens import make as make_lens
from test_store import make_wire
from tiny import tiny_lm

from latentwire import CodeWire, Lens, Problem, TextWire, Wire, load_wire
from latentwire.lm import FrozenLM, as_lm
from latentwire.lm.zoo import ZooError
from latentwire.seek.region import Fraction
from latentwire.seek.rewards.confidence import Confidence
from latentwire.seek.search import Seek, SeekConfig
from latentwire.wire.folder import WireError

TEXT = "Ada was born in 1815."


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch):
    def refuse(*_):
        raise AssertionError("a model was loaded by name")

    monkeypatch.setattr(FrozenLM, "from_pretrained", classmethod(refuse))


def pair(lm: FrozenLM):
    return lm.model, lm.tokenizer


def test_a_wire_of_slots(tmp_path):
    wire = make_wire()
    data = wire.send([TEXT])[0].to_bytes()
    wire.save_pretrained(tmp_path)
    for again in (
        Wire.from_pretrained(tmp_path, pair(wire.lm)),
        load_wire(tmp_path, {"tiny-llama": pair(wire.lm)}),
    ):
        assert again.send([TEXT])[0].to_bytes() == data
    untrained = Wire.of(wire.lm, "key_norm").send([TEXT])[0].latents
    of_pair = Wire.of(pair(wire.lm), "key_norm")
    assert torch.equal(of_pair.send([TEXT])[0].latents.keys, untrained.keys)
    assert of_pair.reader == "LlamaForCausalLM"  # it was loaded from nowhere


def test_what_is_no_model_is_refused_in_one_line():
    lm = tiny_lm("llama")
    for source in ((lm.tokenizer, lm.model), (lm.model,), lm.model, [lm.tokenizer], None):
        with pytest.raises(
            ZooError, match=r"for a model; expected .*\(model, tokenizer\)"
        ) as error:
            unwrap(as_lm)(source)  # types are checked in tests alone
        assert "\n" not in str(error.value)


def test_text_and_codes(tmp_path):
    wire = make_wire()
    TextWire(wire.lm, [wire]).save_pretrained(tmp_path / "text")
    text = TextWire.from_pretrained(tmp_path / "text", {"tiny-llama": pair(wire.lm)})
    (message,) = text.send([TEXT])
    assert text.texts([message]) == [TEXT] and text.readers[0].id == wire.id
    source, reader = tiny_lm("llama"), tiny_lm("qwen3")
    codes = fitted(source, reader, 8)
    codes.save_pretrained(tmp_path / "codes")
    lms = {"tiny-llama": pair(source), "tiny-qwen3": pair(reader)}
    again = CodeWire.from_pretrained(tmp_path / "codes", lms)
    (message,) = again.send([TEXT])
    by_object = CodeWire.from_pretrained(
        tmp_path / "codes", {"tiny-llama": source, "tiny-qwen3": reader}
    )
    assert message.to_bytes() == by_object.send([TEXT])[0].to_bytes()
    assert again.reader("tiny-qwen3").lm.model is reader.model


def test_a_lens_and_a_search(tmp_path):
    lens = make_lens()
    lens.save_pretrained(tmp_path)
    again = Lens.from_pretrained(tmp_path, pair(tiny_lm("llama")))
    assert torch.equal(again.mean, lens.mean)
    lm = as_lm(pair(tiny_lm("llama")))
    config = SeekConfig(Fraction(0.5), steps=1, max_new_tokens=8)
    (found,) = Seek(lm, Confidence(lm), config)([Problem("1", "Who?", "Who?")])
    (known,) = Seek(tiny_lm("llama"), Confidence(tiny_lm("llama")), config)(
        [Problem("1", "Who?", "Who?")]
    )
    assert found.text == known.text and found.reward == known.reward


def test_a_copy_under_another_name_is_told_how_to_be_called(tmp_path):
    wire = make_wire()
    wire.save_pretrained(tmp_path)
    other = tiny_lm("llama")
    with torch.no_grad():
        other.model.get_input_embeddings().weight[5] += 1
    with pytest.raises(WireError, match=r"copy of that one.*FrozenLM\(model, tokenizer, 'tiny-"):
        Wire.from_pretrained(tmp_path, pair(other))
    with pytest.warns(UserWarning, match="another copy of tiny-llama"):
        Wire.from_pretrained(tmp_path, FrozenLM(*pair(other), "tiny-llama"))
