"""Every selector on tiny models of several families: the tokens that stay are those of a formula
written out here from Hugging Face's own outputs."""

import hashlib
import json
import math
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from tiny import CONFIGS, tiny_lm
from torch import Tensor
from transformers import DynamicCache

from latentwire.lm import FrozenLM, Prompt
from latentwire.tasks.qa import ask, by_context, load_questions
from latentwire.wire.evaluation import conditions, evaluate_wire
from latentwire.wire.message import Message
from latentwire.wire.selectors import SELECTORS, TRAINED
from latentwire.wire.wire import Wire, WireConfig, WireError

TEXT = "abcdefghijklmnopqrstuvwxyz0123456789"  # no token twice, so that no scores are tied
RATIO = 4
COUNT = math.ceil(len(TEXT) / RATIO)


@pytest.fixture(scope="module", params=["llama", "qwen3", "gemma3"])
def lm(request) -> FrozenLM:
    lm = tiny_lm(request.param)
    for name, weight in lm.model.named_parameters():
        if "k_norm" in name:  # else all keys of a family that norms them have one norm
            torch.nn.init.normal_(weight, 1, 0.5, torch.Generator().manual_seed(3))
    return lm


def make_wire(lm: FrozenLM, selector: str, ratio: int = RATIO, window: int = 64) -> Wire:
    if selector != TRAINED:
        return Wire.of(lm, selector, ratio, window)
    wire = Wire(lm, WireConfig(lm.name, ratio, window, rank=0, format_tokens=0))
    torch.nn.init.normal_(wire.scorer.weight, generator=torch.Generator().manual_seed(1))
    return wire


class HuggingFace:
    """The model's own outputs for the head, a text and what follows, in one pass."""

    def __init__(self, lm: FrozenLM, after: tuple[Tensor, ...] = ()):
        text = lm.tokenize(TEXT)
        self.start, self.n = len(lm.frame.prefix), len(text)
        ids = torch.cat([lm.frame.prefix, text, *after])
        lm.model.set_attn_implementation("eager")
        # A cache made without the config keeps all of a windowed layer.
        every = {"output_attentions": True, "output_hidden_states": True}
        out = lm.model(ids[None], past_key_values=DynamicCache(), **every)
        lm.model.set_attn_implementation("sdpa")
        text = slice(self.start, self.start + self.n)
        self.keys = torch.stack([layer.keys[0, :, text] for layer in out.past_key_values.layers])
        self.values = torch.stack([x.values[0, :, text] for x in out.past_key_values.layers])
        self.inputs = torch.stack([h[0, text] for h in out.hidden_states[:-1]])
        groups = self.keys.shape[1]
        maps = torch.stack(out.attentions)[:, 0, :, self.start :, text]
        self.attention = maps.unflatten(1, (groups, -1))  # [l, g, heads of one, queries, t]


def of_key_norm(lm: FrozenLM, wire: Wire) -> Tensor:
    return -HuggingFace(lm).keys.pow(2).sum(-1).sqrt()


def of_streaming(lm: FrozenLM, wire: Wire) -> Tensor:
    score = torch.arange(len(TEXT), dtype=torch.float)
    score[:4] = torch.tensor([1004.0, 1003.0, 1002.0, 1001.0])
    return score.expand(len(lm.blocks), lm.kv_shape[0], -1)


def of_random(lm: FrozenLM, wire: Wire) -> Tensor:
    seed = hashlib.sha256(str([int(i) for i in lm.tokenize(TEXT)]).encode()).hexdigest()[:14]
    generator = torch.Generator().manual_seed(int(seed, 16))
    return torch.rand(len(lm.blocks), lm.kv_shape[0], len(TEXT), generator=generator)


def of_attention(lm: FrozenLM, wire: Wire) -> Tensor:
    by_query = HuggingFace(lm).attention
    seen = [by_query[:, :, :, t:, t].mean((2, 3)) for t in range(len(TEXT))]
    return torch.stack(seen, -1)


def of_repetition(lm: FrozenLM, wire: Wire) -> Tensor:
    again = lm.tokenize("\n\nRepeat the text above word for word.")
    out = HuggingFace(lm, (again, lm.frame.suffix, lm.tokenize(TEXT)))
    return out.attention[:, :, :, len(TEXT) :].amax((2, 3))


