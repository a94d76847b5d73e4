"""Tensors from outside that are not finite, or of another shape, are refused where they come in."""

import hashlib
import json
from dataclasses import replace
from math import inf, nan
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from tiny import tiny_lm

from latentwire.lens.activations import Dump, Statistics, dump, tokenized
from latentwire.lens.checks import LensError
from latentwire.lens.lens import Lens, LensConfig
from latentwire.lm import FrozenLM, Greedy, Patch, Prompt, Span
from latentwire.wire.folder import WireError
from latentwire.wire.learned.encoders.base import EncoderConfig
from latentwire.wire.learned.shared_wire import SharedConfig, SharedWire
from latentwire.wire.message import Message, MessageError
from latentwire.wire.wire import Wire, WireConfig

TEXT = "The lighthouse was finished in 1759."


@pytest.fixture(scope="module")
def lm() -> FrozenLM:
    return tiny_lm("llama")


def wire_of(lm: FrozenLM) -> Wire:
    torch.manual_seed(0)
    return Wire(lm, WireConfig("tiny-llama", rank=4, window=64))


def shared_of(lm: FrozenLM) -> SharedWire:
    torch.manual_seed(0)
    sizes = EncoderConfig(window=64, width=16, layers=1)
    return SharedWire(SharedConfig(("tiny-llama",), "tiny-llama", sizes=sizes), {lm.name: lm})


def lens_of(lm: FrozenLM, **changes) -> Lens:
    statistics = replace(Statistics(torch.zeros(lm.width), 1.0, 1.0), **changes)
    return Lens(lm, LensConfig("tiny-llama", 1), statistics)


def spoiled(folder: Path, file: str, name: str, value: float) -> str:
    """A folder of weights, one number of which is changed; its config agrees."""
    state = load_file(folder / file)
    state[name].view(-1)[-1] = value
    data = save(state)
    (folder / file).write_bytes(data)
    record = json.loads((folder / "config.json").read_text())
    sha = hashlib.sha256(data).hexdigest()
    if isinstance(record["sha256"], dict):
        record["sha256"][file] = sha
    else:
        record["sha256"] = sha
    (folder / "config.json").write_text(json.dumps(record))
    return str(folder)


@pytest.mark.parametrize(
    ("segment", "problem"),
    [
        (torch.randn(3, 99), r"shape \[3, 99\].*expected token ids \[n\], or embeddings \[n, 32\]"),
        (torch.randn(1, 3, 32), r"shape \[1, 3, 32\].*embeddings \[n, 32\]"),
        (torch.randn(32), r"shape \[32\]"),
        (torch.ones(2, 3, dtype=torch.long), r"shape \[2, 3\].*token ids \[n\]"),
        (torch.ones(3, dtype=torch.bool), "type torch.bool"),
        (torch.ones(3, 32, dtype=torch.complex64), "type torch.complex64"),
        (torch.full((3, 32), nan), "an embedding of the prompt has NaN or infinite"),
        (torch.full((3, 32), inf), "an embedding of the prompt has NaN or infinite"),
        (Span(torch.full((3, 32), nan), 5), "an embedding of the prompt has NaN or infinite"),
        (Span(torch.randn(3, 99), 5), r"shape \[3, 99\]"),
    ],
)
@pytest.mark.parametrize("before", [False, True], ids=["alone", "behind"])
def test_a_segment_is_ids_or_embeddings_of_the_lm(lm, segment, problem, before):
    row = [lm.tokenize("a"), segment] if before else [segment]
    with pytest.raises(ValueError, match=problem):
        Prompt.of(lm, [row])


@pytest.mark.parametrize(
    ("places", "vectors", "problem"),
    [
        ([[1]], torch.full((1, 1, 32), nan), "patch of layer 1 has NaN"),
        ([[1]], torch.zeros(1, 1, 31), r"vectors \[1, 1, 31\]; expected \[1, n\] and \[1, n, 32\]"),
        ([[1], [2]], torch.zeros(2, 1, 32), r"positions \[2, 1\]"),
        ([[4]], torch.zeros(1, 1, 32), r"at \[\[4\]\]; the prompt's rows have \[4\] positions"),
        ([[-1]], torch.zeros(1, 1, 32), r"at \[\[-1\]\]"),
    ],
)
def test_a_patch_fits_its_prompt(lm, places, vectors, problem):
    with pytest.raises(ValueError, match=problem):
        patch = Patch(1, torch.tensor(places), vectors)
        Prompt.from_ids(lm, [lm.tokenize("abcd")], patches=[patch])


