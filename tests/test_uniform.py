"""Uniform selection, and its cache in transformers' own `generate`: beside our own path, on logits,
and the formula of what stays written out here."""

from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny import CONFIGS, tiny_lm, tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM

from latentwire.lm import FrozenLM, Greedy, Prompt
from latentwire.wire.message import Message
from latentwire.wire.wire import Wire, WireConfig

TEXT = "abcdefghijklmnopqrstuvwxyz0123456789ABCDE"
QUESTION = "Which letter follows?"
STEPS = 12


def tiny_of(family: str, **changes) -> FrozenLM:
    """A seeded model of one family with other settings."""
    torch.manual_seed(0)
    config = deepcopy(CONFIGS[family])
    for name, value in changes.items():
        setattr(config, name, value)
    model = AutoModelForCausalLM.from_config(config)
    return FrozenLM(model, tokenizer(), f"tiny-{family}")


def corrected(lm: FrozenLM, window: int = 64) -> Wire:
    """A wire whose scorer and corrector do something."""
    wire = Wire(lm, WireConfig(lm.name, 4, window, rank=4, format_tokens=0)).eval()
    seeded = torch.Generator().manual_seed(1)
    torch.nn.init.normal_(wire.scorer.weight, generator=seeded)
    torch.nn.init.normal_(wire.slots.up, 0, 0.3, seeded)
    return wire


def scores_of(wire: Wire) -> Tensor:
    """The scorer's formula, on Hugging Face's own hidden states: [l, h, t]."""
    lm = wire.lm
    start = len(lm.frame.prefix)
    ids = torch.cat([lm.frame.prefix, lm.tokenize(TEXT)])
    states = lm.model(ids[None], output_hidden_states=True, use_cache=False).hidden_states[:-1]
    rows = []
    for x, weight in zip(states, wire.scorer.weight, strict=True):
        x = x[0, start:]
        x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        rows.append((x @ weight).T)
    return torch.stack(rows)


@torch.no_grad()
@pytest.mark.parametrize("keep", [None, "[0-9]"])
def test_every_head_keeps_as_many_and_its_own_best(keep):
    wire = corrected(tiny_lm("llama"))
    competing = wire.keeping(keep).encode([TEXT])[0]
    uniform = wire.keeping(keep).uniform().encode([TEXT])[0]
    digits = torch.tensor([keep is not None and c.isdigit() for c in TEXT])
    count = -(-len(TEXT) // 4) + int(digits.sum())
    assert (uniform.lengths == count).all() and len(competing.lengths.unique()) > 1
    best = scores_of(wire).masked_fill(digits, torch.inf).topk(count).indices.sort(-1).values
    assert torch.equal(uniform.positions.view_as(best), best)
    assert uniform.positions.unique().numel() > count  # heads do differ in what they keep


@torch.no_grad()
def test_uniform_stays_through_other_changes_of_a_wire_and_in_its_folder(tmp_path):
    wire = corrected(tiny_lm("llama"))
    wire.uniform().save_pretrained(tmp_path)
    (again,) = Wire.from_pretrained(tmp_path, wire.lm).encode([TEXT])
    assert again.lengths.unique().tolist() == [-(-len(TEXT) // 4)]
    for changed in (wire.uniform().evicting(), wire.evicting().uniform(), wire.uniform().at(8)):
        assert len(changed.encode([TEXT])[0].lengths.unique()) == 1


CASES = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma3": ("gemma3", {"sliding_window": 128}),  # as long as all that is read here
    "llama-yarn": (
        "llama",
        {
            "rope_parameters": {
                **{"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0},
                "original_max_position_embeddings": 128,
            }
        },
    ),
}


def continued(lm: FrozenLM, wire: Wire, messages: list[Message]) -> SimpleNamespace:
    """What transformers generates from the cache: logits of each step, and tokens."""
    question = torch.cat([lm.tokenize(QUESTION), lm.frame.suffix])
    ids = question.expand(len(messages), -1)
    lm.model.generation_config.eos_token_id = None  # so that all steps are compared
    cache = wire.cache(messages, room=ids.shape[1] + STEPS)
    out = lm.model.generate(
        ids,
        past_key_values=cache,
        attention_mask=torch.ones(len(ids), cache.get_seq_length() + ids.shape[1]),
        **{"max_new_tokens": STEPS, "do_sample": False},
        **{"output_logits": True, "return_dict_in_generate": True},
    )
    return SimpleNamespace(logits=torch.stack(out.logits, 1), ids=out.sequences[:, ids.shape[1] :])


@torch.no_grad()
@pytest.mark.parametrize("window", [64, 16], ids=["one-window", "three-windows"])
@pytest.mark.parametrize("case", CASES)
def test_generate_of_transformers_continues_as_ours(case, window):
    family, changes = CASES[case]
    lm = tiny_of(family, **changes)
    wire = corrected(lm, window).uniform()
    messages = wire.send([TEXT, TEXT[::-1] + "F"])  # as many slots, not as many positions
    theirs = continued(lm, wire, messages)
    question = torch.cat([lm.tokenize(QUESTION), lm.frame.suffix])
    prompt = Prompt.from_ids(lm, [question] * 2, wire.receive(messages))
    ours = lm.logits(prompt, theirs.ids)
    assert (ours - theirs.logits).abs().max() < 1e-4
    assert torch.equal(lm.generate(prompt, Greedy(), STEPS, stop_ids=()).ids, theirs.ids)
    other = wire.receive(messages)  # and distances matter: one position off is another answer
    off = replace(other, next_position=other.next_position + 1)
    moved = lm.logits(Prompt.from_ids(lm, [question] * 2, off), theirs.ids)
    assert (moved - theirs.logits).abs().max() > 1e-3


@torch.no_grad()
def test_a_cache_that_could_not_be_exact_is_refused_in_one_line():
    llama = corrected(tiny_lm("llama"))
    even = llama.uniform()
    gemma = corrected(tiny_of("gemma3", sliding_window=64)).uniform()
    (message,) = gemma.send([TEXT])
    taken = len(gemma.lm.frame.prefix) + message.latents.span
    gemma.cache([message], room=64 - taken)
    gpt2 = Wire.of(tiny_lm("gpt2"), "streaming").uniform()
    rope = {"rope_type": "longrope", "factor": 2.0, "rope_theta": 10000.0}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    long = corrected(tiny_of("llama", rope_parameters=rope)).uniform()
    cases = {
        r"heads have \d+ to \d+ slots; .* wire.uniform\(\)": lambda: llama.cache(
            llama.send([TEXT])
        ),
        "heads have 10 to 11 slots": lambda: even.cache(even.send([TEXT, TEXT[:37]])),
        "layers that see 64 tokens.* takes 65": lambda: gemma.cache([message], room=65 - taken),
        "adds positions to its embeddings": lambda: gpt2.cache(gpt2.send([TEXT])),
        "longrope": lambda: long.cache(long.send([TEXT])),
    }
    for line, attempt in cases.items():
        with pytest.raises(ValueError, match=line) as error:
            attempt()
        assert "\n" not in str(error.value)
