"""Trainings, evaluations, explanations and searches give on a device what they give on the CPU.
The device is apart.py's; whoever has an accelerator has no other path. test_device.py runs these in
a process of their own: torch with a device cannot be forked, as other tests do."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from apart import NAME, Lying, present
from test_lens_recipes import DOCUMENTS, losses
from test_lens_recipes import recipe as lens_recipe
from test_recipes import data, recipe  # noqa: F401 (data: a fixture)
from test_shared import SIZES
from tiny import tiny_lm

from latentwire.lens.evaluation import LensEvaluation, evaluate_lens
from latentwire.lens.explain import explain_text
from latentwire.lens.lens import Lens
from latentwire.lens.training import train_lens
from latentwire.lm import FrozenLM
from latentwire.lm.doctor import CHECKS, decoding_modes_agree, score_equals_decode
from latentwire.seek.recipe import SeekRecipe
from latentwire.seek.run import run_seek
from latentwire.tasks.qa import by_context, load_questions
from latentwire.train.loop import LoopConfig, Session
from latentwire.train.schedules import Schedule
from latentwire.wire.evaluation import evaluate_wire
from latentwire.wire.joint import losses as lost_by
from latentwire.wire.learned.config import SharedRecipe
from latentwire.wire.learned.objectives import Objectives
from latentwire.wire.learned.shared_wire import SharedConfig, SharedWire
from latentwire.wire.learned.training import train_shared
from latentwire.wire.load import load_wire
from latentwire.wire.text_wire import TextWire
from latentwire.wire.training import train_wire

Made = TypeVar("Made")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Tiny models in folders, by family."""
    made = {}
    for family in ("llama", "gemma3", "gpt2"):
        folder, lm = tmp_path_factory.mktemp("models") / family, tiny_lm(family)
        lm.model.save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)
        made[family] = str(folder)
    return made


def on_both(work: Callable[[str], Made]) -> tuple[Made, Made]:
    """What work gives on the CPU, and where this machine has the device."""
    here = work("cpu")
    with present():
        return here, work(NAME)


def same_losses(runs: Path) -> None:
    """Of every step. Tensors whose gradient should be 0 may move otherwise, by rounding."""
    for one, other in zip(losses(runs / "cpu"), losses(runs / NAME), strict=True):
        for name in ("loss", "grad_norm"):
            assert other[name] == pytest.approx(one[name], abs=1e-3, rel=1e-3), name


def same_rows(here: dict, there: dict) -> None:
    assert here.keys() == there.keys() and len(here) > 3
    for name, row in here.items():
        assert there[name]["nll"] == pytest.approx(row["nll"], abs=1e-3), name
        assert there[name]["f1"] == row["f1"], name


def test_the_device_refuses_what_a_gpu_refuses():
    lying = torch.arange(3.0).to(NAME)
    assert isinstance(lying, Lying) and lying.tolist() == [0, 1, 2]
    with pytest.raises(RuntimeError, match="add: tensors on apart and cpu"):
        lying + torch.ones(3)
    with pytest.raises(RuntimeError, match="add_: tensors on apart and cpu"):
        torch.ones(3).add_(lying)
    with pytest.raises(RuntimeError, match="index: tensors on"):
        torch.ones(3)[lying.long()]
    assert lying[torch.tensor([2])].tolist() == [2]  # indices may lie on the CPU
    with pytest.raises(TypeError, match="numpy"):
        lying.numpy()
    with pytest.raises(TypeError, match="no float64"):
        lying.double()


@pytest.mark.parametrize("family", ["gemma3", "gpt2"])
def test_every_path_agrees_there(folders, family):
    """In ragged batches, which are made of rows. A generation begins with a prompt as other checks
    run over it, so that it need not begin with each kind. The second family has no code of its own
    but for positions, which every kind of input has."""
    with present():
        lm = FrozenLM.from_pretrained(folders[family])
        assert lm.device.type == NAME
        for name, (check, kinds, tolerance) in CHECKS.items():
            generated = check in (score_equals_decode, decoding_modes_agree)
            some = ("ragged", "patch_all") if generated else kinds
            for kind in some if family == "gemma3" else kinds[-1:]:
                assert check(lm, kind, True) <= tolerance, (name, kind)
    assert FrozenLM.from_pretrained(folders[family]).device.type == "cpu"


def test_a_wire_is_trained_and_evaluated(folders, data, tmp_path):  # noqa: F811
    def work(device: str) -> dict:
        small = recipe(data, tmp_path / device)
        few = LoopConfig(steps=2, lr=0.01, warmup=1)
        config = replace(small.wire, reader=folders["llama"])
        folder = train_wire(replace(small, wire=config, format=replace(few, steps=1), slots=few))
        wire = load_wire(str(folder / "wire"))
        assert wire.lm.device.type == device
        texts = TextWire(wire.lm, [wire])
        assert texts.texts(texts.send(["Ada was born in 1815."])) == ["Ada was born in 1815."]
        return evaluate_wire(wire.at(4).keeping("numbers"), data, limit=4, bits=8, answer_tokens=6)[
            "rows"
        ]

    here, there = on_both(work)
    same_losses(tmp_path)
    same_rows(here, there)


