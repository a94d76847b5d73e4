"""Attention over slots of single heads, and passes without masks, beside the same written out."""

from dataclasses import replace

import pytest
import torch
from tiny import CONFIGS, tiny_lm

from latentwire.lm import Greedy, Prompt, RaggedKV, ragged
from latentwire.lm.cache import attention_mask
from latentwire.lm.doctor import LOGIT_TOLERANCE, TEXTS, make_case


def written_out(slots, owners, queries, keys, values, mask, since):
    """Each query head of each row by itself."""
    starts = [0, *slots.lengths.flatten().cumsum(0).tolist()]
    heads, group = keys.shape[1], queries.shape[1] // keys.shape[1]
    output = torch.empty_like(queries)
    for row, owner in enumerate(owners):
        for query in range(queries.shape[1]):
            head = query // group
            own = slice(starts[owner * heads + head], starts[owner * heads + head + 1])
            before = queries[row, query] @ slots.keys[own].T
            if since is not None:
                hidden = slots.positions[own][None] < since[row][:, None]
                before = before.masked_fill(hidden, -torch.inf)
            behind = queries[row, query] @ keys[row, head].T
            behind = behind if mask is None else behind + mask[row, 0]
            weights = torch.cat([before, behind], -1).softmax(-1)
            output[row, query] = weights @ torch.cat([slots.values[own], values[row, head]])
    return output


@pytest.mark.parametrize("short", [4, 20, 1000], ids=lambda n: f"short{n}")
@pytest.mark.parametrize(
    "owners",
    [None, [0, 1, 2], [1, 1, 1, 1], [2, 0, 2, 2], [2]],
    ids=["all", "named", "one", "uneven", "alone"],
)
@pytest.mark.parametrize("masked", [False, True])
def test_attention_over_slots_of_heads_is_that_of_each_head_alone(
    monkeypatch, short, owners, masked
):
    monkeypatch.setattr(ragged, "SHORT", short)
    draw = torch.Generator().manual_seed(short)

    def noise(*shape):
        return torch.randn(*shape, generator=draw)

    lengths = torch.tensor([[3, 11], [1, 1], [7, 2]])
    places = torch.randint(0, 20, (int(lengths.sum()),), generator=draw)
    slots = RaggedKV(noise(len(places), 8), noise(len(places), 8), places, lengths)
    rows = [0, 1, 2] if owners is None else owners
    slots = slots if owners is None else slots.rows(torch.tensor(owners))
    for columns in (1, 3):
        queries = noise(len(rows), 6, columns, 8)
        keys, values = noise(len(rows), 2, 5, 8), noise(len(rows), 2, 5, 8)
        mask = since = None
        if masked:
            least = torch.finfo(torch.float32).min
            mask = torch.where(noise(len(rows), 1, columns, 5) > 0, 0.0, least)
            mask[..., -1] = 0.0
            since = torch.randint(0, 20, (len(rows), columns), generator=draw)
        ours = slots.attend(queries, keys, values, mask, since)
        expected = written_out(slots, rows, queries, keys, values, mask, since)
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_rows_of_rows_see_what_the_rows_saw():
    slots = RaggedKV(
        torch.randn(6, 4), torch.randn(6, 4), torch.arange(6), torch.tensor([[1], [2], [3]])
    )
    twice = slots.rows(torch.tensor([2, 0])).rows(torch.tensor([1, 0, 0]))
    assert twice.owners is not None and twice.owners.tolist() == [0, 2, 2]
    assert twice.keys is slots.keys  # questions about one text share its slots


def test_long_heads_are_attended_to_in_place_and_short_ones_are_padded_once(monkeypatch):
    monkeypatch.setattr(ragged, "SHORT", 8)
    slots = RaggedKV(
        torch.randn(30, 4), torch.randn(30, 4), torch.arange(30), torch.tensor([[20, 3, 4, 3]])
    )
    (long, _), (short, _), (last, _) = slots.parts()
    assert long.keys.data_ptr() == slots.keys.data_ptr() and long.keys.shape[:2] == (1, 20)
    assert short.keys.shape[:2] == (2, 4) and last.keys.shape[:2] == (1, 3)
    assert [a.keys.data_ptr() for a, _ in slots.parts()] == [
        x.keys.data_ptr() for x in (long, short, last)
    ]
    learned = replace(slots, keys=slots.keys.clone().requires_grad_())
    first, again = ([some for some, _ in learned.parts()][1] for _ in range(2))
    assert first.keys.data_ptr() != again.keys.data_ptr()  # a graph is of one pass alone