def of_scorer(lm: FrozenLM, wire: Wire) -> Tensor:
    inputs = HuggingFace(lm).inputs
    sizes = inputs.pow(2).mean(-1, keepdim=True).sqrt()
    return torch.stack([(x / s) @ w for x, s, w in zip(inputs, sizes, wire.scorer.weight)]).mT  # noqa: B905


FORMULAS: dict[str, tuple[Callable[[FrozenLM, Wire], Tensor], bool]] = {
    "attention": (of_attention, True),
    "key_norm": (of_key_norm, False),
    "random": (of_random, False),
    "repetition": (of_repetition, True),
    "streaming": (of_streaming, False),
    TRAINED: (of_scorer, True),
}
"""By name: a formula for the scores [l, h, t], and whether heads compete for slots."""
each_selector = pytest.mark.parametrize("name", FORMULAS)


def test_every_selector_has_its_row():
    assert set(FORMULAS) == {*SELECTORS, TRAINED}


def kept_by_hand(scores: Tensor, compete: bool) -> list[tuple[int, int, int]]:
    """(layer, head, token) of what stays."""
    places = [tuple(p) for p in torch.ones_like(scores).nonzero().tolist()]
    ordered = sorted(places, key=lambda p: -scores[p].item())
    heads = {p[:2]: [q for q in ordered if q[:2] == p[:2]] for p in places}
    if not compete:
        return sorted(p for of_head in heads.values() for p in of_head[:COUNT])
    best = [of_head[0] for of_head in heads.values()]
    others = [p for p in ordered if p not in best]
    return sorted(best + others[: len(heads) * COUNT - len(heads)])


