"""The objectives of a shared wire's training: what each is, and what a step makes of them."""

import json
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from test_shared import BOTH, SIZES, data_of, lms, make_wire, pairs, passages, recipe  # noqa: F401
from tiny import tiny_lm

from latentwire.lm import Prompt
from latentwire.lm.adapters import lora_config
from latentwire.tasks.qa import Passage, Question, answer_targets, passages_prompt
from latentwire.train.loop import LoopConfig, Session
from latentwire.train.losses import cosine_distance, moment_error
from latentwire.train.schedules import Schedule
from latentwire.train.step import update
from latentwire.wire.learned import objectives as steps
from latentwire.wire.learned import training as recipes
from latentwire.wire.learned.data import TrainingData
from latentwire.wire.learned.objectives import OFF, Objectives, Step, values_of
from latentwire.wire.learned.shared_wire import SharedConfig, SharedWire
from latentwire.wire.learned.training import check_readers, train_shared, wire_loss

WEIGHTS = list(Objectives().schedules)
NOTHING = Objectives(**dict.fromkeys(WEIGHTS, OFF), piece=8)


def only(**weights) -> Objectives:
    """These objectives, at a fixed value, and no other."""
    return replace(NOTHING, **{name: Schedule(value) for name, value in weights.items()})


def step_of(objectives: Objectives) -> Step:
    weights = {name: s.at(0, 1) for name, s in objectives.schedules.items()}
    return Step(passages(), passages(), weights, objectives.piece, 0, 0)


def parts_of(reader, step: Step) -> dict[str, torch.Tensor]:
    texts = [p.context for p in step.batch]
    contents = values_of(reader.wire, texts, reader.wire(texts))
    return steps.reader_parts(reader, step, texts, contents)


def test_a_step_with_every_objective(lms):  # noqa: F811
    wire = make_wire(lms, injector="embeddings").train()
    weights = {name: 0.1 * (i + 1) for i, name in enumerate(WEIGHTS)}
    given = recipe(wire.config, objectives=only(**weights))
    trained = [p for p in wire.parameters() if p.requires_grad]
    training_data = TrainingData(
        [replace(p, context=f"{p.context[-2:]} {p.context}") for p in passages()], []
    )
    total, figures = wire_loss(wire, wire.readers, training_data, given, 0)
    expected, found = 0.0, set()
    for name, part in figures.items():
        objective = name.split(".")[-1]
        if objective not in weights:
            continue  # waited, tokens, count
        assert part.isfinite(), name
        grads = torch.autograd.grad(part, trained, retain_graph=True, allow_unused=True)
        assert any(g is not None and g.any() for g in grads), name
        assert all(g is None or g.isfinite().all() for g in grads), name
        expected = expected + weights[objective] / len(BOTH) * part
        found.add(name)
    assert found == {f"{r}.{n}" for r in BOTH for n in weights}
    torch.testing.assert_close(total, expected)
    again = wire_loss(wire, wire.readers, training_data, given, 0)[0]
    assert torch.equal(again, total)  # all noise is the step's
    assert all(p.grad is None for lm in lms.values() for p in lm.model.parameters())


def test_what_weighs_nothing_is_not_computed(lms, monkeypatch):  # noqa: F811
    wire = make_wire(lms)

    def never(*_, **__):
        raise AssertionError("computed for a weight of 0")

    for name in ("full_text", "_reconstruction", "aligned_embeds"):
        monkeypatch.setattr(steps, name, never)
    given = recipe(wire.config, objectives=only(ce=1.0))
    figures = wire_loss(wire, wire.readers, TrainingData(passages(), []), given, 0)[1]
    assert set(figures) == {"waited", "tokens", "count", *(f"{name}.ce" for name in BOTH)}
    monkeypatch.undo()
    monkeypatch.setattr(type(wire.readers[0]), "prefix", never)
    given = recipe(wire.config, objectives=only())
    figures = wire_loss(wire, wire.readers, TrainingData(passages(), []), given, 0)[1]
    assert set(figures) == {"waited", "tokens", "count"}


