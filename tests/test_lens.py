"""A lens as a whole: kept and loaded, explaining, intervening, and what it refuses."""

import gc
import json
import shutil

import pytest
import torch
from tiny import CONFIGS, tiny_lm

from latentwire.lens.activations import (
    Dump,
    at,
    draw,
    dump,
    read_documents,
    split,
    statistics,
    stream,
    tokenized,
)
from latentwire.lens.checks import LensError
from latentwire.lens.decoder import DecoderConfig
from latentwire.lens.encoder import EncoderConfig
from latentwire.lens.explain import explain_text, tokens_of
from latentwire.lens.interventions import edited, salience
from latentwire.lens.lens import Lens, LensConfig
from latentwire.lm import FrozenLM, Greedy
from latentwire.tasks.base import DataError

DOCUMENTS = [f"Document {i} tells of river {7 * i} and of the sea." for i in range(12)]


def make(family: str = "llama", **decoder) -> Lens:
    lm = tiny_lm(family)
    texts = tokenized(lm, DOCUMENTS, window=40, skip=2)
    settings = {"layers": 2, "lora": 2, "max_new_tokens": 8} | decoder
    config = LensConfig(lm.name, 1, DecoderConfig(**settings), EncoderConfig(before=3, lora=2))
    lens = Lens(lm, config, statistics(stream(lm, 1, texts)))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in lens.tensors().values():
            tensor += 0.05 * torch.randn(tensor.shape, generator=generator)
    return lens


@pytest.fixture(scope="module")
def lens() -> Lens:
    return make()


@pytest.fixture
def vectors(lens):
    texts = tokenized(lens.lm, DOCUMENTS[:3], window=40, skip=2)
    return at(lens.lm, 1, draw(texts, 1, 0)).vectors


