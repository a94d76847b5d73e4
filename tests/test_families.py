"""The families beside those that tests/test_agreement.py runs whole: what can differ by family."""

from copy import deepcopy

import pytest
import torch
from test_agreement import (  # noqa: F401
    dropping,
    test_a_padded_prefix_equals_an_unpadded_one,
    test_attentions_equal_hugging_face,
    test_gradient_checkpointing_sees_the_heads_slots,
    test_heads_see_their_own_slots_and_no_others,
    test_states_are_what_enters_each_block,
)
from tiny import CONFIGS, SMALL_CONFIGS, tiny_lm, tokenizer
from transformers import AutoModelForCausalLM, Gemma2Config, GptOssConfig, LlamaConfig

from latentwire.lm import FrozenLM, Prompt
from latentwire.lm.adapters import fresh_lora
from latentwire.lm.doctor import CHECKS, TEXTS
from latentwire.lm.families import (
    FAMILIES,
    REASONS,
    UnsupportedModel,
    attention_softcap,
    capped,
    family_of,
    key_gains,
    rotate,
    rotates,
)
from latentwire.wire.codes.decoder import normed


@pytest.fixture(scope="module", params=list(SMALL_CONFIGS))
def lm(request):
    lm, numbers = tiny_lm(request.param), torch.Generator().manual_seed(0)
    for name, weight in lm.model.named_parameters():
        if "norm" in name:  # all gains are alike at first
            weight.data += torch.rand(weight.shape, generator=numbers) - 0.5
    return lm


CASES = {
    "logits = Hugging Face": ("ids", "prefix", "ragged", "patch_all"),
    "hidden = Hugging Face": ("ids",),
    "prefill + rest = full pass": ("ids", "ragged"),
    "row in batch = row alone": ("prefix",),
    "score = decode": (),  # no family's own, and half of the time
    "cached = uncached = checkpointed": ("ids",),
    "no gradient on weights": ("ids",),
}


def test_every_family_is_in_a_matrix():
    tried = [config.model_type for config in (CONFIGS | SMALL_CONFIGS).values()]
    assert sorted(tried) == sorted(FAMILIES) and CASES.keys() == CHECKS.keys()


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, kinds in CASES.items() for kind in kinds]
)
def test_agreement(lm, name, kind):
    check, _, tolerance = CHECKS[name]
    assert check(lm, kind, True) <= tolerance


def test_rotation_moves_a_prefix_to_where_the_model_puts_it(lm):
    """States depend on distances alone, so a text that stands elsewhere has the same keys, rotated
    by more; a layer that does not rotate has the very same."""
    row = torch.cat([lm.bos, lm.tokenize(TEXTS[2])])
    near = lm.prefill(Prompt.from_ids(lm, [row]))
    shifted = Prompt.from_ids(lm, [row])
    far = lm.prefill(Prompt(shifted.embeds, shifted.mask, shifted.positions + 40))
    at = near.positions[:, None].expand(-1, lm.kv_shape[0], -1)
    for layer, (keys, elsewhere) in enumerate(zip(near.keys, far.keys, strict=True)):
        bare = rotate(lm.model, layer, keys, at, back=True)
        moved = rotate(lm.model, layer, bare, at + 40)
        torch.testing.assert_close(moved, elsewhere, atol=1e-4, rtol=0)
        assert ((elsewhere - keys).abs().max() > 0.01) == rotates(lm.model.config, layer)


NORMED = ("tiny-olmo2", "tiny-olmo3", "tiny-olmoe", "tiny-qwen3_moe")


def test_key_gains_are_what_the_keys_were_normed_with(lm):
    prefix = lm.prefill(Prompt.from_ids(lm, [lm.tokenize(TEXTS[0])]))
    at = prefix.positions[:, None].expand(-1, lm.kv_shape[0], -1)
    for layer, (keys, gain) in enumerate(zip(prefix.keys, key_gains(lm.model), strict=True)):
        assert (gain is not None) == (lm.name in NORMED)
        bare = rotate(lm.model, layer, keys, at, back=True)[0]
        again = normed(bare * (1 if gain is None else 3), gain)
        torch.testing.assert_close(again, bare, atol=0, rtol=5e-3)  # small ones: their norm's eps


