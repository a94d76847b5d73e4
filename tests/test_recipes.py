"""A whole training and a whole evaluation on a tiny model, against values worked out apart."""

import gc
import json
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import tiny_lm, tokenizer
from torch import Tensor
from zstandard import compress

from latentwire.evals import harness
from latentwire.evals.baselines import closed_book, pruned, truncated_bytes, zstd_fitting
from latentwire.evals.harness import evaluate, summarise
from latentwire.lm import FrozenLM
from latentwire.tasks.base import DataError
from latentwire.tasks.needles import with_needles
from latentwire.tasks.qa import Passage, Question, by_context, load_questions
from latentwire.train.loop import LoopConfig
from latentwire.wire import costs, importance
from latentwire.wire import training as recipes
from latentwire.wire.compressed_kv import CompressedKV
from latentwire.wire.evaluation import conditions, evaluate_wire
from latentwire.wire.importance import attention_received
from latentwire.wire.training import WireRecipe, train_wire
from latentwire.wire.training_checks import check_latents
from latentwire.wire.wire import Wire, WireConfig, WireError

NAMES = ["Ada", "Emmy", "Sofia", "Mary", "Lise", "Rosa", "Vera", "Inge"]


@pytest.fixture
def lm(monkeypatch):
    lm = tiny_lm("llama")
    monkeypatch.setattr(FrozenLM, "from_pretrained", classmethod(lambda *_: lm))
    return lm


@pytest.fixture
def data(tmp_path) -> str:
    rows = []
    for i, name in enumerate(NAMES):
        context = f"{name} was born in {1800 + i}."
        rows.append({"question": "Who?", "answers": [name], "context": context, "id": f"{i}a"})
        rows.append(
            {"question": "When?", "answers": [str(1800 + i)], "context": context, "id": f"{i}b"}
        )
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def recipe(data, out) -> WireRecipe:
    return WireRecipe(
        "tiny",
        WireConfig("tiny-llama", ratio=2, window=64, rank=4, format_tokens=3),
        data=data,
        out=out,
        format=LoopConfig(steps=3, lr=0.01, warmup=1, save_every=1),
        scorer_passages=4,
        slots=LoopConfig(steps=14, lr=0.04, warmup=2, save_every=5),
        batch_size=2,
        held_out=2,
    )


def test_training_lowers_the_loss_and_resumes_exactly(lm, data, tmp_path, monkeypatch):
    straight = train_wire(recipe(data, tmp_path / "a"))
    log = [json.loads(line) for line in (straight / "metrics.jsonl").open()]
    losses = [row["loss"] for row in log if row["stage"] == "slots"]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])

    distillation, calls = recipes.distillation, []

    def interrupting(*arguments):
        calls.append(1)
        if len(calls) == 8:
            signal.raise_signal(signal.SIGINT)
        return distillation(*arguments)

    monkeypatch.setattr(recipes, "distillation", interrupting)
    with pytest.raises(KeyboardInterrupt):
        train_wire(recipe(data, tmp_path / "b"))
    resumed = train_wire(recipe(data, tmp_path / "b"))
    weights = "wire/wire.safetensors"
    assert (straight / weights).read_bytes() == (resumed / weights).read_bytes()


def test_a_residual_is_trained_on_a_selector_that_needs_no_training(lm, data, tmp_path):
    given = recipe(data, tmp_path / "run")
    settings = replace(given.wire, selector="streaming")
    short = replace(given, wire=settings, slots=replace(given.slots, steps=2))
    folder = train_wire(short)
    assert not (folder / "scorer.safetensors").exists()
    wire = Wire.from_pretrained(folder / "wire", lm)
    assert wire.config == settings and wire.slots.up.abs().max() > 0
    (latents,) = wire.encode(["abcdefghijklmnop"])
    assert latents.positions.view(-1, 8).tolist() == [[0, 1, 2, 3, 12, 13, 14, 15]] * 6
    for nothing in ("rank", "format_tokens"):
        with pytest.raises(ValueError, match=f"wire.{nothing} is 0; expected at least 1"):
            replace(given, wire=replace(given.wire, **{nothing: 0}))


