"""The keystone: every path through the port against every other, and against Hugging Face.

Kinds of input x {one row, ragged batch} x families, on logits, CPU, float32, seeded.
"""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig
from tiny import CONFIGS, tiny_lm
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface

from latentwire.lm import (
    FrozenLM,
    Greedy,
    KVPrefix,
    Patch,
    Prompt,
    RaggedKV,
    Sampled,
    StraightThroughGumbel,
    cache,
    gradient_checkpointing,
    pad_right,
    seeded_noise,
)
from latentwire.lm.cache import attention_mask
from latentwire.lm.doctor import CHECKS, LOGIT_TOLERANCE, TEXTS, examine, make_case


@pytest.fixture(scope="module", params=list(CONFIGS))
def lm(request):
    return tiny_lm(request.param)


MATRIX = [
    pytest.param(check, kind, tolerance, id=f"{name}-{kind}".replace(" ", "_"))
    for name, (check, kinds, tolerance) in CHECKS.items()
    for kind in kinds
]


@pytest.mark.parametrize("ragged", [False, True], ids=["row", "ragged"])
@pytest.mark.parametrize(("check", "kind", "tolerance"), MATRIX)
def test_agreement(lm, check, kind, tolerance, ragged):
    assert check(lm, kind, ragged) <= tolerance