@pytest.mark.parametrize("parts", [2, 4])
def test_a_step_in_uneven_parts_is_the_joint_one(lms, parts):  # noqa: F811
    wire = make_wire(lms).train()
    texts = ["It was A or so.", "It was only B after all.", "Later it was C.", "A D stood here."]
    answers = [("A", "A or so"), (), ("C",), ("D", "a D that stood here", "here")]  # none of B
    training_data = TrainingData(
        [
            Passage(text, tuple(Question(f"{text}{a}", text, "Who?", (a,)) for a in some))
            for text, some in zip(texts, answers, strict=True)
        ],
        [],
    )
    exact = ("reconstruction", "ce", "kl")
    weights = {name: 0.3 * (i + 1) for i, name in enumerate(exact)}
    given = recipe(wire.config, batch_size=4, objectives=only(**weights))
    trained = {n: p for n, p in wire.named_parameters() if p.requires_grad}

    def step_in(count: int):
        still = torch.optim.SGD([{"params": list(trained.values()), "rate": 0.0}], lr=0.0)
        config, session = LoopConfig(1, 1.0, clip=1e9), Session(gradient_accumulation=count)
        loss = lambda step: wire_loss(wire, wire.readers, training_data, given, step)  # noqa: E731
        figures = update(0, trained, loss, still, config, session, checking=False)
        return figures, {n: p.grad.clone() for n, p in trained.items()}

    (whole, joint), (parted, added) = step_in(1), step_in(parts)
    assert set(whole) == set(parted) and {f"{BOTH[0]}.{n}" for n in exact} <= set(whole)
    for name in set(whole) - {"waited"}:
        assert parted[name] == pytest.approx(whole[name], rel=1e-5, abs=1e-5), name
    for name, grad in joint.items():
        torch.testing.assert_close(added[name], grad, rtol=1e-5, atol=1e-5, msg=name)


def test_the_teacher_reads_without_the_adapter_that_the_student_has():
    def tiny():
        lm = tiny_lm("gemma3")
        lm.tokenizer = pairs()
        return lm

    plain, base = tiny(), tiny()
    view = base.add_lora("reader", lora_config(base.model.config, 2, 3))
    torch.manual_seed(1)
    for tensor in view.adapter_parameters().values():
        torch.nn.init.normal_(tensor, std=0.3)
    wire = make_wire({"tiny-llama": tiny_lm("llama"), "tiny-gemma3": view})
    reader, batch = wire.readers[1], passages()
    parts = parts_of(reader, step_of(only(kl=1.0)))
    contents = values_of(wire, [p.context for p in batch], wire([p.context for p in batch]))

    targets, mask = answer_targets(plain, batch)
    rows = [torch.cat([plain.frame.prefix, plain.tokenize(p.context)]) for p in batch]
    text = passages_prompt(plain, reader.format, batch, plain.prefill(Prompt.from_ids(plain, rows)))
    latents = passages_prompt(view, reader.format, batch, reader.prefix(contents))
    # Log-probabilities of all tokens, from models of which one never had an adapter.
    teacher = plain.logits(text, targets, mask)[mask].log_softmax(-1)
    student = view.logits(latents, targets, mask)[mask].log_softmax(-1)
    kl = (teacher.exp() * (teacher - student)).sum(-1).mean()
    torch.testing.assert_close(parts["kl"], kl)
    grads = torch.autograd.grad(parts["kl"], list(view.adapter_parameters().values()))
    assert all(g.any() for g in grads)