def test_attention_is_read_off_hugging_faces_own_maps(lm):
    wire = Wire(lm, WireConfig("tiny-llama", window=64, rank=4, format_tokens=3))
    passage = Passage("Ada was born.", (Question("1", "Ada was born.", "Who?", ("Ada",)),))
    reading = recipes._read(wire, [passage])
    ours = attention_received(lm, wire.format, passage, *reading.ids, reading.states.prefix)

    head, text = lm.frame.prefix, lm.tokenize(passage.context)
    again = lm.tokenize("\n\nRepeat the text above word for word.")
    question = [lm.embed(lm.tokenize("\n\nWho?")), lm.embed(lm.frame.suffix)]
    answer = lm.embed(torch.cat([lm.tokenize(" Ada"), torch.tensor([lm.stop_ids[0]])]))
    before = lm.embed(torch.cat([head, text]))
    repeated = torch.cat([before, lm.embed(again), lm.embed(lm.frame.suffix), lm.embed(text)])
    asked = torch.cat([before, wire.format, *question, answer])
    expected = 0
    for sequence, skipped in ((repeated, 0), (asked, 3)):
        # Queries are what follows the text and the soft prompt; keys are the text's tokens.
        first = len(before) + skipped
        lm.model.set_attn_implementation("eager")
        maps = lm.model(inputs_embeds=sequence[None], output_attentions=True).attentions
        lm.model.set_attn_implementation("sdpa")
        seen = torch.stack(maps)[:, 0, :, first:, len(head) : len(before)].amax(2)
        expected = expected + seen.view(3, 2, 2, len(text)).amax(2)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_attention_from_many_questions_is_the_mean_over_passes_of_a_few(lm, monkeypatch):
    wire = Wire(lm, WireConfig("tiny-llama", window=64, rank=4, format_tokens=3))
    text, answers = "Ada was born in 1815.", ["Ada", "born", "1815", "in 1815", "was"]
    asked = [Question(a, text, f"Who or {a}?", (a,)) for a in answers]
    reading = recipes._read(wire, [Passage(text, tuple(asked))])

    def received(*some: Question) -> Tensor:
        passage = Passage(text, some)
        return attention_received(lm, wire.format, passage, *reading.ids, reading.states.prefix)

    alone = [received(q) for q in asked]
    attentions, rows = lm.attentions, []

    def counted(prompt, reduce):
        rows.append(len(prompt.mask))
        return attentions(prompt, reduce)

    monkeypatch.setattr(lm, "attentions", counted)
    monkeypatch.setattr(importance, "ASKED", 2)
    ours = received(*asked)
    torch.testing.assert_close(ours, torch.stack(alone).mean(0), atol=1e-6, rtol=1e-5)
    assert sorted(rows) == [1, 1, 2, 2]


def test_evaluation_scores_what_hugging_face_would(lm, data):
    wire = Wire(lm, WireConfig("tiny-llama", ratio=1, window=64, rank=4, format_tokens=3))
    passages = by_context(load_questions(data, 6))
    rows = conditions(wire, passages)
    answers = [a for b in evaluate(lm, wire.format, passages, rows) for a in b]
    for question in (q for p in passages for q in p.questions):
        answer = [*lm.tokenize(f" {question.answers[0]}").tolist(), lm.stop_ids[0]]
        tail = torch.cat([lm.tokenize(f"\n\n{question.question}"), lm.frame.suffix])
        context = torch.cat([lm.frame.prefix, lm.tokenize(question.context)])
        embeds = [lm.embed(context), wire.format, lm.embed(tail), lm.embed(torch.tensor(answer))]
        logits = lm.model(inputs_embeds=torch.cat(embeds)[None]).logits[0]
        predicting = logits[-len(answer) - 1 : -1].log_softmax(-1)
        nll = -sum(predicting[i, token].item() for i, token in enumerate(answer))
        of = {a.condition: a for a in answers if a.id == question.id}
        assert of["text"].nll == pytest.approx(nll, abs=1e-3)
        assert of["text"].tokens == len(answer)
        assert of["text"].first5 == float(answer[0] in predicting[0].topk(5).indices.tolist())
        # At ratio 1 and before training the wire is the text, but for half floats in its message.
        assert of["wire"].nll == pytest.approx(nll, abs=0.05)
        assert abs(of["closed_book"].nll - nll) > 1e-3
        # A message longer than its text leaves all of the text.
        assert of["truncated_bytes"].nll == of["text"].nll
        assert of["truncated_bytes"].answer == of["text"].answer
        # The first passage's mismatched latents are the second passage's.
        assert of["mismatched_latents"].nll != of["wire"].nll
    text = summarise([a for a in answers if a.condition == "text"])
    total = sum(a.nll for a in answers if a.condition == "text")
    tokens = sum(a.tokens for a in answers if a.condition == "text")
    assert text["nll"] == pytest.approx(total / tokens)