@pytest.mark.parametrize("family", list(CONFIGS))
def test_a_saved_lens_loads_as_it_was(family, tmp_path):
    lens = make(family)
    lens.save_pretrained(tmp_path)
    again = Lens.from_pretrained(str(tmp_path), tiny_lm(family))
    assert again.config == lens.config
    assert (again.norm, again.spread) == (lens.norm, lens.spread)
    assert torch.equal(again.mean, lens.mean)
    assert torch.equal(again.decoder.project.gain, lens.decoder.project.gain)
    assert list(again.tensors()) == list(lens.tensors())
    for name, tensor in lens.tensors().items():
        assert torch.equal(again.tensors()[name], tensor.bfloat16().float()), name
    again.save_pretrained(tmp_path / "again")
    for file in ("lens.safetensors", "config.json"):
        assert (tmp_path / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    vector = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    second = Lens.from_pretrained(str(tmp_path), lens.lm)  # beside another one on the same LM
    texts = [[e.text for e in each.explain(vector, 2)[0]] for each in (again, second)]
    assert texts[0] == texts[1]
    torch.testing.assert_close(again.reconstruct(["sea"]), second.reconstruct(["sea"]))


def test_lenses_that_are_gone_leave_no_adapters_on_the_lm(tmp_path):
    lens = make()
    lens.save_pretrained(tmp_path)
    for _ in range(3):
        second = Lens.from_pretrained(str(tmp_path), lens.lm)
        assert set(lens.lm.model.peft_config) == {"lora0", "lora1", *adapters(second)}
        del second
        gc.collect()
    assert adapters(lens) == {"lora0", "lora1"}
    lens.reconstruct(["sea"])


def adapters(lens: Lens) -> set[str | None]:
    return {part.lm.adapter for part in (lens.decoder, lens.encoder)}


@pytest.mark.parametrize("family", list(CONFIGS))
def test_fitted_projections_are_the_ridge_regression_of_hugging_faces_states(family):
    lens = make(family, lora=0)
    texts = tokenized(lens.lm, DOCUMENTS, window=40, skip=2)
    lens.decoder.fit(1, texts, batch=5)
    states = [lens.lm.model(t.ids[None], output_hidden_states=True).hidden_states for t in texts]
    entries = [torch.cat([h[i][0, 2:] for h in states]).detach().double() for i in range(3)]
    activations, rows = entries[2], len(entries[2])
    features = activations * 32**0.5 / lens.norm
    extra = (1e-3 * rows) ** 0.5 * torch.eye(33, dtype=torch.float64)
    left = torch.cat([torch.cat([features, torch.ones(rows, 1)], 1), extra])
    made = lens.decoder.project(activations.float())
    for place, entry in enumerate(entries):
        solution = torch.linalg.lstsq(left, torch.cat([entry, torch.zeros(33, 32)])).solution
        expected = left[:rows] @ solution
        torch.testing.assert_close(made[place].double(), expected, atol=1e-4, rtol=1e-4)


def test_a_fine_tuned_copy_is_another_model(lens, tmp_path):
    lens.save_pretrained(tmp_path)
    same = tiny_lm("llama")
    with torch.no_grad():  # the embeddings stay, as where a LoRA was merged
        for parameter in same.blocks[1].parameters():
            parameter += 0.1
    tuned = FrozenLM(same.model, same.tokenizer, same.name)
    with pytest.warns(UserWarning, match="trained on another copy"):
        Lens.from_pretrained(str(tmp_path), tuned)
    tuned.name = "other"
    with pytest.raises(LensError, match="with model_weights"):
        Lens.from_pretrained(str(tmp_path), tuned)


def test_a_lens_of_a_model_in_bfloat16_loads_it_so(tmp_path):
    whole = tiny_lm("llama", torch.bfloat16)
    for part in (whole.model, whole.tokenizer):
        part.save_pretrained(tmp_path / "model")
    lm = FrozenLM.from_pretrained(str(tmp_path / "model"), "bfloat16")
    texts = tokenized(lm, DOCUMENTS, window=40, skip=2)
    config = LensConfig(lm.name, 1, DecoderConfig(layers=2, lora=2), dtype="bfloat16")
    made = Lens(lm, config, statistics(stream(lm, 1, texts)))
    made.save_pretrained(tmp_path / "lens")
    again = Lens.from_pretrained(str(tmp_path / "lens"))
    assert again.lm.dtype == torch.bfloat16
    assert {t.dtype for t in again.tensors().values()} == {torch.float32}
    vectors = at(lm, 1, draw(texts, 1, 0)).vectors
    assert (
        again.decoder.generate(vectors, Greedy()).texts
        == made.decoder.generate(vectors, Greedy()).texts
    )


def test_characters_of_several_tokens_are_shown_whole(lens):
    rows = explain_text(lens, "a 日本")
    assert "".join(row.token for row in rows) == " 日本"
    assert [row.token for row in rows][-6:] == ["", "", "日", "", "", "本"]


def test_best_of_k_is_the_one_that_the_encoder_rebuilds_best(lens, vectors):
    group = lens.explain(vectors, samples=4)[1]
    for explanation in group:
        made = lens.reconstruct([explanation.text])[0]
        torch.testing.assert_close(made, explanation.vector, atol=1e-5, rtol=1e-5)
        expected = ((made - vectors[1]) / lens.spread).square().sum().item()
        assert explanation.error == pytest.approx(expected, rel=1e-4)
    assert [e.error for e in group] == sorted(e.error for e in group)
    assert len({e.text for e in group}) > 1
    assert [e.text for e in lens.explain(vectors, 4)[1]] == [e.text for e in group]


def test_a_mean_has_error_1_on_average(lens):
    texts = tokenized(lens.lm, DOCUMENTS, window=40, skip=2)
    every = torch.cat([b.vectors for b in stream(lens.lm, 1, texts)])
    torch.testing.assert_close(lens.mean, every.mean(0), atol=1e-5, rtol=1e-5)
    assert ((every - lens.mean) / lens.spread).square().sum(1).mean().item() == pytest.approx(1)
    assert lens.norm == pytest.approx(every.norm(dim=1).median().item(), rel=1e-5)


def test_best_of_k_is_never_worse_than_the_greedy_one(lens, vectors):
    for alone, group in zip(lens.explain(vectors), lens.explain(vectors, samples=3), strict=True):
        assert len(group) == 3 and alone[0].text in [e.text for e in group]
        assert group[0].error <= alone[0].error + 1e-6


def test_salience_is_the_error_that_leaving_a_word_out_adds(lens, vectors):
    found = salience(lens, vectors[0], "river and sea")
    assert [word for word, _ in found] == ["river", "and", "sea"]
    errors = (lens.reconstruct(["river and sea", "river sea"]) - vectors[0]) / lens.spread
    whole, without = errors.square().sum(1).tolist()
    assert found[1][1] == pytest.approx(without - whole, rel=1e-4)


def test_an_edited_explanation_changes_what_the_model_predicts(lens):
    text = tokens_of(lens.lm, "Document 1 tells of a river")
    before, after = edited(lens, text, 15, "something else", most=3)
    expected = lens.lm.model(text.ids[None, :16]).logits[0, -1].softmax(-1).topk(3)
    assert [p for _, p in before] == pytest.approx(expected.values.tolist(), abs=1e-5)
    assert before != after and len(after) == 3


def test_explain_text_goes_token_by_token(lens):
    rows = explain_text(lens, "The sea.", k=2)
    assert [r.token for r in rows] == list("he sea.")  # a first token without BOS is left out
    assert [r.index for r in rows] == list(range(1, 8))
    assert all(len(r.explanations) == 2 and r.kl >= 0 for r in rows)
    (third,) = explain_text(lens, "The sea.", [3])
    vector = lens.lm.model(lens.lm.tokenize("The sea.")[None], output_hidden_states=True)
    expected = lens.explain(vector.hidden_states[2][0, 3:4])[0][0]
    assert third.explanations[0].text == expected.text


def test_first_tokens_and_padding_are_left_out(lens):
    texts = tokenized(lens.lm, ["short one", "a much longer document", "no"], window=12, skip=4)
    assert [t.number for t in texts] == [0, 1]
    (batch,) = stream(lens.lm, 1, texts)
    assert batch.positions == (*range(4, 9), *range(4, 12))
    assert [lens.lm.tokenizer.decode(i) for i in batch.up_to([3] * 13)[:2]] == ["ort", "rt "]
    assert [lens.lm.tokenizer.decode(i) for i in batch.up_to([2] * 13, own=0)[:1]] == ["or"]
    assert [lens.lm.tokenizer.decode(i) for i in batch.after(2)[3:5]] == ["e", ""]
    few = draw(texts, 2, seed=3)
    assert few == draw(texts, 2, seed=3) and few != draw(texts, 2, seed=4)
    assert [len(p) for _, p in draw(texts, None, 0, followed=True)] == [4, 7]
    assert few[1:] == draw(texts[1:], 2, seed=3)  # whatever else is drawn


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_first_token_without_bos_is_no_activation(family):
    lens = make(family)
    text = tokens_of(lens.lm, "The sea.")
    assert text.usable == range(1, 8)
    for tokens in ([0], [3, 0], None):
        with pytest.raises(LensError, match=r"first token that a model reads.*; put a word before"):
            explain_text(lens, "The sea." if tokens else "T", tokens)
    with pytest.raises(LensError, match="first token that a model reads"):
        edited(lens, text, 0, "a lake")
    (batch,) = stream(lens.lm, 1, tokenized(lens.lm, ["The sea."], window=40, skip=0))
    assert batch.positions == tuple(range(1, 8))


def test_a_first_token_behind_bos_is_an_activation_like_others():
    lens = make()
    lens.lm.bos = torch.tensor([1])
    text = tokens_of(lens.lm, "The sea.")
    assert text.usable == range(1, 9)
    rows = explain_text(lens, "The sea.")
    (alone,) = explain_text(lens, "T")
    assert [row.index for row in rows] == list(range(8))
    torch.testing.assert_close(alone.vector, rows[0].vector)
    (batch,) = stream(lens.lm, 1, tokenized(lens.lm, ["The sea."], window=40, skip=0))
    assert batch.positions == tuple(range(1, 9))


def test_of_a_long_document_only_the_window_stays_in_memory():
    lm, long = tiny_lm("llama"), "a long document " * 50
    (text,) = tokenized(lm, [long], window=12, skip=4)
    assert text.ids.untyped_storage().nbytes() == 12 * text.ids.itemsize
    assert long not in lm._known


def test_documents_are_split_and_not_tokens(tmp_path):
    file = tmp_path / "t.txt"
    file.write_text("\n\nOne\nline.\n\n \nTwo.\n\n\n" + "\n\n".join(DOCUMENTS) + "\n\nTwo.\n")
    documents = read_documents([file])
    assert documents[:2] == ["One\nline.", "Two."] and len(documents) == 15
    training, held = split(documents, 0.3)
    assert not set(training) & set(held) and set(training) | set(held) == set(documents)
    assert len(held) == 3  # and a second "Two.", which the training half has
    for count in (2, 3, 5, 11, 25, 1000):
        training, held = split([str(i) for i in range(count)], 0.05)
        assert len(held) == max(1, round(0.05 * count)) and len(training) == count - len(held)
    with pytest.raises(LensError, match="1 document; expected at least 2"):
        split(["one"], 0.05)


def test_dumped_activations_are_the_streamed_ones(lens, tmp_path):
    texts = tokenized(lens.lm, DOCUMENTS * 3, window=40, skip=2)
    dump(lens.lm, 1, texts, tmp_path, shard=400)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    read = Dump(lens.lm, 1, texts, tmp_path)
    for places in (draw(texts, 3, seed=2)[::-1], [(texts[30], [2, 17, 2]), (texts[0], [])]):
        again, fresh = read.at(places), at(lens.lm, 1, places)
        torch.testing.assert_close(again.vectors, fresh.vectors, atol=1e-5, rtol=1e-5)
        assert (again.texts, again.positions) == (fresh.texts, fresh.positions)
    shorter_skip = tokenized(lens.lm, DOCUMENTS * 3, window=40, skip=1)
    for other in ((2, texts), (1, texts[1:]), (1, shorter_skip)):
        with pytest.raises(LensError, match=r"was dumped with .*: give another folder or remove"):
            Dump(lens.lm, *other, tmp_path)


def test_fields_of_an_earlier_release_are_read_at_their_one_value(lens, tmp_path):
    lens.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    record = json.loads(path.read_text())
    record["decoder"] |= {"scale": "match", "train_prompt": True, "own_copy": False}
    record["encoder"] |= {"after": 0, "project": True, "position": False, "token": False}
    path.write_text(json.dumps(record))
    assert Lens.from_pretrained(str(tmp_path), lens.lm).config == lens.config
    record["decoder"]["own_copy"] = True
    path.write_text(json.dumps(record))
    with pytest.raises(LensError, match="field that this release does not know"):
        Lens.from_pretrained(str(tmp_path), lens.lm)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": "no slot"}, "has 0 slots; expected exactly one {activation}"),
        ({"template": "{activation} or {activation}"}, "has 2 slots; expected exactly one"),
        ({"layers": 4}, "layers is 4; tiny-llama has 3"),
        ({"layers": -1}, "layers is -1; expected at least 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; expected at least 1"),
    ],
)
def test_a_decoder_that_cannot_be(settings, message):
    with pytest.raises(LensError, match=message):
        make(**settings)


