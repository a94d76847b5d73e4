"""The wire on tiny models of every family: what it keeps, what it sends, what it refuses."""

import json
import math

import huggingface_hub
import pytest
import torch
from tiny import CONFIGS, tiny_lm
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from latentwire.lm import FrozenLM, Prompt
from latentwire.wire.compressor import chosen
from latentwire.wire.corrector import kept_and_segment
from latentwire.wire.load import load_wire
from latentwire.wire.scorer_fit import FLOOR, RidgeFit
from latentwire.wire.selectors.scorer import Scorer, normed
from latentwire.wire.wire import Wire, WireConfig, WireError

TEXTS = ["The lighthouse was built in 1759 by John Smeaton.", "Short one."]


@pytest.fixture(scope="module", params=list(CONFIGS))
def lm(request):
    return tiny_lm(request.param)


def make_wire(lm, ratio=4, window=64, trained=True) -> Wire:
    wire = Wire(lm, WireConfig(lm.name, ratio=ratio, window=window, rank=4, format_tokens=3))
    generator = torch.Generator().manual_seed(1)
    wire.scorer.weight.data = torch.randn(wire.scorer.weight.shape, generator=generator)
    if trained:
        wire.slots.up.data = 0.1 * torch.randn(wire.slots.up.shape, generator=generator)
    return wire


def test_a_wire_at_another_ratio_is_that_wire_with_more_or_fewer_slots(lm):
    wire = make_wire(lm)
    for ratio in (1, 2, 7):
        other = make_wire(lm, ratio=ratio)
        other.load_state_dict(wire.state_dict())
        ours, theirs = wire.at(ratio).encode(TEXTS), other.encode(TEXTS)
        assert [len(z) for z in ours] == [math.ceil(len(lm.tokenize(t)) / ratio) for t in TEXTS]
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)
        assert wire.at(ratio).id == wire.id
    with pytest.raises(WireError, match="ratio is 0"):
        wire.at(0)


def test_untrained_wire_at_ratio_one_equals_text(lm):
    wire = make_wire(lm, ratio=1, trained=False)
    more = [lm.tokenize(" and?"), lm.tokenize(" so")]
    read = lm.head(lm.last_hidden(Prompt.from_ids(lm, more, wire.prefix(wire.encode(TEXTS)))))
    for row, (text, rest) in enumerate(zip(TEXTS, more, strict=True)):
        ids = torch.cat([lm.frame.prefix, lm.tokenize(text), rest])
        theirs = lm.model(ids[None]).logits[0, -len(rest) :]
        torch.testing.assert_close(read[row, -len(rest) :], theirs, atol=1e-4, rtol=0)


def test_slots_are_what_the_reader_has_for_the_best_scored_tokens_of_all_heads(lm):
    wire = make_wire(lm, trained=False)
    ids = lm.tokenize("abcdefghijklmnopqrstuvwxyz")  # no token twice, so that no scores are tied
    reading = wire.read([ids], [len(wire.head)])
    latents, states = wire.compress(reading)[0], reading.states
    scores = wire.scorer(states.inputs)[:, 0]
    layers, heads, tokens = scores.shape
    places = [(x, y, t) for x in range(layers) for y in range(heads) for t in range(tokens)]
    places.sort(key=lambda place: -scores[place].item())
    best = [next(p for p in places if p[:2] == (x, y)) for x in range(layers) for y in range(heads)]
    others = [p for p in places if p not in best]
    total = layers * heads * math.ceil(tokens / 4)
    kept = sorted(best + others[: total - len(best)])
    assert latents.lengths.sum() == len(latents.keys) == total and len(latents) == 7
    assert latents.lengths.unique().numel() > 1
    ends = latents.lengths.flatten().cumsum(0).tolist()
    owners = [(x, y) for x in range(layers) for y in range(heads)]
    assert [owners[sum(e <= i for e in ends)] for i in range(total)] == [p[:2] for p in kept]
    for i, (layer, head, token) in enumerate(kept):
        assert latents.positions[i] == token
        column = len(wire.head) + token
        torch.testing.assert_close(latents.keys[i], states.prefix.keys[layer][0, head, column])
        torch.testing.assert_close(latents.values[i], states.prefix.values[layer][0, head, column])