def test_truncation_to_bytes_cuts_no_character_in_two(lm):
    text, head = "aé灯b", len(lm.frame.prefix)
    for count, kept in [(0, ""), (1, "a"), (2, "a"), (3, "aé"), (5, "aé"), (6, "aé灯"), (9, text)]:
        prefix = truncated_bytes(lm, lambda _, n=count: n)([text])
        # The tiny tokenizer has a token for each byte.
        assert len(prefix) == head + len(kept.encode())


def test_truncation_to_bytes_of_zstd():
    text = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 4
    size = [len(compress(text[:n].encode(), 19)) for n in range(len(text) + 1)]
    for most in (9, 10, 30, 60, 70, 1000):
        n = zstd_fitting(text, most)
        assert size[n] <= most and (n == len(text) or size[n + 1] > most)
    assert zstd_fitting(text, 8) == 0


def test_pruning_keeps_the_tokens_that_hugging_face_finds_least_likely(lm):
    text = "Ada was born in 1800."
    ids = torch.cat([lm.frame.prefix, lm.tokenize(text)])
    predicting = lm.model(ids[None]).logits[0].log_softmax(-1)
    own = {
        i: predicting[len(lm.frame.prefix) - 1 + i, t].item()
        for i, t in enumerate(lm.tokenize(text))
    }
    for count in (1, 6, len(own), 99):
        kept = sorted(sorted(own, key=own.__getitem__)[:count])
        expected = torch.cat([lm.frame.prefix, lm.tokenize(text)[kept]])
        ours, theirs = pruned(lm, lambda _, n=count: n)([text]), lm.model(expected[None])
        assert len(ours) == len(expected)
        for layer, keys in enumerate(ours.keys):
            reference = theirs.past_key_values.layers[layer].keys
            torch.testing.assert_close(keys, reference, atol=1e-5, rtol=1e-4)


def test_replayed_embeddings_are_told_from_the_text_where_they_differ(lm, data, monkeypatch):
    wire = Wire(lm, WireConfig("tiny-llama", window=64, rank=4, format_tokens=3))
    passages = by_context(load_questions(data, 4))
    assert costs.embeds_vs_ids_difference(wire, passages) == 0

    def log_probs(context: str, question: Question) -> torch.Tensor:
        answer = torch.tensor([*lm.tokenize(f" {question.answers[0]}"), lm.stop_ids[0]])
        before = lm.embed(torch.cat([lm.frame.prefix, lm.tokenize(context)]))
        asked = torch.cat([lm.tokenize(f"\n\n{question.question}"), lm.frame.suffix, answer])
        embeds = torch.cat([before, wire.format, lm.embed(asked)])
        logits = lm.model(inputs_embeds=embeds[None]).logits[0, -len(answer) - 1 : -1]
        return logits.log_softmax(-1).gather(1, answer[:, None])

    differences = [
        (log_probs(q.context, q) - log_probs("", q)).abs().max().item()
        for p in passages
        for q in p.questions
    ]
    monkeypatch.setattr(costs, "replayed", closed_book)
    found = costs.embeds_vs_ids_difference(wire, passages)
    assert found == pytest.approx(max(differences), abs=1e-4)


