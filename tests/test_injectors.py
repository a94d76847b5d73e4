"""Injectors of a shared wire, each against what it changes; test_shared.py runs all of them."""

import gc
import json
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from test_shared import BOTH, TEXTS, both, data_of, lms, make_wire, passages, recipe  # noqa: F401
from tiny import CONFIGS, tiny_lm, tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from latentwire.lm import FrozenLM, KVPrefix, Prompt
from latentwire.train.loop import Session
from latentwire.wire.learned.injectors import LatentBatch
from latentwire.wire.learned.injectors.deep_prefix import turned
from latentwire.wire.learned.injectors.embeddings import Embeddings
from latentwire.wire.learned.injectors.lora import Lora
from latentwire.wire.learned.reader import Reader, Values
from latentwire.wire.learned.shared_wire import SharedWire
from latentwire.wire.learned.training import train_shared
from latentwire.wire.wire import WireError


def contents(wire: SharedWire) -> list[Values]:
    return [Values(v, wire.encoder.span(t)) for v, t in zip(wire.encode(TEXTS), TEXTS, strict=True)]


def differ(one: KVPrefix, two: KVPrefix) -> bool:
    pairs = zip(one.keys + one.values, two.keys + two.values, strict=True)
    return any(not torch.equal(a, b) for a, b in pairs)


def noise(module: nn.Module, std: float = 0.1) -> None:
    """What begins as zero, too, gets a value."""
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += std * torch.randn(parameter.shape, generator=draws)


def test_step_0_of_lora_is_embeddings(lms):  # noqa: F811
    plain, wire = make_wire(lms, injector="embeddings"), make_wire(lms, injector="lora")
    theirs = plain.state_dict()
    own = wire.state_dict().items()
    wire.load_state_dict({n: theirs.get(n, t) for n, t in own})
    given = contents(wire)
    for ours, expected in zip(wire.readers, plain.readers, strict=True):
        assert not differ(ours.prefix(given), expected.prefix(given))
        noise(ours.adapter.injector.lora)
        assert differ(ours.prefix(given), expected.prefix(given))


def deep(family: str) -> FrozenLM:
    """Six blocks, more than have a LoRA."""
    config = deepcopy(CONFIGS[family])
    config.num_hidden_layers = 6
    if family == "gemma3":
        config.layer_types = config.layer_types * 2
    return FrozenLM(AutoModelForCausalLM.from_config(config), tokenizer(), f"deep-{family}")


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_lora_is_in_the_first_blocks_alone(family):
    lm = deep(family)
    blocks = "transformer.h" if family == "gpt2" else "model.layers"
    first = tuple(f"{blocks}.{i}." for i in range(4))
    linear = [n for n, m in lm.model.named_modules() if isinstance(m, nn.Linear | Conv1D)]
    expected = {name for name in linear if name.startswith(first)}
    way = Lora(lm, 8, 64, "regression")
    found = {n for n, m in lm.model.named_modules() if way.view.adapter in getattr(m, "lora_A", {})}
    assert len(expected) == 4 * (4 if family == "gpt2" else 7) and found == expected
    assert len(way.lora) == 2 * len(expected)
    assert all(min(p.shape) == Lora.RANK for p in way.lora.values())


def test_lora_is_off_for_all_but_the_slots(lms):  # noqa: F811
    prompt = {name: Prompt.from_text(lms[name], TEXTS) for name in BOTH}
    before = {name: lms[name].head(lms[name].last_hidden(prompt[name])) for name in BOTH}
    one, two = make_wire(lms, injector="lora"), make_wire(lms, injector="lora")
    given = contents(one)
    expected = [reader.prefix(given) for reader in two.readers]
    for reader in one.readers:
        noise(reader.adapter.injector)
    for name, ours, other, was in zip(BOTH, one.readers, two.readers, expected, strict=True):
        assert torch.equal(lms[name].head(lms[name].last_hidden(prompt[name])), before[name])
        assert not differ(other.prefix(given), was) and differ(ours.prefix(given), was)


def test_lora_is_float32_in_a_model_of_bfloat16():
    lm = tiny_lm("llama", torch.bfloat16)
    wire = make_wire({"tiny-llama": lm, "tiny-gemma3": lm}, injector="lora")
    ways = [reader.adapter.injector for reader in wire.readers]
    assert isinstance(ways[0], Lora) and isinstance(ways[1], Lora)
    for way in ways:
        assert all(p.dtype == torch.float32 and p.requires_grad for p in way.lora.values())
    sum(v.float().sum() for v in wire.readers[0].prefix(contents(wire)).values).backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in ways[0].lora.values())
    assert all(p.grad is None for p in ways[1].lora.values())