def test_a_prefix_is_of_the_lm_that_goes_on_from_it(lm):
    prefix = lm.prefill(Prompt.from_ids(lm, [lm.tokenize("abcd")]))
    other = tiny_lm("gpt2")
    wrong = [replace(prefix, keys=prefix.keys[:2]), replace(prefix, values=prefix.values[:2])]
    wrong += [replace(prefix, keys=tuple(k[..., :4] for k in prefix.keys))]
    wrong += [other.prefill(Prompt.from_ids(other, [other.tokenize("abcd")]))]
    for one in wrong:
        with pytest.raises(ValueError, match=r"tiny-llama expects 3 of \[1, 2, 4, 8\]"):
            Prompt.from_ids(lm, [lm.tokenize("e")], one)


@torch.no_grad()
def test_a_generation_that_computes_nan_is_no_empty_answer(lm):
    prefix = lm.prefill(Prompt.from_ids(lm, [lm.tokenize("abcd")]))
    broken = replace(prefix, values=(prefix.values[0] * nan, *prefix.values[1:]))
    with pytest.raises(FloatingPointError, match=r"tiny-llama .* has NaN"):
        lm.generate(Prompt.from_ids(lm, [lm.tokenize("e")], broken), Greedy(), 3)


def test_what_is_trained_is_left_to_the_training_step(lm):
    embeds = torch.full((3, lm.width), nan, requires_grad=True)
    assert lm.last_hidden(Prompt.of(lm, [[embeds]])).isnan().all()


@pytest.mark.parametrize("value", [nan, inf])
@pytest.mark.parametrize("name", ["slots.up", "slots.down", "scorer.weight", "format"])
def test_a_wire_has_finite_weights(lm, tmp_path, name, value):
    wire = wire_of(lm)
    wire.save_pretrained(tmp_path)
    with pytest.raises(WireError, match=f"{name} has NaN or infinite"):
        Wire.from_pretrained(spoiled(tmp_path, "wire.safetensors", name, value), lm)
    (message,) = wire.send([TEXT])
    wire.load_state_dict({**wire.state_dict(), name: wire.state_dict()[name] * nan})
    with pytest.raises(WireError, match=f"{name} has NaN or infinite"):
        wire.send([TEXT])
    with pytest.raises(WireError, match=f"{name} has NaN or infinite"):
        wire.receive([message])
    if "scorer" in name:
        with pytest.raises(WireError, match="a score of a token has NaN or infinite"):
            wire.encode([TEXT])


def test_a_shared_wire_has_finite_weights(lm, tmp_path):
    wire = shared_of(lm)
    wire.save_pretrained(tmp_path)
    file = "shared-0.safetensors"
    with pytest.raises(WireError, match=r"widen\.bias has NaN or infinite"):
        SharedWire.from_pretrained(spoiled(tmp_path, file, "widen.bias", nan), {lm.name: lm})
    with torch.no_grad():
        wire.widen.bias.fill_(nan)
    with pytest.raises(WireError, match=r"widen\.bias has NaN or infinite"):
        wire.send([TEXT])


@pytest.mark.parametrize("name", ["keys", "values"])
def test_a_message_holds_finite_latents(lm, name):
    (latents,) = wire_of(lm).encode([TEXT])
    broken = replace(latents, **{name: getattr(latents, name) * inf})
    with pytest.raises(MessageError, match=f"a message's {name[:-1]} has NaN or infinite"):
        Message(bytes(8), "tiny-llama", lm.fingerprint, broken)


@pytest.mark.parametrize("value", [0.0, -1.0, nan, inf])
@pytest.mark.parametrize("name", ["norm", "spread"])
def test_what_is_usual_for_activations_is_more_than_nothing(lm, tmp_path, name, value):
    with pytest.raises(LensError, match=f"{name} of the activations is {value}; expected"):
        lens_of(lm, **{name: value})
    lens_of(lm).save_pretrained(tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**record, name: value}))
    with pytest.raises(LensError, match=f"{name} (of the activations )?is {value}; expected"):
        Lens.from_pretrained(str(tmp_path), lm)


@pytest.mark.parametrize("name", ["mean", "decoder.gain", "decoder.before", "encoder.before"])
def test_a_lens_has_finite_weights(lm, tmp_path, name):
    lens_of(lm).save_pretrained(tmp_path)
    with pytest.raises(LensError, match=f"{name} has NaN or infinite"):
        Lens.from_pretrained(spoiled(tmp_path, "lens.safetensors", name, nan), lm)


def test_a_dump_of_activations_is_finite(lm, tmp_path):
    texts = tokenized(lm, ["Document one tells of a river."], 40, 2)
    dump(lm, 1, texts, tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    state = load_file(file)
    state["vectors"][0, 0] = nan
    file.write_bytes(save(state))
    with pytest.raises(LensError, match="an activation of the dump has NaN"):
        Dump(lm, 1, texts, tmp_path).at([(texts[0], [2])])