def test_needles_stand_in_their_passages_and_the_text_holds_them(data):
    passages = by_context(load_questions(data))
    for kind, form in (
        ("number", r"\d{12}"),
        ("uuid", r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    ):
        made = with_needles(passages, kind)
        assert made == with_needles(passages, kind) != with_needles(passages, kind, seed=1)
        for before, after in zip(passages, made, strict=True):
            (asked,) = after.questions
            assert re.fullmatch(form, asked.answers[0]) and asked.context == after.context
            sentence = f"The archive number is {asked.answers[0]}."
            assert " ".join(after.context.split(sentence)).split() == before.context.split()
        assert len({p.questions[0].answers for p in made}) == len(made)
    with pytest.raises(DataError, match="no needles of kind 'name'; expected one of number, uuid"):
        with_needles(passages, "name")


def test_needles_are_asked_for_under_every_condition(lm, data):
    wire = Wire(lm, WireConfig("tiny-llama", window=64, rank=4, format_tokens=3))
    result = evaluate_wire(wire, data, 6, needles="uuid")
    assert result["needles"] == "uuid" and result["n"] == result["passages"] == 3
    assert {"text", "wire", "truncated_bytes", "truncated_zstd"} <= set(result["rows"])


def test_what_was_answered_with_another_chat_template_is_not_taken(lm, data, tmp_path, monkeypatch):
    def scored(of: FrozenLM, folder: str) -> dict[str, float]:
        monkeypatch.setenv("LATENTWIRE_FEATURES", str(tmp_path / folder))
        wire = Wire(of, WireConfig("tiny-llama", window=64, rank=4, format_tokens=3))
        return evaluate_wire(wire, data, 4)["rows"]["text"]

    chat = FrozenLM(lm.model, tokenizer(), lm.name)
    chat.tokenizer.chat_template = "{% for m in messages %}<bos>{{ m.content }}{% endfor %}\n"
    plain, afresh = scored(lm, "a"), scored(chat, "b")
    assert scored(chat, "a") == afresh != plain == scored(lm, "a")


def test_an_interrupted_evaluation_goes_on(lm, data, tmp_path, monkeypatch):
    wire = Wire(lm, WireConfig("tiny-llama", window=64, rank=4, format_tokens=3))
    whole = evaluate_wire(wire, data, out=tmp_path / "a")
    evaluate_wire(wire, data, out=tmp_path / "b")
    path = tmp_path / "b" / "predictions.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:50]) + lines[50][:20])
    again = evaluate_wire(wire, data, out=tmp_path / "b")
    assert again["n"] == 16
    for name, row in whole["rows"].items():
        assert again["rows"][name] == pytest.approx(row, abs=1e-4)
    with pytest.raises(ValueError, match=r"another run \(limit is None there, 4 here\)"):
        evaluate_wire(wire, data, limit=4, out=tmp_path / "b")
    other = tmp_path / "other" / "d.jsonl"
    other.parent.mkdir()
    other.write_text(Path(data).read_text().replace("Ada", "Ida"))
    with pytest.raises(ValueError, match=r"another run \(questions is"):
        evaluate_wire(wire, str(other), out=tmp_path / "b")


def test_a_recipe_goes_on_from_a_wire_at_several_ratios_in_turn(lm, data, tmp_path, monkeypatch):
    begun = train_wire(recipe(data, tmp_path / "first")) / "wire"
    first, seen, losses = Wire.from_pretrained(begun), [], recipes.slots_losses

    def recorded(wire, batch, **options):
        parts = losses(wire, batch, **options)
        seen.append((wire.config.ratio, wire.slots.up.detach().clone(), parts["ce"].item()))
        return parts

    monkeypatch.setattr(recipes, "slots_losses", recorded)
    asked = replace(
        recipe(data, tmp_path / "second"),
        init_from=str(begun),
        ratios=(2, 5),
        format=LoopConfig(steps=0, lr=0.01),
        slots=LoopConfig(steps=4, lr=0.02, warmup=1),
    )
    second = Wire.from_pretrained(train_wire(asked) / "wire")
    log = [json.loads(line) for line in (tmp_path / "second" / "metrics.jsonl").open()]
    assert [row["stage"] for row in log] == ["slots"] * 4
    assert [row["ce"] for row in log] == pytest.approx([ce for _, _, ce in seen], abs=1e-5)
    assert [ratio for ratio, _, _ in seen] == [2, 5, 2, 5]
    assert torch.equal(seen[0][1], first.slots.up) and second.config.ratio == 2
    assert torch.equal(second.format, first.format)
    assert torch.equal(second.scorer.weight, first.scorer.weight)
    assert not torch.equal(second.slots.up, first.slots.up)
    first.save_pretrained(begun)  # the same weights, so that the run is gone on with
    assert train_wire(asked) == asked.out
    second.save_pretrained(begun)
    with pytest.raises(ValueError, match=r"holds a run with another config \(init_from is"):
        train_wire(asked)
    assert train_wire(recipe(data, tmp_path / "first")) == tmp_path / "first"
    Path(data).write_text(Path(data).read_text().replace("Ada", "Ida"))
    with pytest.raises(ValueError, match=r"another config \(files\..*d.jsonl is"):
        train_wire(recipe(data, tmp_path / "first"))
    larger = replace(asked, out=tmp_path / "third", wire=replace(asked.wire, rank=8))
    with pytest.raises(WireError, match="whose rank is 4; expected 8"):
        train_wire(larger)
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_soft_prompt_moves_in_units_of_the_readers_embeddings(
    family, data, tmp_path, monkeypatch
):
    lm = tiny_lm(family)
    monkeypatch.setattr(FrozenLM, "from_pretrained", classmethod(lambda *_: lm))
    one = replace(recipe(data, tmp_path / "a"), format=LoopConfig(steps=1, lr=0.01, warmup=1))
    begun = train_wire(one) / "wire"
    more = replace(one, out=tmp_path / "b", init_from=str(begun))
    again = Wire.from_pretrained(train_wire(more) / "wire")
    words = "\n\nAnswer the question with a short span copied from the text, nothing else."
    table, moved = lm.model.get_input_embeddings(), Wire.from_pretrained(begun).format
    start = table(lm.tokenize(words))[:16]  # gemma3's table scales them
    # Adam's first step moves each number by the learning rate, whatever its gradient.
    expected = torch.full_like(moved, 0.01 * start.square().mean().sqrt())
    rounding = 0.01 * start.std()  # wires are saved in bfloat16
    torch.testing.assert_close((moved - start[:3]).abs(), expected, atol=rounding, rtol=0)
    assert (again.format - moved).abs().mean() > 0.5 * expected.mean()


def test_contradictions_are_refused_at_once():
    fine = recipe("x", None)
    with pytest.raises(ValueError, match="questions is 0"):
        replace(fine, questions=0)
    with pytest.raises(ValueError, match=r"ratios are \(4, 0\); expected none below 1"):
        replace(fine, ratios=(4, 0))
    with pytest.raises(ValueError, match=r"ratios are \(4, 8\); expected the wire's own, 2, among"):
        replace(fine, ratios=(4, 8))
    with pytest.raises(ValueError, match="save_every is 0"):
        replace(fine.format, save_every=0)


def test_a_wire_of_a_reader_in_bfloat16_is_trained_and_loaded_so(data, tmp_path):
    folder = tmp_path / "model"
    one = tiny_lm("llama")
    one.model.save_pretrained(folder)
    one.tokenizer.save_pretrained(folder)
    asked = recipe(data, tmp_path / "run")
    asked = replace(asked, wire=replace(asked.wire, reader=str(folder), dtype="bfloat16"))
    wire = Wire.from_pretrained(train_wire(asked) / "wire")
    assert wire.lm.dtype == torch.bfloat16
    assert {t.dtype for t in wire.parameters()} == {torch.float32}
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    losses = [row["loss"] for row in log if row["stage"] == "slots"]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    result = evaluate_wire(wire, data, 8)
    assert result["embeds_vs_ids_difference"] == 0


def test_questions_are_answered_some_at_a_time_as_they_are_together(lm, data, monkeypatch):
    passages = by_context(load_questions(data))[:3]
    rows = {"closed": closed_book(lm)}
    together = [a for batch in evaluate(lm, None, passages, rows) for a in batch]
    monkeypatch.setattr(harness, "ROWS", 4)  # of 6, which parts a passage's questions
    apart = [a for batch in evaluate(lm, None, passages, rows) for a in batch]
    assert [replace(a, nll=0.0) for a in apart] == [replace(a, nll=0.0) for a in together]
    assert [a.nll for a in apart] == pytest.approx([a.nll for a in together], abs=1e-4)


def test_a_check_measures_the_readers_own_keys_and_keeps_none_of_them(lm):
    wire = Wire(lm, WireConfig("tiny-llama", ratio=2, window=64, rank=4, format_tokens=3))
    texts = {name: f"{name} was born then." for name in NAMES}
    passages = [Passage(t, (Question("q", t, "Who?", (n,)),)) for n, t in texts.items()]
    lengths = {len(lm.tokenize(p.context)) for p in passages}
    forced, whole = recipes._forced(wire), []

    def alive() -> list[CompressedKV]:
        return [o for o in gc.get_objects() if type(o) is CompressedKV and len(o) in lengths]

    before = alive()  # of other tests

    def watched(batch, context):
        whole.extend(o for o in alive() if all(o is not other for other in before))
        return forced(batch, context)

    found = check_latents(wire, passages, lambda batch: recipes._read(wire, batch), watched)
    assert not whole
    rows = [torch.cat([lm.frame.prefix, lm.tokenize(t)])[None] for t in texts.values()]
    layers = [layer for ids in rows for layer in lm.model(ids, use_cache=True).past_key_values]
    for kind, place in (("keys", 0), ("values", 1)):
        own = torch.cat([layer[place][0, :, len(wire.head) :].flatten() for layer in layers])
        sent = [getattr(z, kind) for z in wire.encode(list(texts.values()))]
        size = torch.cat([z.flatten() for z in sent]).square().mean().sqrt()
        assert found[f"scale.{kind}"] == pytest.approx((size / own.square().mean().sqrt()).item())