def test_readers_of_a_shared_wire_may_be_in_different_places(folders):
    names = (folders["llama"], folders["gemma3"])
    texts = ["Ada was born in 1815.", "The Elbe is a river."]

    def read(device: str) -> list[torch.Tensor]:
        lms = {names[0]: FrozenLM.from_pretrained(names[0], device="cpu")}
        lms[names[1]] = FrozenLM.from_pretrained(names[1], device=device)
        torch.manual_seed(0)
        wire = SharedWire(SharedConfig(names, names[0], sizes=SIZES), lms).eval()
        wire.fit(texts)
        prefixes = [reader.receive(wire.send(texts)) for reader in wire.readers]
        assert prefixes[1].keys[0].device.type == device
        return [x.cpu() for p in prefixes for x in (*p.keys, *p.values)]

    for here, there in zip(*on_both(read), strict=True):
        torch.testing.assert_close(here, there, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("encoder", "injector"),
    [
        ("lm_states", "embeddings"),
        ("anchor", "lora"),
        ("pca", "cross_attention"),
        ("utf8", "deep_prefix"),
    ],
)
def test_a_shared_wire_is_trained_and_read(folders, data, tmp_path, encoder, injector):  # noqa: F811
    """The first of them with all that is the same for every part: the stage of the soft prompts, a
    second step, and checks, which two held-out passages are enough for."""
    steps = 2 if encoder == "lm_states" else 1
    on = {f.name: Schedule(0.1) for f in fields(Objectives) if f.type == "Schedule"}
    on |= {} if injector == "embeddings" else {"embeds": Schedule(0.0)}
    readers = (folders["llama"], folders["gemma3"])
    config = SharedConfig(readers, readers[0], encoder, injector, SIZES)
    objectives = Objectives(**on, piece=8)
    stages = {"format": LoopConfig(steps - 1, 3e-3), "train": LoopConfig(steps, 3e-3, warmup=1)}
    of = {"batch_size": 2, "held_out": steps, "fitted": 8, **stages}
    whole = SharedRecipe("tiny", config, (data,), objectives=objectives, **of)

    def work(device: str) -> list[float]:
        wire = load_wire(train_shared(replace(whole, out=tmp_path / device)) / "wire")
        answers = lost_by(wire.readers, by_context(load_questions(data, 4)))
        return [a.nll for reader in wire.readers for a in answers[reader.reader]]

    here, there = on_both(work)
    same_losses(tmp_path)
    assert there == pytest.approx(here, abs=1e-3)


def test_a_lens_is_trained_and_explains(folders, tmp_path):
    text = tmp_path / "t.txt"
    text.write_text("\n\n".join(DOCUMENTS))
    small = lens_recipe(text, None)

    def work(device: str) -> tuple:
        own = replace(
            small, out=tmp_path / device, lens=replace(small.lens, model=folders["llama"])
        )
        lens = Lens.from_pretrained(str(train_lens(own) / "lens"))
        assert lens.lm.device.type == device
        said = [
            [e.text for e in token.explanations]
            for token in explain_text(lens, "Number 7 is a river.", k=2)
        ]
        return said, evaluate_lens(
            lens, [text], LensEvaluation(documents=4, positions=1, window=32)
        )

    (words, here), (others, there) = on_both(work)
    same_losses(tmp_path)
    assert words == others
    assert there["fve"] == pytest.approx(here["fve"], abs=1e-3)
    for name, row in here["controls"].items():
        assert there["controls"][name]["kl"] == pytest.approx(row["kl"], abs=1e-3), name


@pytest.mark.parametrize("reward", ["exact", "self", "confidence"])
def test_answers_are_searched(folders, tmp_path, reward):
    path = tmp_path / "sums.jsonl"
    rows = [{"id": f"{i}", "question": f"{i} + {i}?", "answer": str(2 * i)} for i in range(2)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = SeekRecipe(str(path), reward=reward, steps=2, k=0.5, lr=0.3, max_new_tokens=8, batch=2)

    def work(device: str) -> list[list[str]]:
        run_seek(FrozenLM.from_pretrained(folders["llama"]), asked, tmp_path / device)
        records = map(json.loads, (tmp_path / device / "predictions.jsonl").open())
        return [
            [step["text"] for step in arm["trace"]] for r in records for arm in r["arms"].values()
        ]

    here, there = on_both(work)
    assert here == there


def test_half_precision_recomputation_and_parts(folders, data, tmp_path):  # noqa: F811
    """What a GPU's training is asked for most."""
    few = LoopConfig(steps=10, lr=0.02, warmup=1)
    small = replace(recipe(data, tmp_path / "run"), format=replace(few, steps=1), slots=few)
    config = replace(small.wire, reader=folders["llama"], dtype="bfloat16")
    session = Session("bf16", gradient_accumulation=2, gradient_checkpointing=True)
    with present():
        folder = train_wire(replace(small, wire=config), session)
    log = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    fell = [row["loss"] for row in log if row["stage"] == "slots"]
    assert sum(fell[-3:]) < 0.95 * sum(fell[:3])


def test_a_device_may_be_declined(folders, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with present():
        assert FrozenLM.from_pretrained(folders["llama"]).device.type == "cpu"