@pytest.mark.parametrize("family", list(CONFIGS))
def test_a_pass_without_masks_is_hugging_faces(family, monkeypatch):
    """A prompt without padding or prefix, and a single column, are given none that says no more
    than that later columns are hidden."""
    lm, masks = tiny_lm(family), []

    def seen(prompt, config, sparing=False):
        masks.append(attention_mask(prompt, config, sparing))
        return masks[-1]

    monkeypatch.setattr("latentwire.lm.frozen.attention_mask", seen)
    row = torch.cat([lm.bos, lm.tokenize(TEXTS[0])])
    with torch.no_grad():
        ours = lm.head(lm.last_hidden(Prompt.from_ids(lm, [row, row.flip(0)])))
        theirs = lm.model(torch.stack([row, row.flip(0)])).logits
        torch.testing.assert_close(ours, theirs, atol=LOGIT_TOLERANCE, rtol=0)
        before = lm.prefill(Prompt.from_ids(lm, [row[:-1]]))
        last = lm.head(lm.last_hidden(Prompt.from_ids(lm, [row[-1:]], before)))[0, -1]
        torch.testing.assert_close(last, theirs[0, -1], atol=LOGIT_TOLERANCE, rtol=0)
    if family == "gemma3":  # texts are longer than its windows
        assert all(m["full_attention"] is None for m in masks)
        assert all(m["sliding_attention"] is not None for m in masks)
    else:
        assert masks == [None] * 3


@pytest.mark.parametrize("family", list(CONFIGS))
def test_what_is_padded_or_goes_on_has_its_mask(family):
    lm = tiny_lm(family)
    rows = [lm.tokenize("a longer row"), lm.tokenize("short")]
    before = lm.prefill(Prompt.from_ids(lm, [lm.tokenize("before")]))
    for prompt in (Prompt.from_ids(lm, rows), Prompt.from_ids(lm, [rows[0]], before)):
        masks = attention_mask(prompt, lm.model.config, sparing=True)
        whole = attention_mask(prompt, lm.model.config)
        if isinstance(masks, dict):
            assert all(torch.equal(mask, whole[kind]) for kind, mask in masks.items())
        else:
            assert torch.equal(masks, whole)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@torch.no_grad()
def test_a_generation_behind_slots_of_heads_is_that_without_a_cache(family):
    """What is kept between steps, padded or in place, is what a pass over all of it sees."""
    lm = tiny_lm(family)
    prompt = make_case(lm, "ragged", True).prompt
    index = torch.tensor([1, 1, 0, 2, 1])
    questions = Prompt.from_ids(
        lm, [lm.tokenize(q) for q in ("Who?", "When?", "W", "h", "And?")], prompt.prefix.rows(index)
    )
    cached, uncached = (
        lm.generate(questions, Greedy(), 12, (), caching=mode) for mode in ("kv", "none")
    )
    assert torch.equal(cached.ids, uncached.ids)
    torch.testing.assert_close(cached.log_probs, uncached.log_probs, atol=1e-4, rtol=0)


def test_maps_of_attention_need_a_prefix_without_slots_of_heads():
    lm = tiny_lm("llama")
    with pytest.raises(ValueError, match="slots of single heads"):
        lm.attentions(make_case(lm, "ragged", False).prompt)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_slots_in_bfloat16_are_read_as_exactly_as_in_float32(dtype):
    """But for what their own numbers lost: attention is computed in float32."""
    lengths = torch.tensor([[5, 9]])
    keys, values, queries = torch.randn(14, 8), torch.randn(14, 8), 8 * torch.randn(1, 4, 1, 8)
    common = torch.randn(2, 1, 2, 3, 8)
    low = [x.to(dtype) for x in (keys, values, queries, *common)]
    slots = RaggedKV(low[0], low[1], torch.arange(14), lengths)
    ours = slots.attend(low[2], low[3], low[4], None)
    high = RaggedKV(low[0].float(), low[1].float(), torch.arange(14), lengths)
    expected = high.attend(*(x.float() for x in low[2:]), None)
    assert ours.dtype == dtype and torch.equal(ours, expected.to(dtype))