@pytest.mark.parametrize("layer", [-1, 3])
def test_a_layer_out_of_range(lens, layer):
    facts = statistics([at(lens.lm, 1, [(tokenized(lens.lm, DOCUMENTS, 9, 2)[0], [3, 4])])])
    with pytest.raises(LensError, match=f"layer {layer} of tiny-llama; expected 0..2"):
        Lens(lens.lm, LensConfig("tiny-llama", layer), facts)
    with pytest.raises(LensError, match=f"layer {layer} of tiny-llama; expected 0..2"):
        at(lens.lm, layer, [])


def test_activations_that_are_none(lens, vectors):
    with pytest.raises(LensError, match=r"shape \[3, 31\]; expected \[rows, 32\]"):
        lens.explain(vectors[:, :31])
    with pytest.raises(LensError, match="activation 1 has NaN"):
        lens.explain(torch.stack([vectors[0], vectors[1] * float("nan")]))


def test_a_text_shorter_than_the_position_asked_for(lens):
    with pytest.raises(LensError, match=r"token 8 of a text of 8 tokens; expected 0..7"):
        explain_text(lens, "The sea.", [8])
    with pytest.raises(LensError, match="the text is empty"):
        explain_text(lens, "")
    (text,) = tokenized(lens.lm, ["The sea."], window=40, skip=2)
    with pytest.raises(LensError, match=r"token 9 of a text of 8 tokens; expected 0..7"):
        at(lens.lm, 1, [(text, [3, 9])])
    with pytest.raises(LensError, match="none of 1 documents has more than 20 tokens"):
        tokenized(lens.lm, ["The sea."], window=40, skip=20)