def test_lora_is_saved_and_loaded_with_the_wire(lms, tmp_path):  # noqa: F811
    wire = make_wire(lms, injector="lora")
    noise(wire.adapters)
    wire.save_pretrained(tmp_path)
    loaded = SharedWire.from_pretrained(tmp_path, both(lms))
    saved = {n: t.bfloat16().float() for n, t in wire.state_dict().items()}
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, saved[name]), name
    elsewhere = {name: tiny_lm(name.removeprefix("tiny-")) for name in BOTH}
    fresh = SharedWire.from_pretrained(tmp_path, elsewhere)
    more = loaded.with_reader("tiny-qwen3", lms["tiny-qwen3"])
    given = contents(loaded)
    for one, two, three in zip(loaded.readers, fresh.readers, more.readers, strict=False):
        assert not differ(one.prefix(given), two.prefix(given))
        assert not differ(one.prefix(given), three.prefix(given))


def test_wires_that_are_gone_leave_no_adapters_on_the_lm(tmp_path):
    own = {name: tiny_lm(name.removeprefix("tiny-")) for name in BOTH}
    wire = make_wire(own, injector="lora")
    noise(wire.adapters)
    given = contents(wire)
    before = [reader.prefix(given) for reader in wire.readers]
    wire.save_pretrained(tmp_path)
    for _ in range(3):
        loaded = SharedWire.from_pretrained(tmp_path, own)
        del loaded
        gc.collect()
    for reader, prefix in zip(wire.readers, before, strict=True):
        model = reader.lm.model
        assert len(model.peft_config) == 2  # the wire's, and the last one's, which goes next
        left = {n for n, _ in model.named_parameters() if "lora_" in n}
        assert {n.split(".")[-2] for n in left} == set(model.peft_config)
        assert not differ(reader.prefix(given), prefix)
        assert all(p.requires_grad for p in reader.adapter.injector.lora.values())


def own_embeddings(lm: FrozenLM) -> Tensor:
    return torch.cat([lm.model.get_input_embeddings()(lm.tokenize(text)) for text in TEXTS])


def calibrated(lms, calibration: str) -> tuple[Reader, Embeddings, Tensor]:  # noqa: F811
    """Of the second reader: its injector, and latents of the texts."""
    wire = make_wire(lms, injector="embeddings", calibration=calibration)
    reader, values = wire.readers[1], torch.cat(wire.encode(TEXTS)).detach()
    way = reader.adapter.injector
    assert isinstance(way, Embeddings)
    return reader, way, values


def batch_of(values: Tensor) -> LatentBatch:
    """Latents as two rows of unequal length, with states that are not zero."""
    n = len(values) // 2 + 1
    padding = torch.full((2 * n - len(values), values.shape[1]), 7.0)
    rows = torch.cat([padding, values]).view(2, n, -1)
    mask = torch.ones(2, n, dtype=torch.bool)
    mask[0, : len(padding)] = False
    states = torch.randn(2, n, 64, generator=torch.Generator().manual_seed(0))
    return LatentBatch(rows, states, mask, mask.sum(1))