@torch.no_grad()
@each_selector
def test_what_stays_is_what_the_formula_says_at_its_own_position(lm, name):
    wire, (formula, compete) = make_wire(lm, name), FORMULAS[name]
    (latents,) = wire.encode([TEXT])
    kept, own = kept_by_hand(formula(lm, wire), compete), HuggingFace(lm)
    assert len(latents.keys) == len(kept) == COUNT * latents.lengths.numel()
    assert len(latents) == wire.latents(TEXT) == COUNT and latents.span == len(TEXT)
    assert (latents.lengths == COUNT).all() != compete
    owners = latents.lengths.nonzero().repeat_interleave(latents.lengths.flatten(), 0).tolist()
    places = latents.positions.tolist()
    assert [(*owner, at) for owner, at in zip(owners, places, strict=True)] == kept
    at = torch.tensor(kept).unbind(1)
    torch.testing.assert_close(latents.keys, own.keys[at], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(latents.values, own.values[at], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@each_selector
def test_a_row_is_what_it_is_alone_and_every_time(lm, name):
    wire, texts = make_wire(lm, name, window=16), [TEXT, "short: 42", TEXT[::-1]]
    for text, together in zip(texts, wire.encode(texts), strict=True):
        (alone,), (again,) = wire.encode([text]), wire.encode([text])
        assert torch.equal(alone.keys, again.keys) and torch.equal(alone.positions, again.positions)
        assert torch.equal(alone.positions, together.positions)
        torch.testing.assert_close(alone.keys, together.keys, atol=1e-4, rtol=1e-4)
        windows = [min(16, len(text) - at) for at in range(0, len(text), 16)]
        slots = sum(math.ceil(n / RATIO) for n in windows)
        assert len(together.keys) == slots * together.lengths.numel()


@torch.no_grad()
@each_selector
def test_at_ratio_one_it_is_the_full_text(lm, name):
    more = lm.tokenize(" and?")
    prefix = make_wire(lm, name, ratio=1).prefix(make_wire(lm, name, ratio=1).encode([TEXT]))
    ours = lm.head(lm.last_hidden(Prompt.from_ids(lm, [more], prefix)))[0]
    ids = torch.cat([lm.frame.prefix, lm.tokenize(TEXT), more])
    theirs = lm.model(ids[None]).logits[0, -len(more) :]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@torch.no_grad()
def test_what_follows_stands_behind_the_whole_text_and_sees_what_stayed_alone(lm):
    """Against Hugging Face's own pass over everything, dropped tokens hidden by a mask."""
    wire, more = Wire.of(lm, "streaming", RATIO), lm.tokenize(" and then?")
    prompt = Prompt.from_ids(lm, [more], wire.prefix(wire.encode([TEXT])))
    ours = lm.head(lm.last_hidden(prompt))[0]
    head, n = len(lm.frame.prefix), len(TEXT)
    ids = torch.cat([lm.frame.prefix, lm.tokenize(TEXT), more])
    seen = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    seen[head + n :, head + 4 : head + n - (COUNT - 4)] = False
    where = torch.arange(len(ids))
    near = where[:, None] - where < (getattr(lm.model.config, "sliding_window", None) or 10**6)

    def additive(visible: Tensor) -> Tensor:
        return torch.zeros(visible.shape).masked_fill(~visible, torch.finfo().min)[None, None]

    full, windowed = additive(seen), additive(seen & near)
    both = {"full_attention": full, "sliding_attention": windowed}
    mask = both if lm.name == "tiny-gemma3" else full
    theirs = lm.model(ids[None], attention_mask=mask).logits[0, head + n :]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_wire_without_any_training_in_one_line(family, tmp_path):
    lm = tiny_lm(family)
    wire = Wire.of(lm, selector="key_norm", ratio=4)
    (message,) = wire.send([TEXT])
    data = message.to_bytes()
    received = wire.receive([Message.from_bytes(data)])
    own = lm.prefill(Prompt.from_ids(lm, [torch.cat([lm.frame.prefix, lm.tokenize(TEXT)])]))
    assert received.nbytes() < own.nbytes() / 2
    assert len(ask(wire, message, ["Who?", "When?"])) == 2
    wire.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["selector"] == "key_norm"
    loaded = Wire.from_pretrained(tmp_path, lm)
    assert loaded.send([TEXT])[0].to_bytes() == data and loaded.config == wire.config
    assert wire.at(2).latents(TEXT) == 18 and len(wire.keeping("numbers").encode([TEXT])[0]) == 19


def test_selectors_that_there_are_not(tmp_path):
    lm = tiny_lm("llama")
    names = ", ".join(SELECTORS)
    with pytest.raises(WireError, match=f"no selector 'norm'; expected one of: {names}"):
        Wire.of(lm, "norm")
    with pytest.raises(WireError, match=f"selector is 'norm'; expected one of: scorer, {names}"):
        WireConfig("x", selector="norm")
    Wire(lm, WireConfig(lm.name, window=64, rank=4, format_tokens=3)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "selector" not in config  # as folders of wires have always been
    for change in ({"selector": "random"}, {"rank": 0}, {"format_tokens": 0}):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(WireError, match="does not fit the weights; it was altered"):
            Wire.from_pretrained(tmp_path, lm)


def test_eviction_alone_and_by_other_selectors_are_rows_of_an_evaluation(tmp_path):
    lm, path = tiny_lm("llama"), tmp_path / "d.jsonl"
    contexts = ["Ada was born in 1815.", "Emmy was born in 1882."]
    rows = [
        {"id": str(i), "context": c, "question": "When?", "answers": [c[-5:-1]]}
        for i, c in enumerate(contexts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    wire = Wire(lm, WireConfig(lm.name, window=64, rank=4, format_tokens=3))
    for weight in (wire.scorer.weight, wire.slots.up):
        torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(2))
    result = evaluate_wire(wire, str(path), also=("random", "key_norm"))
    names = list(result["rows"])
    assert names[1:5] == ["wire", "evicted", "evicted_by_random", "evicted_by_key_norm"]
    assert result["also"] == ["key_norm", "random"]
    assert result["rows"]["evicted"]["nll"] != result["rows"]["wire"]["nll"]

    plain = deepcopy(wire)  # what a residual of zeros gives is eviction alone
    plain.slots.up.data.zero_()
    passages = by_context(load_questions(str(path)))
    ours = conditions(wire, passages)["evicted"](contexts)
    theirs = conditions(plain, passages)["wire"](contexts)
    for mine, other in zip(ours.ragged, theirs.ragged, strict=True):
        assert torch.equal(mine.keys, other.keys) and torch.equal(mine.lengths, other.lengths)
    trained = wire.compressor.corrector
    assert trained is wire.slots and wire.evicting().compressor.corrector is None
    free = evaluate_wire(Wire.of(lm, "streaming"), str(path), also=("random",))["rows"]
    assert "evicted" not in free and "evicted_by_random" in free
    with pytest.raises(WireError, match="no selector 'x'"):
        evaluate_wire(wire, str(path), also=("x",))