def test_embeddings_are_aligned_with_the_means_of_their_share(lms):  # noqa: F811
    wire = make_wire(lms, injector="embeddings")
    reader, step = wire.readers[0], step_of(only(embeds=1.0))
    start = reader.adapter.injector.start  # alone: the residual begins as zero
    torch.nn.init.zeros_(start.weight)
    embeds = [reader.lm.embed(reader.lm.tokenize(p.context)) for p in step.batch]
    means = torch.stack([part.mean(0) for rows in embeds for part in rows.split(4)])
    made = start.bias.expand_as(means)
    found = parts_of(reader, step)["embeds"]
    torch.testing.assert_close(found, cosine_distance(made, means) + moment_error(made, means))
    checked = check_readers([reader], step.batch)
    cosine = torch.cosine_similarity(made, means).mean().item()
    assert checked["reconstruction_cosine"] == pytest.approx(cosine, abs=1e-5)
    assert "reconstruction_cosine" not in check_readers(make_wire(lms).readers[:1], step.batch)


def test_what_objectives_draw_and_train_resumes_exactly(lms, tmp_path, monkeypatch):  # noqa: F811
    data = data_of(passages(), tmp_path)
    sizes = {"sizes": SIZES, "trunk_layers": 1, "format_tokens": 2}
    config = SharedConfig(BOTH[:1], "tiny-llama", **sizes)
    some = only(reconstruction=1.0, ce=1.0)
    gated = Schedule(0.0, 1.0, over=2.0, gate=("held", "below", 2.0))
    monkeypatch.setattr(recipes, "check_readers", lambda *_: {"held": 1.0})
    few = LoopConfig(1, 3e-3, warmup=1)
    given = recipe(
        config,
        data=(str(data),),
        batch_size=4,
        format=few,
        train=replace(few, steps=4),
        objectives=replace(some, kl=gated),
    )
    session = Session(check_every=2)

    def trained(name):
        return train_shared(replace(given, out=tmp_path / name), session, lms)

    straight = trained("a")
    loss = recipes.wire_loss

    def interrupted(*arguments):
        if arguments[4] == 2:
            signal.raise_signal(signal.SIGINT)
        return loss(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(recipes, "wire_loss", interrupted)
        trained("b")
    resumed = trained("b")
    kept, again = (load_file(folder / "wire.safetensors") for folder in (straight, resumed))
    assert set(kept) == set(again)
    assert all(torch.equal(kept[name], again[name]) for name in kept)
    # What was measured before the first step too, which another machine might measure otherwise.
    assert {f"value/{name}" for name in SharedWire(config, lms).state_dict()} <= set(kept)
    log = [json.loads(line) for line in (straight / "metrics.jsonl").open()]
    seen = ["tiny-llama.kl" in row for row in log if row["stage"] == "wire"]
    assert seen == [False, False, True, True]  # step 1 begins the way, which begins at 0


def test_a_step_that_nothing_applies_to_moves_nothing(lms):  # noqa: F811
    wire = make_wire(lms)
    silent = TrainingData([replace(p, questions=()) for p in passages()], [])
    given = recipe(wire.config, objectives=only(ce=1.0))
    total, _ = wire_loss(wire, wire.readers, silent, given, 0)
    total.backward()
    assert total == 0 and not any(p.grad is not None and p.grad.any() for p in wire.parameters())


def test_objectives_that_contradict_themselves(lms):  # noqa: F811
    for change, said in [
        ({"ce": Schedule(-1.0)}, "ce is .*; expected 0 or more"),
        ({"piece": 4}, "piece is 4; expected more than the cue's 4"),
    ]:
        with pytest.raises(ValueError, match=said):
            Objectives(**change)
    config = SharedConfig(BOTH, "tiny-llama", "pca", sizes=SIZES)
    with pytest.raises(ValueError, match="injector is deep_prefix; expected embeddings"):
        recipe(config, objectives=only(embeds=1.0))
    gated = replace(NOTHING, ce=Schedule(1.0, gate=("held", "below", 2.0)))
    with pytest.raises(ValueError, match="ce waits for a check; expected held_out and check_size"):
        train_shared(recipe(config, objectives=gated, held_out=1), lms=lms)