def test_attention_inputs_give_the_attention(lm):
    prompt = Prompt.from_text(lm, TEXTS[:2])
    layers = range(len(lm.blocks))
    final, seen = lm.attention_inputs(prompt, layers)
    torch.testing.assert_close(final, lm.last_hidden(prompt), atol=1e-5, rtol=0)
    cap = attention_softcap(lm.model.config)
    for (queries, keys, _, visible), expected in zip(seen, lm.attentions(prompt), strict=True):
        keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1)
        logits = capped(queries @ keys.transpose(2, 3), cap).masked_fill(~visible, -torch.inf)
        torch.testing.assert_close(logits.softmax(-1), expected, atol=1e-5, rtol=0)


def test_every_linear_map_of_the_row_takes_a_lora(lm):
    prompt = Prompt.from_text(lm, TEXTS[:1])
    plain = lm.last_hidden(prompt)
    view = fresh_lora(lm, 2, len(lm.blocks))
    parameters = view.adapter_parameters()
    for name in FAMILIES[lm.model.config.model_type].linear:
        assert sum(f".{name}." in of for of in parameters) == 2 * len(lm.blocks)
    numbers = torch.Generator().manual_seed(0)
    for parameter in parameters.values():
        torch.nn.init.normal_(parameter, std=0.3, generator=numbers)
    tuned = view.last_hidden(prompt)
    assert (tuned - plain).abs().max() > 0.01
    assert torch.equal(lm.last_hidden(prompt), plain)
    tuned.square().sum().backward()
    assert all(p.grad is not None for p in parameters.values())


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (GptOssConfig(num_hidden_layers=1), f"'gpt_oss' is not supported: it {REASONS['gpt_oss']}"),
        (LlamaConfig(use_bidirectional_attention=True), "attend to later ones .*a causal LM"),
        (Gemma2Config(use_bidirectional_attention=True), "attend to later ones .*a causal LM"),
    ],
)
def test_what_cannot_be_supported_says_why_in_one_line(config, said):
    with pytest.raises(UnsupportedModel, match=said) as error:
        family_of(config)
    assert "\n" not in str(error.value) and not REASONS.keys() & FAMILIES.keys()


def test_a_window_that_the_architecture_ignores_hides_nothing():
    lm = tiny_lm("llama")
    prompt = Prompt.from_text(lm, TEXTS[:1])
    plain = lm.last_hidden(prompt)
    lm.model.config.sliding_window = 3
    assert torch.equal(lm.last_hidden(prompt), plain)
    expected = lm.model(inputs_embeds=prompt.embeds).logits
    torch.testing.assert_close(lm.head(plain), expected, atol=1e-5, rtol=0)


def test_rotation_that_changes_with_the_length_ends_the_context():
    """Phi-3's long factors are for all positions of a text once it is long: a cache made before
    would be rotated by the short ones."""
    config = deepcopy(SMALL_CONFIGS["phi3"])
    config.original_max_position_embeddings = 64
    config.rope_parameters |= {
        "rope_type": "longrope",
        **{"short_factor": [1.0] * 3, "long_factor": [2.0] * 3},
    }
    lm = FrozenLM(AutoModelForCausalLM.from_config(config), tokenizer(), "tiny-phi3")
    assert lm.context_length == 64
    row = lm.tokenize(TEXTS[1])[:64]
    begun = lm.prefill(Prompt.from_ids(lm, [row[:30]]))
    rest = lm.head(lm.last_hidden(Prompt.from_ids(lm, [row[30:]], begun)))
    torch.testing.assert_close(rest, lm.model(row[None]).logits[:, 30:], atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="65 positions; tiny-phi3 has a context length of 64"):
        lm.last_hidden(Prompt.from_ids(lm, [torch.zeros(65, dtype=torch.long)]))
