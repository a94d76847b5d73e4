"""Adapters by their names: each view has its own tensors, whatever the adapter is called."""

import pytest
import torch
from peft import LoraConfig
from tiny import CONFIGS, tiny_lm

from latentwire.lm import Prompt
from latentwire.lm.adapters import as_module, lora_config

NAMES = (
    "0",
    "1",
    "layers",
    "mlp",
    "q_proj",
    "lora_A",
    "lora_B",
    "weight",
    "model",
    "default",
    "a-b",
)


@pytest.fixture
def lm():
    return tiny_lm("llama")


def noisy(view, seed):
    torch.manual_seed(seed)
    for parameter in view.adapter_parameters().values():
        parameter.data.normal_(std=0.3)
    return view


@pytest.mark.parametrize("family", list(CONFIGS))
def test_a_view_has_the_tensors_of_its_own_adapter_alone(family):
    lm = tiny_lm(family)
    config = lora_config(lm.model.config, 2, 2)
    views = {name: lm.add_lora(name, config) for name in ("lora_x", "other", *NAMES)}
    tensors = {name: set(map(id, v.adapter_parameters().values())) for name, v in views.items()}
    assert len({len(own) for own in tensors.values()}) == 1
    every = [p for n, p in lm.model.named_parameters() if "lora_" in n]
    assert sum(map(len, tensors.values())) == len(every)
    assert set.union(*tensors.values()) == set(map(id, every))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_changing_an_adapter_changes_no_view_but_its_own(lm, name):
    config = lora_config(lm.model.config, 2, 2)
    other, view = noisy(lm.add_lora("other", config), 1), lm.add_lora(name, config)
    prompt = Prompt.from_ids(lm, [lm.tokenize("The capital of France")])
    before = other.last_hidden(prompt), view.last_hidden(prompt)
    noisy(view, 2)
    assert torch.equal(other.last_hidden(prompt), before[0])
    assert (view.last_hidden(prompt) - before[1]).abs().max() > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_saved_names_do_not_depend_on_the_adapters(lm, name):
    config = lora_config(lm.model.config, 2, 2)
    expected, found = (as_module(lm.add_lora(n, config)) for n in ("plain", name))
    assert list(found) == list(expected)
    assert "model/layers/0/self_attn/q_proj/lora_A" in found


@pytest.mark.parametrize("name", ["v1.0", "", ".", "a b", "keys", "forward", "training", "other"])
def test_a_name_that_cannot_be_is_refused_before_anything_changes(lm, name):
    config = lora_config(lm.model.config, 2, 2)
    view = noisy(lm.add_lora("other", config), 1)
    prompt = Prompt.from_ids(lm, [lm.tokenize("The capital of France")])
    before = lm.last_hidden(prompt), view.last_hidden(prompt)
    with pytest.raises(ValueError, match="adapter"):
        lm.add_lora(name, config)
    assert torch.equal(lm.last_hidden(prompt), before[0])
    assert torch.equal(view.last_hidden(prompt), before[1])
    assert len(lm.add_lora("c", config).adapter_parameters()) == len(view.adapter_parameters())


@pytest.mark.parametrize("begun", [False, True], ids=["first", "second"])
@pytest.mark.parametrize(
    "config", [LoraConfig(target_modules=["nowhere"]), "no config"], ids=["misfit", "type"]
)
def test_a_config_that_does_not_fit_leaves_the_model_as_it_was(lm, begun, config):
    prompt = Prompt.from_ids(lm, [lm.tokenize("The capital of France")])
    good = lora_config(lm.model.config, 2, 2)
    view = noisy(lm.add_lora("other", good), 1) if begun else lm
    before = view.last_hidden(prompt)
    with pytest.raises((ValueError, TypeError)):
        lm.add_lora("bad", config)
    with pytest.raises(ValueError, match="no adapter 'bad'"):
        lm.with_adapter("bad")
    assert torch.equal(view.last_hidden(prompt), before)
    assert len(lm.add_lora("bad", good).adapter_parameters()) == 28
    assert torch.equal(view.last_hidden(prompt), before)