def test_every_head_keeps_a_token_and_all_raw_ones():
    scores = torch.tensor([[[9.0, 8.0, 7.0, 6.0], [0.0, 3.0, 2.0, 1.0]]])
    scores = torch.stack([scores, scores], 1)  # two rows, the first of which is all padding but two
    mask = torch.tensor([[False, False, True, True], [True] * 4])
    verbatim = torch.tensor([[False, False, False, True]] * 2)

    def kept(*of) -> list:
        return chosen(scores, mask, *of).int().tolist()

    two, one = torch.tensor([1, 2]), torch.tensor([1, 1])
    assert kept(two) == [[[[0, 0, 1, 0], [0, 0, 1, 0]], [[1, 1, 1, 0], [0, 1, 0, 0]]]]
    assert kept(two, verbatim) == [[[[0, 0, 0, 1], [0, 0, 0, 1]], [[1, 1, 0, 1], [0, 0, 0, 1]]]]
    assert kept(one, verbatim) == [[[[0, 0, 0, 1], [0, 0, 0, 1]], [[0, 0, 0, 1], [0, 0, 0, 1]]]]


@torch.no_grad()
def test_what_is_kept_as_text_is_in_every_head_beside_what_it_keeps_anyway(lm):
    wire, text = make_wire(lm), TEXTS[0]
    kept = [text.index("1759") + i for i in range(4)]  # a token is a byte here
    own = lm.prefill(Prompt.from_ids(lm, [torch.cat([lm.frame.prefix, lm.tokenize(text)])]))
    columns = [len(lm.frame.prefix) + t for t in kept]

    def by_head(latents) -> list[dict[int, Tensor]]:
        """Key and value of each slot, by its position, for each layer and head."""
        slots = torch.cat([latents.keys, latents.values], -1)
        split = latents.lengths.flatten().tolist()
        parts = zip(latents.positions.split(split), slots.split(split), strict=True)
        return [dict(zip(p.tolist(), s, strict=True)) for p, s in parts]

    plain, mixed = wire.encode([text])[0], wire.keeping("numbers").encode([text])[0]
    theirs = [torch.cat([k[0], v[0]], -1) for k, v in zip(own.keys, own.values, strict=True)]
    verbatim = moved = 0
    for before, after, full in zip(by_head(plain), by_head(mixed), torch.cat(theirs), strict=True):
        assert set(kept) <= set(after)
        for token, column in zip(kept, columns, strict=True):
            same = (after[token] - full[column]).abs().max() < 1e-4
            assert same == (token not in before)
            verbatim, moved = verbatim + int(same), moved + int(not same)
    heads = len(own.keys) * own.keys[0].shape[1]
    assert verbatim > 0 and moved > 0
    assert len(plain) == 13 and len(mixed) == 13 + 4 and mixed.span == plain.span
    again = wire.keeping("numbers").keeping(None).encode([text])[0]
    assert torch.equal(again.keys, plain.keys) and wire.keeping("numbers").id == wire.id
    message = wire.keeping("numbers").send([text])[0]
    assert [z.lengths.sum() for z in wire.open([message])] == [17 * heads]


def test_what_is_kept_as_text_comes_on_top_of_the_latents(lm):
    wire = make_wire(lm, window=16).keeping("lighthouse|By|灯")
    for text, latents in [
        (TEXTS[0], (4 + 10) + 4 + 4 + 1),  # 49 tokens in windows of 16, the word in the first
        (TEXTS[1], 3),
        ("灯", 3),  # a token for each of its bytes, and no more latents than tokens
    ]:
        assert len(wire.encode([text])[0]) == wire.latents(text) == latents
        assert wire.cost(text) == (latents, len(wire.send([text])[0].to_bytes()))
    assert wire.at(2).keep == wire.keep and wire.at(2).latents(TEXTS[0]) == 16 + 8 + 8 + 1
    room = lm.context_length - len(wire.head) - 256
    with pytest.raises(WireError, match=rf"{2 * room} latents with 'x' kept .* room for {room}"):
        wire.keeping("x").encode(["x" * (2 * room)])


def test_segments_are_means_up_to_each_kept_token():
    states = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True] * 6, [False, False, True, True, True, True]])
    head, row = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 0, 1, 0, 1])
    token = torch.tensor([1, 3, 3, 4, 5])
    own, means = kept_and_segment(states, mask, head, row, token).split(3, 1)
    torch.testing.assert_close(own, states[row, token])
    one, two = states
    segments = [one[0:2], one[2:6], two[2:6], one, two[2:6]]
    torch.testing.assert_close(means, torch.stack([s.mean(0) for s in segments]))


