"""Every alarm is provoked by the fault that it is for, and a sound training raises none of them."""

import json
import re
import sys
from dataclasses import replace

import pytest
import torch
from test_recipes import lm, recipe  # noqa: F401 (lm: a fixture)

from latentwire.__main__ import main
from latentwire.train.alarms import (
    CollapseError,
    alarms,
    collapsed,
    pairwise_cosine,
    standing,
    within_cosine,
)
from latentwire.train.loop import LoopConfig, Session, train
from latentwire.wire import training as recipes
from latentwire.wire.recipe import RECIPES
from latentwire.wire.training import WireRecipe, train_wire
from latentwire.wire.wire import Wire

FAULTS = {"layout", "exposure", "sameness", "repetition", "scale", "frozen"}
"""What a sound training of a tiny model never raises; how well it reads is another matter."""
SESSION = Session(check_every=2)


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]


def checks(folder) -> list[dict]:
    return [row["alarms"] for row in rows(folder) if "alarms" in row]


@pytest.fixture
def quick(tmp_path) -> WireRecipe:
    """A recipe of a second; answers differ in length, so that batches are padded."""
    path = tmp_path / "d.jsonl"
    with path.open("w") as file:
        for i, name in enumerate(
            ["Ada", "Emmy", "Sofia", "Mary", "Lise", "Bo", "Vera", "Ingeborg"]
        ):
            context = f"{name} was born in {1800 + i}."
            pairs = (("Who?", name), ("When?", f"in {1800 + i}"))
            for n, (question, answer) in enumerate(pairs):
                row = {"question": question, "answers": [answer], "context": context}
                file.write(json.dumps({"id": f"{i}{n}", **row}) + "\n")
    made = recipe(str(path), tmp_path / "run")
    stages = {
        "format": replace(made.format, steps=1),
        "slots": replace(made.slots, steps=6, lr=0.02),
    }
    return replace(made, held_out=3, **stages)


def doubled_shift(monkeypatch):
    """Targets one token later than what each state predicts."""
    right = recipes.answer_targets

    def late(reader, batch):
        targets, mask = right(reader, batch)
        return targets[:, 1:], mask[:, 1:]

    monkeypatch.setattr(recipes, "answer_targets", late)


def labels_on_padding(monkeypatch):
    right = recipes.answer_targets

    def padded(reader, batch):
        targets, mask = right(reader, batch)
        return targets, torch.ones_like(mask)

    monkeypatch.setattr(recipes, "answer_targets", padded)


def one_space_more(right):
    """A prompt's function, with one space more between question and answer than an evaluation
    has."""

    def spaced(reader, *arguments):
        prompt = right(reader, *arguments)
        space = reader.embed(reader.tokenize(" ")).expand(len(prompt.mask), -1, -1)
        return prompt.append(space, torch.ones(space.shape[:2], dtype=torch.bool))

    return spaced


def another_anchor(monkeypatch):
    monkeypatch.setattr(recipes, "passages_prompt", one_space_more(recipes.passages_prompt))


def zero_latents(monkeypatch):
    compress = Wire.compress

    def empty(*arguments):
        made = compress(*arguments)
        return [replace(z, keys=z.keys * 0, values=z.values * 0) for z in made]

    monkeypatch.setattr(Wire, "compress", empty)


def frozen_adapter(monkeypatch):
    """The residual's first factor outside of the graph."""
    gelu = torch.nn.functional.gelu
    monkeypatch.setattr(torch.nn.functional, "gelu", lambda hidden: gelu(hidden.detach()))


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        (None, set()),
        (doubled_shift, {"layout"}),
        (labels_on_padding, {"layout"}),
        (another_anchor, {"layout"}),
        (zero_latents, {"sameness", "repetition", "scale", "frozen"}),
        (frozen_adapter, {"frozen"}),
    ],
)
def test_a_fault_raises_its_alarm(fault, raised, lm, quick, monkeypatch):  # noqa: F811
    if fault is not None:
        fault(monkeypatch)
    last = checks(train_wire(replace(quick, slots=replace(quick.slots, steps=2)), SESSION))[-1]
    assert raised <= set(last) and not (FAULTS - raised) & set(last)
    assert all("\n" not in text for text in last.values())


def test_a_collapse_ends_the_run_where_it_is_asked_for(lm, quick, monkeypatch, capsys):  # noqa: F811
    zero_latents(monkeypatch)
    with pytest.raises(CollapseError, match="slots ended at step 4 by --stop-on: latents of diff"):
        train_wire(quick, replace(SESSION, stop_on="collapse"))
    shown = capsys.readouterr().err  # in the progress line, beside the throughput
    assert re.search(r"loss \d+\.\d{3}, \d+ tok/s, alarm: .*sameness", shown)
    assert rows(quick.out)[-1]["step"] == 4
    # The checkpoint of that step stays, and without --stop-on the run goes on from it.
    log = rows(train_wire(quick, SESSION))
    assert standing(log)["slots sameness"].startswith("latents of different")
    assert [r["step"] for r in rows(quick.out) if r["stage"] == "slots"] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("stop_on", ["nothing", "collapse"])
