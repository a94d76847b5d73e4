"""How a step is computed changes nothing but rounding: in parts, in bfloat16, with blocks run again
for the gradient. And its numbers arrive where they are tracked."""

import json
import sqlite3
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_alarms import quick  # noqa: F401 (a fixture)
from test_recipes import lm  # noqa: F401 (a fixture)
from tiny import CONFIGS, tiny_lm

from latentwire.lm import Patch, Prompt, gradient_checkpointing
from latentwire.lm.adapters import lora_config
from latentwire.tasks.qa import by_context, load_questions
from latentwire.train import parallel
from latentwire.train.loop import LoopConfig, Session, train
from latentwire.wire import training as recipes
from latentwire.wire.training import train_wire
from latentwire.wire.wire import Wire, WireConfig


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]


def losses(folder, stage="slots") -> list[float]:
    return [row["loss"] for row in rows(folder) if row["stage"] == stage]


def test_a_step_in_parts_is_the_joint_one(lm, quick, tmp_path):  # noqa: F811
    whole = train_wire(quick)
    parts = train_wire(replace(quick, out=tmp_path / "parts"), Session(gradient_accumulation=2))
    assert len(rows(whole)) == len(rows(parts)) == 7
    for one, two in zip(rows(whole), rows(parts), strict=True):
        assert one["tokens"] == two["tokens"]
        for name in ("loss", "grad_norm", *(("ce", "kl") if one["stage"] == "slots" else ())):
            assert two[name] == pytest.approx(one[name], rel=1e-5, abs=1e-5)


def test_rows_that_cannot_be_parted_are_refused_before_any_compute(quick, monkeypatch):  # noqa: F811
    monkeypatch.setattr(recipes, "FrozenLM", None)
    with pytest.raises(ValueError, match=r"2 rows a step .* expected a multiple of 3"):
        train_wire(quick, Session(gradient_accumulation=3))
    with parallel.part(1, 2):
        assert parallel.share([0, 1, 2, 3]) == [1, 3]


def test_bfloat16_lowers_the_loss_and_leaves_weights_float32(lm, quick, tmp_path):  # noqa: F811
    long = replace(quick, slots=LoopConfig(steps=20, lr=0.02, warmup=2))
    full = train_wire(long)
    half = train_wire(replace(long, out=tmp_path / "half"), Session(mixed_precision="bf16"))
    assert sum(losses(half)[-4:]) < 0.9 * sum(losses(half)[:4])
    # Eight bits of mantissa: near to float32's and not it.
    assert losses(half)[0] == pytest.approx(losses(full)[0], rel=0.02)
    assert losses(half)[0] != losses(full)[0]
    kept = load_file(half / "slots.safetensors")
    assert kept and {tensor.dtype for tensor in kept.values()} == {torch.float32}


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_checkpointed_gradients_are_the_same(family, quick):  # noqa: F811
    lm = tiny_lm(family)  # noqa: F811
    wire = Wire(lm, WireConfig(f"tiny-{family}", ratio=2, window=64, rank=4, format_tokens=3))
    torch.nn.init.normal_(wire.slots.up, std=0.1, generator=torch.Generator().manual_seed(0))
    passages, runs = by_context(load_questions(quick.data)), []
    lm.blocks[1].register_forward_pre_hook(lambda *_: runs.append("hook"))
    counted = lm.blocks[1].mlp.register_forward_pre_hook(lambda *_: runs.append("run"))

    def gradients(checkpointed: bool):
        wire.zero_grad()
        runs.clear()
        with gradient_checkpointing(checkpointed):
            parts = recipes.slots_losses(wire, recipes.batch_of(lm, passages, quick, 0))
        first = len(runs)
        (parts["ce"] + parts["kl"]).backward()
        again = runs[first:]
        return [p.grad.clone() for p in wire.parameters() if p.grad is not None], again

    plain, none = gradients(False)
    checkpointed, again = gradients(True)
    counted.remove()
    assert none == [] and again == ["run"] * 2  # soft prompt, questions; hooks are not run again
    assert len(plain) == 3
    for one, two in zip(plain, checkpointed, strict=True):
        assert one.abs().max() > 0 and torch.equal(one, two)
    assert not any("forward" in vars(block) for block in lm.blocks)