def test_prompt_gradient_passes_gradcheck(lm):
    double = tiny_lm(lm.name.removeprefix("tiny-"), torch.float64)
    prompt = Prompt.from_ids(double, [double.tokenize("gradient")[:4], double.tokenize("of")])
    targets, mask = pad_right([double.tokenize("xyz"), double.tokenize("w")])
    vector = torch.randn(2, 1, double.width, dtype=torch.float64, requires_grad=True)
    embeds = prompt.embeds.detach().clone().requires_grad_()

    def scored(embeds, vector):
        patch = Patch(1, torch.tensor([[3], [3]]), vector)
        patched = Prompt(embeds, prompt.mask, prompt.positions, None, (patch,))
        return double.score(patched, targets, mask, 0.7)

    if lm.name == "tiny-gpt2":  # its layer norm is float64 throughout: each number of the input
        assert torch.autograd.gradcheck(scored, (embeds, vector))
        return
    draws = torch.Generator().manual_seed(0)
    ways = [torch.randn(12, *x.shape, generator=draws, dtype=x.dtype) / 8 for x in (embeds, vector)]

    def along(lengths):
        """Along directions in which all numbers move."""
        moves = [torch.tensordot(lengths, way, 1) for way in ways]
        return scored(embeds.detach() + moves[0], vector.detach() + moves[1])

    # Hugging Face's RMS norms compute in float32 whatever the model's type, so finite differences
    # need a wide step.
    start = torch.zeros(12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(along, start, eps=1e-3, atol=5e-3, rtol=1e-2)


def test_score_is_the_hand_computed_log_softmax_of_hugging_face(lm):
    context, answer = lm.tokenize("Twelve"), lm.tokenize("abc")
    logits = lm.model(torch.cat([context, answer])[None]).logits[0]
    expected = [
        (logits[len(context) - 1 + i] / 1.3).log_softmax(-1)[token]
        for i, token in enumerate(answer)
    ]
    ours = lm.score(Prompt.from_ids(lm, [context]), answer[None], temperature=1.3)[0]
    torch.testing.assert_close(ours, torch.stack(expected), atol=1e-5, rtol=0)


def test_decoding_modes_give_the_same_tokens_and_logits(lm):
    noise, length = seeded_noise([3, 4]), 50
    prompt = Prompt.from_text(lm, TEXTS[:2])
    seen: dict[str, list[torch.Tensor]] = {}
    tokens = []
    for mode in ("kv", "none", "checkpoint"):
        sampler = _Recording(StraightThroughGumbel(noise), seen.setdefault(mode, []))
        tokens.append(lm.generate(prompt, sampler, length, stop_ids=(), caching=mode).ids)
    assert tokens[0].shape == (2, length)
    assert torch.equal(tokens[0], tokens[1]) and torch.equal(tokens[0], tokens[2])
    for cached, uncached in zip(seen["kv"], seen["none"], strict=True):
        torch.testing.assert_close(cached, uncached, atol=1e-4, rtol=0)


def test_decoding_equals_hugging_face_generate(lm):
    row = torch.cat([lm.bos, lm.tokenize(TEXTS[0])])
    theirs = lm.model.generate(
        row[None], attention_mask=torch.ones_like(row)[None], max_new_tokens=12, do_sample=False
    )[0, len(row) :]
    ours = lm.generate(Prompt.from_ids(lm, [row]), Greedy(), 12)
    assert ours.ids[0, : len(theirs)].tolist() == theirs.tolist()


def test_continuations_share_one_prefill(lm):
    context = [torch.cat([lm.bos, lm.tokenize(t)]) for t in TEXTS[:2]]
    more = [lm.tokenize(t) for t in ("first", "the second", "third one", "x")]
    shared = lm.prefill(Prompt.from_ids(lm, context)).repeat(2)
    together = lm.head(lm.last_hidden(Prompt.from_ids(lm, more, shared))[:, -1])
    for i, continuation in enumerate(more):
        full = torch.cat([context[i // 2], continuation])
        alone = lm.model(full[None]).logits[0, -1]
        torch.testing.assert_close(together[i], alone, atol=1e-4, rtol=0)


def test_k_samples_of_one_prefill_equal_single_calls(lm):
    row = torch.cat([lm.bos, lm.tokenize(TEXTS[0])])
    prefix = lm.prefill(Prompt.from_ids(lm, [row[:-1]]))
    together = lm.generate(
        Prompt.from_ids(lm, [row[-1:]] * 3, prefix.repeat(3)), Sampled(seeded_noise([5, 6, 7])), 8
    )
    for k, seed in enumerate((5, 6, 7)):
        alone = lm.generate(Prompt.from_ids(lm, [row]), Sampled(seeded_noise([seed])), 8)
        real = alone.ids.shape[1]
        assert together.ids[k, :real].tolist() == alone.ids[0].tolist()


@pytest.fixture
def dropping(lm):
    """Hugging Face's attention, written out, where heads do not see the columns that are named:
    a function of which, [l, b, h, p]."""
    dropped = []

    def attention(module, query, key, value, mask, scaling=None, softcap=None, **_):
        group = query.shape[1] // key.shape[1]
        keys, values = (x.repeat_interleave(group, 1) for x in (key, value))
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        weights = query @ keys.transpose(2, 3) * scale
        weights = (weights if softcap is None else (weights / softcap).tanh() * softcap) + mask
        hidden = dropped[0][module.layer_idx].repeat_interleave(group, 1)[:, :, None]
        weights[..., : hidden.shape[-1]].masked_fill_(hidden, -torch.inf)
        return (weights.softmax(-1) @ values).transpose(1, 2), None

    AttentionInterface.register("dropping", attention)
    usual = lm.model.config._attn_implementation
    yield lambda which: (dropped.append(which), lm.model.set_attn_implementation("dropping"))
    lm.model.set_attn_implementation(usual)


def test_heads_see_their_own_slots_and_no_others(lm, dropping):
    rows = [torch.cat([lm.bos, lm.tokenize(text[:20])]) for text in TEXTS[:2]]
    more = [lm.tokenize("and then"), lm.tokenize("so")]
    whole = lm.prefill(Prompt.from_ids(lm, rows))
    layers, (heads, width), columns = len(lm.blocks), lm.kv_shape, len(whole)
    kept = torch.rand(layers, 2, heads, columns, generator=torch.Generator().manual_seed(0)) < 0.3
    kept[..., -1] = True
    lengths = kept.sum(-1)
    assert lengths.unique().numel() > 3
    slots = [
        RaggedKV(keys[kept[i]], values[kept[i]], kept[i].nonzero()[:, 2], lengths[i])
        for i, (keys, values) in enumerate(zip(whole.keys, whole.values, strict=True))
    ]
    nothing = torch.zeros(2, heads, 0, width)
    prefix = KVPrefix(
        (nothing,) * layers,
        (nothing,) * layers,
        torch.zeros(2, 0, dtype=torch.bool),
        torch.zeros(2, 0, dtype=torch.long),
        whole.next_position,
        ragged=tuple(slots),
    )
    prompt = Prompt.from_ids(lm, more, prefix)
    targets = torch.stack([lm.tokenize("xyz")] * 2)
    ours, swapped = lm.head(lm.last_hidden(prompt)), prefix.rows(torch.tensor([1, 1, 0]))
    again = lm.head(lm.last_hidden(Prompt.from_ids(lm, [more[1], more[1], more[0]], swapped)))
    scored = lm.score(prompt, targets)
    assert prefix.nbytes() == 2 * 4 * width * int(lengths.sum())
    dropping(~kept)
    theirs = lm.head(lm.last_hidden(Prompt.from_ids(lm, more, whole)))
    torch.testing.assert_close(ours[prompt.mask], theirs[prompt.mask], atol=1e-4, rtol=0)
    torch.testing.assert_close(again[:, -2:], theirs[[1, 1, 0], -2:], atol=1e-4, rtol=0)
    expected = lm.score(Prompt.from_ids(lm, more, whole), targets)
    torch.testing.assert_close(scored, expected, atol=1e-4, rtol=0)


def test_gradient_checkpointing_sees_the_heads_slots(lm):
    prompt = make_case(lm, "ragged", True).prompt
    assert prompt.prefix is not None
    slots, gradients = prompt.prefix.ragged, []
    for on in (False, True):
        leaves = [replace(s, keys=s.keys.detach().requires_grad_()) for s in slots]
        given = replace(prompt, prefix=replace(prompt.prefix, ragged=tuple(leaves)))
        with gradient_checkpointing(on):
            lm.last_hidden(given).square().sum().backward()
        gradients.append(torch.stack([s.keys.grad for s in leaves]))
    assert gradients[0].abs().amax((1, 2)).min() > 0
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_a_padded_prefix_equals_an_unpadded_one(lm):
    row, more = lm.tokenize("prefix here"), lm.tokenize("rest")
    prefix = lm.prefill(Prompt.from_ids(lm, [row]))

    def widened(t, value):
        return torch.cat([torch.full_like(t[..., :2, :], value), t], -2)

    padded = KVPrefix(
        tuple(widened(k, 9.0) for k in prefix.keys),
        tuple(widened(v, 9.0) for v in prefix.values),
        torch.cat([torch.zeros(1, 2, dtype=torch.bool), prefix.mask], 1),
        torch.cat([torch.zeros(1, 2, dtype=torch.long), prefix.positions], 1),
        prefix.next_position,
    )
    a = lm.head(lm.last_hidden(Prompt.from_ids(lm, [more], prefix)))
    b = lm.head(lm.last_hidden(Prompt.from_ids(lm, [more], padded)))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_states_are_what_enters_each_block(lm):
    prompt = Prompt.from_text(lm, TEXTS[:1])
    states = lm.states(prompt)
    theirs = lm.model(inputs_embeds=prompt.embeds, output_hidden_states=True).hidden_states
    for ours, expected in zip(states.inputs, theirs, strict=False):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(states.final, theirs[-1], atol=1e-5, rtol=0)


def test_attentions_equal_hugging_face(lm):
    prompt = Prompt.from_text(lm, TEXTS[:1])
    ours, usual = lm.attentions(prompt), lm.model.config._attn_implementation
    lm.model.set_attn_implementation("eager")
    theirs = lm.model(inputs_embeds=prompt.embeds, output_attentions=True).attentions
    lm.model.set_attn_implementation(usual)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", list(CONFIGS))
def test_lora_is_switched_per_call(family):
    lm = tiny_lm(family)
    prompt = Prompt.from_text(lm, TEXTS[:1])
    plain = lm.head(lm.last_hidden(prompt))
    targets = ["c_attn"] if family == "gpt2" else ["q_proj", "v_proj"]
    student = lm.add_lora("student", LoraConfig(r=2, target_modules=targets))
    for name, parameter in student.adapter_parameters().items():
        torch.nn.init.normal_(
            parameter, std=0.3, generator=torch.Generator().manual_seed(len(name))
        )
    on = student.head(student.last_hidden(prompt))
    assert (on - plain).abs().max() > 0.01
    assert torch.equal(lm.head(lm.last_hidden(prompt)), plain)
    torch.testing.assert_close(student.head(student.last_hidden(prompt)), on, atol=0, rtol=0)
    student.score(prompt, lm.tokenize("abc")[None]).sum().backward()
    assert all(p.grad is not None for p in student.adapter_parameters().values())
    others = [p for n, p in lm.model.named_parameters() if "lora_" not in n]
    assert all(p.grad is None for p in others)


def test_decode_stops_at_stop_ids_and_strings(lm):
    prompt = Prompt.from_text(lm, TEXTS[:1])
    free = lm.generate(prompt, Greedy(), 10, stop_ids=())
    third = int(free.ids[0, 2])
    first = free.ids[0].tolist().index(third)
    stopped = lm.generate(prompt, Greedy(), 10, stop_ids=(third,))
    assert stopped.ids[0].tolist() == free.ids[0, : first + 1].tolist()
    assert stopped.mask.all() and stopped.texts[0] == lm.tokenizer.decode(free.ids[0, :first])
    text = free.texts[0]
    assert len(text) > 2
    cut = lm.generate(prompt, Greedy(), 10, stop_ids=(), stop_strings=(text[1:3],))
    assert cut.texts[0] == text[: text.index(text[1:3])]


class _Recording:
    """A sampler that keeps the logits it was shown."""

    def __init__(self, sampler, seen):
        self.sampler, self.seen, self.temperature = sampler, seen, sampler.temperature

    def __call__(self, logits, step):
        self.seen.append(logits.detach())
        return self.sampler(logits, step)


def test_two_continuations_of_one_cache_do_not_see_each_other(lm):
    """Without gradients a cache grows in place: the first to go on takes the room behind it."""
    context = torch.cat([lm.bos, lm.tokenize(TEXTS[0])])
    with torch.no_grad():
        shared = lm.prefill(Prompt.from_ids(lm, [context]))
        shared = lm.prefill(Prompt.from_ids(lm, [lm.tokenize("x")], shared))  # one that has room
        ways = [lm.tokenize(text) for text in ("first", "second one", "3")]
        grown = [lm.prefill(Prompt.from_ids(lm, [way], shared)) for way in ways]
        ends = [
            lm.last_hidden(Prompt.from_ids(lm, [lm.tokenize("?")], cache))[0, -1] for cache in grown
        ]
    for way, end in zip(ways, ends, strict=True):
        whole = torch.cat([context, lm.tokenize("x"), way, lm.tokenize("?")])
        theirs = lm.model(whole[None]).logits[0, -1]
        torch.testing.assert_close(lm.head(end), theirs, atol=1e-4, rtol=0)


def test_a_generation_without_gradients_copies_no_cache(lm, monkeypatch):
    """Also where nobody said no_grad."""
    appended, append = [], cache._appended
    monkeypatch.setattr(cache, "_appended", lambda *a: (appended.append(1), append(*a))[1])
    prompt = Prompt.from_ids(lm, [lm.tokenize(TEXTS[0])])
    lm.generate(prompt, Greedy(), 4, stop_ids=())
    assert len(appended) == 2 * 3 * len(lm.blocks)  # keys and values, all steps but the first
    embeds = prompt.embeds.requires_grad_()
    soft = lm.generate(replace(prompt, embeds=embeds), Greedy(), 4, stop_ids=())
    assert len(appended) == 2 * 3 * len(lm.blocks) and soft.log_probs.requires_grad


def test_a_special_token_that_a_text_spells_out_is_words(lm):
    text, byte = "a<eos>b", lm.tokenizer.convert_tokens_to_ids
    assert lm.tokenize(text).tolist() == [byte(c) for c in text]
    prompt = Prompt.from_chat(lm, [text])
    assert not torch.isin(prompt.embeds, lm.embed(torch.tensor([2]))).all(-1).any()


@pytest.mark.parametrize(
    ("set_up", "said"),
    [
        (lambda m: m.set_attn_implementation("flex_attention"), "runs flex_attention, .*='sdpa'"),
        (lambda m: setattr(m, "hf_device_map", {"model": 0, "lm_head": 1}), "spread over 0, 1;"),
    ],
    ids=["attention", "devices"],
)
def test_a_model_that_would_answer_wrongly_is_refused(set_up, said):
    lm = tiny_lm("llama")
    model = deepcopy(lm.model)  # its config is one for all tests
    set_up(model)
    with pytest.raises(ValueError, match=said):
        FrozenLM(model, lm.tokenizer, "mine")


class _Largest(TorchDispatchMode):
    """The bytes of the largest tensor that is made."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.bytes = max(self.bytes, made.nbytes)
        return made


def test_a_mask_takes_no_more_than_its_floats_where_all_layers_see_everything():
    lm = tiny_lm("llama")
    prompt = Prompt.from_ids(lm, [torch.zeros(300, dtype=torch.long)])
    with _Largest() as largest:
        mask = attention_mask(prompt, lm.model.config)
    assert largest.bytes == mask.nbytes == 4 * 300 * 300


@pytest.mark.parametrize(
    ("template", "head", "tail"),
    [
        (  # as Llama 3.2's begins: the same head every day
            "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
            "{% endif %}Today Date: {{ date_string }}{% for m in messages %} {{ m.content }}"
            "{% endfor %} ->",
            "Today Date: 26 Jul 2024 ",
            " ->",
        ),
        (  # as Qwen3's ends: an answer begins behind the thought that is left out
            "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %} ->"
            "{% if enable_thinking is defined and enable_thinking is false %}<think></think>"
            "{% endif %}{% endif %}",
            "",
            " -><think></think>",
        ),
    ],
)
def test_a_frame_has_neither_todays_date_nor_a_thought(template, head, tail):
    lm = tiny_lm("llama")
    lm.tokenizer.chat_template = template
    assert (lm.detokenize(lm.frame.prefix), lm.detokenize(lm.frame.suffix)) == (head, tail)


def test_a_template_that_says_the_words_twice_is_refused():
    lm = tiny_lm("llama")
    lm.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}"
    with pytest.raises(ValueError, match="says a user's words 2 times; expected once"):
        _ = lm.frame


def test_the_doctor_allows_a_model_its_own_rounding_and_no_more(monkeypatch):
    lm = tiny_lm("llama")
    lm.model.lm_head.weight.data *= 1e4  # logits of hundreds, and differences with them
    found = list(examine(lm))
    assert all(f.passed for f in found)
    assert max(f.difference for f in found) > LOGIT_TOLERANCE
    head = FrozenLM.head
    monkeypatch.setattr(FrozenLM, "head", lambda self, final: head(self, final) * 1.0001)
    assert any(not f.passed for f in examine(lm))


def test_noise_is_a_seeds_own_and_drawn_where_the_logits_are(monkeypatch):
    devices, generator = [], torch.Generator

    def recorded(device=None):
        devices.append(device)
        return generator(device or "cpu")

    monkeypatch.setattr(torch, "Generator", recorded)
    logits = torch.zeros(3, 1001, dtype=torch.bfloat16)
    together = seeded_noise([5, 6, 5], [0, 2, 1])(3, logits)
    assert devices == [logits.device] * 3 and together.dtype == torch.float32
    for row, seed, at in zip(together, (5, 6, 5), (3, 5, 4), strict=True):
        drawn = torch.rand(1001, generator=generator().manual_seed((seed << 20) + at))
        assert torch.equal(row, -(-drawn.clamp(1e-20, 1 - 1e-7).log()).log())
        assert torch.equal(row, seeded_noise([seed])(at, logits[:1])[0])