def test_a_lens_of_another_model_or_altered(lens, tmp_path):
    lens.save_pretrained(tmp_path / "lens")
    with pytest.raises(LensError, match=r"was trained on tiny-llama with architecture llama-3x32"):
        Lens.from_pretrained(str(tmp_path / "lens"), tiny_lm("gpt2"))
    same = tiny_lm("llama")
    same.model.get_input_embeddings().weight.data[5] += 1
    other = FrozenLM(same.model, same.tokenizer, "another")
    with pytest.raises(LensError, match=r"with model_weights .*; another has"):
        Lens.from_pretrained(str(tmp_path / "lens"), other)
    other.name = "tiny-llama"
    with pytest.warns(UserWarning, match="another copy of tiny-llama"):
        Lens.from_pretrained(str(tmp_path / "lens"), other)
    with pytest.raises(LensError, match=r"is no lens; expected a folder with config.json"):
        Lens.from_pretrained(str(tmp_path / "none"), lens.lm)

    def altered(name, change):
        folder = tmp_path / name
        shutil.copytree(tmp_path / "lens", folder)
        record = json.loads((folder / "config.json").read_text())
        change(record, folder)
        (folder / "config.json").write_text(json.dumps(record))
        return str(folder)

    def cut(record, folder):
        (folder / "lens.safetensors").write_bytes(b"1234")

    cases = {
        "truncated or altered": cut,
        "lens format 9; expected 1": lambda r, f: r.update(format_version=9),
        "patch_timing block input; tiny-llama has block output": lambda r, f: r.update(
            patch_timing="block input"
        ),
        "template_ids": lambda r, f: r["decoder"].update(template="other {activation}"),
        "has 0 slots": lambda r, f: r["decoder"].update(template="other"),
        "does not fit the weights": lambda r, f: r["decoder"].update(layers=1),
        "layer 7 of tiny-llama": lambda r, f: r.update(layer=7),
        "is not a lens's": lambda r, f: r.pop("decoder"),
    }
    for i, (message, change) in enumerate(cases.items()):
        with pytest.raises(LensError, match=message):
            Lens.from_pretrained(altered(str(i), change), lens.lm)


def test_text_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_documents([tmp_path / "none.txt"])