@torch.no_grad()
def test_embeddings_begin_as_calibration_says(lms):  # noqa: F811
    reader, way, values = calibrated(lms, "none")
    torch.manual_seed(0)
    untouched = SharedWire(reader.wire.config, lms).readers[1].adapter.injector
    own = own_embeddings(reader.lm)
    assert torch.equal(way.start(values), untouched.start(values))
    assert torch.equal(way.deviation, torch.ones(32))

    way = calibrated(lms, "rms")[1]
    torch.testing.assert_close(way.start(values).square().mean(), own.square().mean())
    torch.testing.assert_close(way.deviation, own.std(0))

    way = calibrated(lms, "channel")[1]
    torch.testing.assert_close(way.start(values).mean(0), own.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(way.start(values).std(0), own.std(0), atol=1e-5, rtol=1e-4)

    same, way = way.start(values), calibrated(lms, "batch")[1]
    torch.testing.assert_close(way.start(values), same)
    slots = batch_of(values)
    torch.testing.assert_close(way.embeds(slots)[slots.mask], same, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_batch_has_the_statistics_of_embeddings_and_a_row_its_own(lms):  # noqa: F811
    reader, way, values = calibrated(lms, "batch")
    noise(way)
    slots, own = batch_of(values), own_embeddings(reader.lm)
    raw = (way.start(slots.values) + way.deviation * way.residual(slots.states))[slots.mask]
    made = way.train().embeds(slots)[slots.mask]
    torch.testing.assert_close(made.mean(0), own.mean(0), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(made.std(0, correction=0), own.std(0), atol=1e-4, rtol=1e-3)

    way.eval()
    mean = 0.9 * own.mean(0) + 0.1 * raw.mean(0)  # torch moves an average by a tenth
    variance = 0.9 * own.var(0) + 0.1 * raw.var(0)
    expected = own.mean(0) + (raw - mean) * own.std(0) / variance.sqrt()
    read = way.embeds(slots)
    torch.testing.assert_close(read[slots.mask], expected, atol=1e-4, rtol=1e-3)
    one = LatentBatch(slots.values[1:], slots.states[1:], slots.mask[1:], slots.spans[1:])
    torch.testing.assert_close(way.embeds(one)[0], read[1], atol=1e-6, rtol=1e-5)


def test_one_slot_has_the_running_statistics(lms):  # noqa: F811
    way, values = calibrated(lms, "batch")[1:]
    whole = batch_of(values)
    one = LatentBatch(
        whole.values[1:, :1], whole.states[1:, :1], whole.mask[1:, :1], whole.spans[1:]
    )
    expected = way.eval().embeds(one)
    torch.testing.assert_close(way.train().embeds(one), expected, atol=1e-6, rtol=1e-5)


def test_a_finished_run_is_saved_again_as_it_is(lms, tmp_path):  # noqa: F811
    """LoRA is trained, and running averages are kept, by the recipe's own list of tensors."""
    wire = make_wire(lms, injector="lora", calibration="batch")
    data = data_of(passages(), tmp_path)
    given = recipe(wire.config, data=(str(data),), batch_size=4, held_out=1, out=tmp_path / "run")
    folder = train_shared(given, Session(), lms) / "wire"
    weights = {path.name: path.read_bytes() for path in folder.iterdir()}
    trained = SharedWire.from_pretrained(folder, both(lms)).state_dict()
    for i in range(2):
        way = f"adapters.{i}.injector"
        assert trained[f"{way}.norm.running_mean"].abs().max() > 1e-3
        ups = [t for n, t in trained.items() if n.startswith(f"{way}.lora.model/layers/0/")]
        assert len(ups) == 2 * 7 and all(t.any() for t in ups)
    train_shared(given, Session(), lms)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == weights


def test_what_a_config_may_say(lms, tmp_path):  # noqa: F811
    wire = make_wire(lms)
    for change, said in [
        ({"injector": "none"}, "injector is none; expected of embeddings, lora, deep_prefix"),
        ({"calibration": "rms"}, "is rms, of input embeddings; deep_prefix makes none"),
    ]:
        with pytest.raises(WireError, match=said):
            replace(wire.config, **change)
    wire.save_pretrained(tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    del record["config"]["calibration"]  # as saved before there was any
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert SharedWire.from_pretrained(tmp_path, both(lms)).config == wire.config


def test_keys_are_turned_back_to_what_they_were_where_rope_is_scaled():
    config = deepcopy(CONFIGS["llama"])
    config.rope_parameters = {
        **{"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0},
        "original_max_position_embeddings": 128,
    }
    torch.manual_seed(0)
    lm = FrozenLM(AutoModelForCausalLM.from_config(config), tokenizer(), "yarn")
    made: list[Tensor] = []
    for block in lm.blocks:
        block.self_attn.k_proj.register_forward_hook(lambda _module, _args, out: made.append(out))
    cache = lm.prefill(Prompt.from_ids(lm, [lm.tokenize("The Danube rises in the Black Forest")]))
    keys = turned(lm, cache.keys, cache.positions, back=True)
    for ours, theirs in zip(keys, made, strict=True):
        heads = theirs.unflatten(2, (lm.kv_shape[0], -1)).transpose(1, 2)
        torch.testing.assert_close(ours, heads, atol=1e-6, rtol=1e-5)