def test_the_exit_status_tells_of_alarms(stop_on, lm, quick, monkeypatch, capsys):  # noqa: F811
    zero_latents(monkeypatch)
    monkeypatch.setitem(RECIPES, "tiny", lambda: quick)
    arguments = ["train", "tiny", "--stop-on", stop_on, "--check-every", "2"]
    monkeypatch.setattr(sys, "argv", ["latentwire", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 3
    last = capsys.readouterr().out.splitlines()[-1]
    expected = "alarm: slots" if stop_on == "nothing" else "latentwire: slots ended at step 4"
    assert last.startswith(expected)


def test_training_and_evaluation_agree_to_the_digit(lm, quick):  # noqa: F811
    row = [r for r in rows(train_wire(quick, SESSION)) if "alarms" in r][-1]
    assert row["held"] == pytest.approx(row["evaluated"], abs=1e-3)  # messages hold half floats
    assert row["held_low"] <= row["held"] <= row["held_high"] and row["held_n"] == 3
    assert {"grad.down", "grad.up", "grad_of.ce", "grad_of.kl", "tokens", "waited"} <= set(row)


SOUND = {
    "held": 1.0,
    "evaluated": 1.01,
    "mismatch": 0.01,
    "forced": 0.4,
    "free": 0.45,
    "distinct": 20.0,
    "distinct_gold": 24.0,
    "cosine": 0.9,
    "cosine_text": 0.8,
    "within": 0.7,
    "within_text": 0.4,
    "gap": 2.0,
    "gap_low": 1.0,
    "scale.keys": 1.1,
    "grad.up": 1.0,
    "grad_of.ce": 1.0,
    "grad_of.kl": 3.0,
    "waited": 0.1,
    "seconds": 1.0,
    "step": 50.0,
}


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        (
            {"mismatch": 0.5},
            "layout",
            "differ by 0.50 nats per token on the same answers (1.00, 1.01",
        ),
        ({"free": 0.0}, "exposure", "40% of answers are right when teacher-forced, 0% when"),
        ({"distinct": 2.0}, "diversity", "begin with 2 different tokens where 24"),
        ({"cosine": 0.999}, "sameness", "have cosine 0.999, their texts 0.800"),
        ({"within": 0.95}, "repetition", "of one message have cosine 0.950, the vectors of its"),
        ({"gap": 0.01, "gap_low": -0.02}, "reading", "cost 0.010"),
        ({"scale.keys": 40.0}, "scale", "keys are 40.00 times the size"),
        ({"grad.up": 0.0}, "frozen", "up gets no gradient"),
        ({"grad_of.kl": 200.0}, "balance", "gradient of kl is 200 times that of ce"),
        ({"waited": 0.6}, "waiting", "60% of the step"),
    ],
)
def test_each_rule_by_hand(change, name, said):
    assert alarms(SOUND) == {}
    found = alarms(SOUND | change)
    assert list(found) == [name] and said in found[name]
    silent = {key: value for key, value in SOUND.items() if key not in change}
    assert alarms({"seconds": 1.0, **silent}) == {}


def test_a_collapse_must_last():
    one, other = {"reading": "a"}, {"sameness": "b"}
    assert collapsed([one, one]) is None and collapsed([one, {}, one]) is None
    assert collapsed([one, one, other]) is None and collapsed([{"waiting": "c"}] * 3) is None
    assert collapsed([{}, one, one | other, one]) == "a"


def test_pairwise_cosine_by_hand():
    vectors = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    assert pairwise_cosine(vectors) == pytest.approx(2 * 2**-0.5 / 3)
    assert pairwise_cosine(torch.zeros(3, 2)) == 1.0
    same = torch.ones(4, 2)
    assert within_cosine([vectors, vectors[:1], same]) == pytest.approx(0.5 + 2**-0.5 / 3)
    assert within_cosine([same[:1]]) == 0.0


def test_a_part_that_the_loss_does_not_reach_is_named(tmp_path):
    parts = {n: torch.ones(2, requires_grad=True) for n in ("reached.a", "left.out.b")}
    config = LoopConfig(steps=4, lr=0.1, warmup=1, save_every=1)
    for _ in range(2):  # and its checkpoint can be loaded
        train("s", parts, lambda step: (parts["reached.a"].sum(), {}), config, tmp_path)
    assert checks(tmp_path)[-1]["frozen"].startswith("left.out gets no gradient")
    with pytest.raises(ValueError, match="reaches none of the trained parameters"):
        train("t", parts, lambda step: (torch.ones(()), {}), config, tmp_path)


def test_a_loss_that_is_not_finite_can_be_replayed(tmp_path):
    weight = torch.ones(3, requires_grad=True)

    def loss(step):
        return weight.sum() * (float("nan") if step == 3 else 1.0), {}

    config = LoopConfig(steps=9, lr=0.1, warmup=1)
    with pytest.raises(
        FloatingPointError, match=r"^s: loss is nan at step 3; try a lower lr.*renamed to s.safet"
    ):
        train("s", {"w": weight}, loss, config, tmp_path)
    before = weight.detach().clone()
    # The state before that step, as a checkpoint: the same step sees the same batch again.
    (tmp_path / "s.failed.safetensors").rename(tmp_path / "s.safetensors")
    with torch.no_grad():
        weight.zero_()
    with pytest.raises(FloatingPointError, match="loss is nan at step 3"):
        train("s", {"w": weight}, loss, config, tmp_path)
    assert torch.equal(weight, before)