def test_checkpointed_blocks_run_again_with_their_adapter_and_patches():
    base = tiny_lm("llama")
    view = base.add_lora("a", lora_config(base.model.config, 2, 3))
    parameters = view.adapter_parameters()
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in parameters.values():
            tensor.normal_(std=0.1, generator=draws)
    vector = torch.randn(1, 1, 32, generator=draws)
    targets = torch.tensor([[5, 6, 7]])

    def gradients(checkpointed: bool):
        patched = vector.clone().requires_grad_()
        patch = Patch(1, torch.tensor([[2]]), patched)
        prompt = replace(Prompt.from_ids(base, [base.tokenize("hello")]), patches=(patch,))
        with gradient_checkpointing(checkpointed):
            value = view.score(prompt, targets).sum() + base.score(prompt, targets).sum()
        return torch.autograd.grad(value, [patched, *parameters.values()])

    for one, two in zip(gradients(False), gradients(True), strict=True):
        assert one.abs().max() > 0 and torch.equal(one, two)


def test_tensorboard_has_every_number_once(tmp_path):
    def stage(until):
        weight = torch.ones(3, requires_grad=True)

        def loss(step):
            if step == until:
                raise OSError  # as a kill: steps after the last checkpoint were sent
            return weight.square().sum() * (1 + step), {"extra": 2.0 * step}

        config = LoopConfig(steps=6, lr=0.1, warmup=1, save_every=2)
        train("s", {"w": weight}, loss, config, tmp_path, session=session)

    session = Session(trackers=("tensorboard",))
    with pytest.raises(OSError):
        stage(until=5)
    stage(until=None)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "s" / "latentwire")).Reload()
    for name in ("loss", "extra", "grad_norm"):
        sent = [(e.step, e.value) for e in events.Scalars(name)]
        assert sent == [(row["step"], pytest.approx(row[name])) for row in rows(tmp_path)]
    assert len(rows(tmp_path)) == 6


def test_wandb_and_trackio_have_every_number_of_runs_that_share_a_name(tmp_path, monkeypatch):
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "TRACKIO_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("WANDB_MODE", "offline")
    import wandb  # here, since both read the environment when they are imported

    sent, log = [], wandb.Run.log
    monkeypatch.setattr(
        wandb.Run,
        "log",
        lambda run, row, step: sent.append((run.id, step, row)) or log(run, row, step=step),
    )
    logged = []
    for folder in (tmp_path / "a" / "run", tmp_path / "b" / "run"):
        weight, config = torch.ones(3, requires_grad=True), LoopConfig(steps=2, lr=0.1, warmup=1)
        session = Session(trackers=("wandb", "trackio"))
        train(
            "s",
            {"w": weight},
            lambda _, w=weight: (w.square().sum(), {}),
            config,
            folder,
            session=session,
        )
        own = (folder / "tracked").read_text()
        assert list((folder / "wandb").glob(f"offline-run-*-s-{own}/*.wandb"))
        for row in rows(folder):
            numbers = {n: v for n, v in row.items() if isinstance(v, float)}
            logged.append((own, row["step"], numbers))
    assert sent == [(f"s-{own}", step, row) for own, step, row in logged]
    with sqlite3.connect(tmp_path / "TRACKIO_DIR" / "latentwire.db") as database:
        kept = database.execute(
            "select run_name, step, metrics from metrics order by id"
        ).fetchall()
    assert [(name, step, json.loads(row)) for name, step, row in kept] == [
        (f"run-s-{own}", step, row) for own, step, row in logged
    ]
    assert len({own for own, *_ in logged}) == 2 and "loss" in logged[0][2]


def test_a_tracker_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setattr("latentwire.train.trackers.get_available_trackers", list)
    with pytest.raises(ValueError, match=r"wandb is not installed: pip install wandb"):
        Session(trackers=("wandb",))


def test_what_accelerate_launch_says_of_precision_counts(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert Session().mixed_precision == "bf16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ValueError, match="mixed_precision is fp16; expected no or bf16"):
        Session()