def test_a_batch_is_encoded_as_its_rows_are(lm):
    wire = make_wire(lm)
    for together, text in zip(wire.encode(TEXTS), TEXTS, strict=True):
        alone = wire.encode([text])[0]
        torch.testing.assert_close(together.keys, alone.keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together.values, alone.values, atol=1e-4, rtol=1e-4)
        assert together.span == alone.span == len(wire.lm.tokenize(text))


def test_more_rows_are_no_more_operations_in_a_layer(lm):
    """On a GPU the number of operations, and not what is in them, is the time of a small model."""

    class Counted(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += 1
            return func(*args, **(kwargs or {}))

    def operations(rows: int) -> int:
        reading = wire.read([lm.tokenize(TEXTS[0])] * rows, [len(wire.head)] * rows)
        with Counted() as counted:
            wire.compress(reading)
        return counted.count

    wire, few, many = make_wire(lm), 2, 6
    made = 4  # keys, values, positions and lengths, each put together once a row
    assert operations(many) - operations(few) <= made * (many - few)


def test_a_long_text_is_compressed_window_by_window(lm):
    wire = make_wire(lm, window=16)
    text = TEXTS[0]
    tokens = len(lm.tokenize(text))
    latents = wire.encode([text])[0]
    windows = [16] * (tokens // 16) + [tokens % 16] * bool(tokens % 16)
    starts = [len(wire.head) + 16 * i for i in range(len(windows))]
    assert len(latents) == sum(math.ceil(w / 4) for w in windows)
    assert latents.span == tokens
    pieces = [
        wire.read([ids], [at]) for ids, at in zip(lm.tokenize(text).split(16), starts, strict=True)
    ]
    apart = [wire.compress(piece)[0] for piece in pieces]
    assert torch.equal(latents.lengths, sum(z.lengths for z in apart))
    for i in range(latents.lengths.numel()):  # a head's slots, window after window
        head = [z.keys.split(z.lengths.flatten().tolist())[i] for z in apart]
        ours = latents.keys.split(latents.lengths.flatten().tolist())[i]
        torch.testing.assert_close(ours, torch.cat(head), atol=1e-4, rtol=1e-4)
        places = latents.positions.split(latents.lengths.flatten().tolist())[i]
        theirs = [z.positions.split(z.lengths.flatten().tolist())[i] for z in apart]
        shifted = [p + at - len(wire.head) for p, at in zip(theirs, starts, strict=True)]
        assert torch.equal(places, torch.cat(shifted))


def test_a_text_past_the_readers_window_overlaps_its_positions(lm):
    wire = make_wire(lm, window=64)
    room = lm.context_length - len(wire.head) - 256
    latents = wire.encode(["x" * (2 * room)])[0]
    assert latents.span <= room and len(latents) == math.ceil(2 * room / 4)
    heads = latents.positions.split(latents.lengths.flatten().tolist())
    assert (
        all((head.diff() >= 0).all() for head in heads) and latents.positions.max() < latents.span
    )
    with pytest.raises(WireError, match=f"{5 * room} tokens; at most {4 * room} fit"):
        wire.encode(["x" * (5 * room)])
    with pytest.raises(WireError, match="context 1 is empty"):
        wire.encode(["full", ""])


def test_gradients_reach_the_residual_and_nothing_else(lm):
    wire = make_wire(lm, trained=False)
    prefix = wire.prefix(wire.encode(TEXTS))
    prompt = Prompt.from_ids(lm, [lm.tokenize("a?"), lm.tokenize("bcd?")], prefix)
    lm.score(prompt, torch.stack([lm.tokenize("yes")] * 2)).sum().backward()
    assert wire.slots.up.grad.abs().max() > 0
    assert wire.scorer.weight.grad is None
    assert all(p.grad is None for p in lm.model.parameters())


def test_ridge_fit_equals_least_squares_on_all_rows_at_once():
    generator = torch.Generator().manual_seed(0)
    contexts = [torch.randn(2, n, 5, generator=generator) for n in (40, 30)]
    attention = [torch.rand(2, 3, n, generator=generator) for n in (40, 30)]
    fit, scorer = RidgeFit(2, 5, 3), Scorer(2, 5, 3)
    for x, y in zip(contexts, attention, strict=True):
        fit.add(x, y)
    fit.solve(scorer, penalty=1e-3)
    x = normed(torch.cat(contexts, 1)).double()
    x = torch.cat([x, torch.ones(2, 70, 1)], -1)
    y = (torch.cat(attention, 2) + FLOOR).double().log().transpose(1, 2)
    # Ridge is least squares with sqrt(lambda) * I as extra rows of features and 0 as their targets.
    extra = math.sqrt(1e-3 * 70) * torch.eye(6, dtype=torch.float64).expand(2, 6, 6)
    rows, targets = torch.cat([x, extra], 1), torch.cat([y, torch.zeros(2, 6, 3)], 1)
    expected = torch.linalg.lstsq(rows, targets).solution
    torch.testing.assert_close(scorer.weight.double(), expected[:, :-1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(scorer.bias.double(), expected[:, -1], atol=1e-5, rtol=1e-4)


def test_save_and_load_give_the_same_latents(lm, tmp_path):
    wire = make_wire(lm)
    wire.save_pretrained(tmp_path)
    once = Wire.from_pretrained(str(tmp_path), lm)
    once.save_pretrained(tmp_path / "again")
    twice = Wire.from_pretrained(str(tmp_path / "again"), lm)
    assert once.id == twice.id == wire.id
    a, b = once.encode(TEXTS[:1])[0], twice.encode(TEXTS[:1])[0]
    assert torch.equal(a.keys, b.keys) and torch.equal(once.format, twice.format)


def test_damaged_wires_are_refused(tmp_path):
    lm = tiny_lm("llama")
    make_wire(lm).save_pretrained(tmp_path)
    weights = tmp_path / "wire.safetensors"
    good = weights.read_bytes()
    for bad in (good[:-10], good[:200] + bytes([good[200] ^ 1]) + good[201:]):
        weights.write_bytes(bad)
        with pytest.raises(WireError, match="truncated or altered"):
            Wire.from_pretrained(str(tmp_path), lm)
    weights.write_bytes(good)
    with pytest.raises(WireError, match="was trained for tiny-llama llama-3x32"):
        Wire.from_pretrained(str(tmp_path), tiny_lm("gpt2"))
    model = tiny_lm("llama").model
    model.model.layers[-1].mlp.up_proj.weight.data += 1  # tuned, and not in its embeddings
    with pytest.warns(UserWarning, match="another copy of tiny-llama"):
        Wire.from_pretrained(str(tmp_path), FrozenLM(model, lm.tokenizer, lm.name))
    with pytest.raises(WireError, match="was trained for tiny-llama; their-finetune is another"):
        Wire.from_pretrained(str(tmp_path), FrozenLM(model, lm.tokenizer, "their-finetune"))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "format_version": 9}))
    with pytest.raises(WireError, match="wire format 9; expected 1"):
        Wire.from_pretrained(str(tmp_path), lm)
    for change, message in [({"rank": 8}, "was altered"), ({"rank": 0}, "rank is 0")]:
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(WireError, match=message):
            Wire.from_pretrained(str(tmp_path), lm)
    (tmp_path / "config.json").write_text(json.dumps({"reader": "x"}))
    with pytest.raises(WireError, match="is not a wire's"):
        Wire.from_pretrained(str(tmp_path), lm)
    with pytest.raises(WireError, match="is no wire"):
        Wire.from_pretrained(str(tmp_path / "nowhere"), lm)
    with pytest.raises(WireError, match="ratio is 0"):
        WireConfig("x", ratio=0)


def test_a_wire_of_the_hub_is_the_one_that_was_saved(lm, tmp_path, monkeypatch):
    wire = make_wire(lm)
    wire.save_pretrained(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    assert Wire.from_pretrained("owner/wire", lm).id == wire.id
    loaded = load_wire("owner/wire", {lm.name: lm})
    assert isinstance(loaded, Wire) and loaded.lm is lm


def test_what_is_trained_is_float32_for_a_reader_of_bfloat16():
    """A step of 1e-3 is lost in a bfloat16 of 1."""
    wire = make_wire(tiny_lm("llama", torch.bfloat16))
    assert {p.dtype for p in wire.parameters()} == {torch.float32}
