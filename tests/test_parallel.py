"""Processes that Accelerate launches, over gloo, train as one with the joint batch does."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from accelerate import PartialState
from test_alarms import quick  # noqa: F401 (a fixture)
from test_recipes import lm  # noqa: F401 (a fixture)
from tiny import tiny_lm

from latentwire.train import parallel
from latentwire.train.loop import LoopConfig, Session, train
from latentwire.wire.training import WireRecipe, train_wire

PATIENCE = 200.0
"""Seconds."""


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def in_two_processes(target, *arguments) -> list[int | None]:
    return in_processes(2, target, *arguments)


def in_processes(count: int, target, *arguments) -> list[int | None]:
    """Exit codes of target(rank, *arguments) with the environment that a launcher gives. Forked,
    since that takes no time; killed where they wait for each other, which they would for ever."""
    port, fork = free_port(), multiprocessing.get_context("fork")

    def run(rank: int) -> None:
        PartialState._reset_state()  # of the process that this one was forked from
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        target(rank, *arguments)

    processes = [fork.Process(target=run, args=(rank,)) for rank in range(count)]
    for process in processes:
        process.start()
    until = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def assert_sharded(rank: int, shard, whole: torch.Tensor) -> None:
    """Of a matrix, a process has the rows of its half."""
    assert shard.to_local().shape == (whole.shape[0] // 2, whole.shape[1])
    assert torch.equal(shard.to_local(), whole.chunk(2)[rank])


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]


def assert_same_losses(alone, together, steps: int, names: Sequence[str] = ()) -> None:
    """alone: a run folder, or the rows of its log."""
    expected, found = alone if isinstance(alone, list) else rows(alone), rows(together)
    assert len(found) == len(expected) == steps
    for one, two in zip(expected, found, strict=True):
        assert (one["stage"], one["step"]) == (two["stage"], two["step"])
        assert one.get("tokens") == two.get("tokens")
        for name in ("loss", "grad_norm", *(set(names) & set(one))):
            assert abs(one[name] - two[name]) <= 1e-5 * (1 + abs(one[name])), (one, two)


@pytest.fixture
def short(quick) -> WireRecipe:  # noqa: F811
    """A recipe of a few steps."""
    few = LoopConfig(steps=2, lr=0.01, warmup=1)
    return replace(quick, format=few, slots=replace(few, steps=3))


@pytest.fixture(scope="module")
def known() -> list[dict]:
    """What one process logs, as soon as one test has asked for it."""
    return []


@pytest.fixture
def alone(lm, short, known):  # noqa: F811
    """The log of one process. To be asked for after other processes were forked."""

    def log() -> list[dict]:
        known.extend([] if known else rows(train_wire(short)))
        return known

    return log


def test_accelerate_launch_gives_the_losses_of_one_process(lm, short, alone, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("LATENTWIRE_FEATURES", str(tmp_path / "features"))  # of no other test
    reader = tmp_path / "reader"
    lm.model.save_pretrained(reader)
    lm.tokenizer.save_pretrained(reader)
    options = ["--data", short.data, "--wire.reader", str(reader), "--seed", str(short.seed)]
    options += ["--ratios", str(short.wire.ratio)]
    for part in ("wire", "format", "slots"):
        for name, value in vars(getattr(short, part)).items():
            if isinstance(value, bool):
                options.append(f"--{part}.{'' if value else 'no-'}{name}")
            elif name != "reader":
                options += [f"--{part}.{name.replace('_', '-')}", str(value)]
    for name in ("scorer_passages", "questions", "held_out", "batch_size"):
        options += [f"--{name.replace('_', '-')}", str(getattr(short, name))]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    command += ["--num_processes", "2", "--main_process_port", free_port()]
    command += ["-m", "latentwire", "train", "smollm2-4x", *options]
    command += ["--out", str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    # Status 1 is the launcher's for our 3: alarms stand at the end.
    assert done.returncode in (0, 1) and (tmp_path / "two" / "wire").is_dir(), done
    assert done.stderr.count("scorer ") == 1, done  # one process shows its progress
    assert_same_losses(alone(), tmp_path / "two", steps=5, names=("ce", "kl"))


def test_two_machines_give_the_losses_of_one_process(short, alone, tmp_path, capfd):
    """As a launcher on each of them says it: both processes are the first of their machine."""

    def on_its_machine(rank: int) -> None:
        os.environ["LOCAL_RANK"] = "0"
        # That there are two shows where rows cannot be shared; nothing is loaded before.
        with pytest.raises(ValueError, match=r"3 rows a step for 2 process\(es\)"):
            train_wire(replace(short, batch_size=3, out=tmp_path / "no"))
        train_wire(replace(short, out=tmp_path / "two"))
        dist.destroy_process_group()

    assert in_two_processes(on_its_machine) == [0, 0]
    assert not (tmp_path / "no").exists() and capfd.readouterr().err.count("scorer ") == 1
    assert_same_losses(alone(), tmp_path / "two", steps=5, names=("ce", "kl"))


def test_fsdp2_shares_out_the_frozen_weights_and_gives_the_same_losses(lm, short, alone, tmp_path):  # noqa: F811
    joint = replace(short, out=tmp_path / "joint")
    weights = lm.blocks[0].mlp.up_proj.weight.detach().clone()

    def sharded(rank: int) -> None:
        os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
        train_wire(joint, Session(trackers=("tensorboard",)))
        assert_sharded(rank, lm.blocks[0].mlp.up_proj.weight, weights)
        dist.destroy_process_group()

    assert in_two_processes(sharded) == [0, 0]
    assert_same_losses(alone(), joint.out, steps=5, names=("ce", "kl"))
    assert (joint.out / "tensorboard" / "slots").is_dir()


def test_processes_that_accelerate_does_not_know_of_are_refused(tmp_path):
    def by_hand(rank: int) -> None:
        for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
            del os.environ[name]
        where = f"file://{tmp_path}/store"
        dist.init_process_group("gloo", init_method=where, rank=rank, world_size=2)
        dist.barrier()  # one that ends while the other still connects would break its connection
        for call in (parallel.join, parallel.world, lambda: parallel.mean({"loss": float(rank)})):
            with pytest.raises(
                ValueError, match=r"torch\.distributed has 2 processes, Accelerate 1"
            ):
                call()
        dist.destroy_process_group()

    assert in_two_processes(by_hand) == [0, 0]


def test_launches_that_cannot_work_are_refused(monkeypatch):
    PartialState._reset_state()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")  # as accelerate launch --cpu leaves it
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(ValueError, match="starts one process and leaves the others to mpirun"):
        parallel.join()
    monkeypatch.delenv("MASTER_ADDR")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ValueError, match="FSDP 1 is not supported; add --fsdp_version 2"):
        parallel.join()


def test_one_process_shards_nothing(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    whole = tiny_lm("llama")
    assert parallel.sharded(whole) is whole
    assert type(whole.blocks[0].mlp.up_proj.weight) is torch.nn.Parameter


def test_gradients_are_averaged_some_at_a_time(monkeypatch):
    tensors = [torch.zeros(*shape) for shape in ((3, 2), (4,), (2, 9), (1,), (5, 2))]
    for i, tensor in enumerate(tensors[1:]):
        tensor.grad = torch.full_like(tensor, float(i))
    sizes = []

    def halved(flat, kind):
        assert kind == "mean"
        sizes.append(len(flat))
        return flat / 2

    monkeypatch.setattr(parallel, "world", lambda: 2)
    monkeypatch.setattr(parallel, "reduce", halved)
    monkeypatch.setattr(parallel, "BUCKET", 10)
    parallel.average_gradients(tensors)
    assert sizes == [10, 18, 1, 10]
    for tensor, value in zip(tensors, (0, 0, 0.5, 1, 1.5), strict=True):
        assert torch.equal(tensor.grad, torch.full_like(tensor, value))


def trained(folder, rank: int, stop: bool = False) -> torch.Tensor:
    """Six steps on rows that are shared out, from weights that differ by process; the second one is
    told to stop in the third."""
    weight = (torch.arange(4.0) + rank).requires_grad_()

    def loss(step: int):
        if stop and (rank, step) == (1, 2):
            os.kill(os.getpid(), signal.SIGTERM)
        rows = torch.arange(1.0, 5.0)[list(parallel.share(range(4)))]
        return (rows[:, None] * (weight - step).square()).mean(), {}

    train("s", {"w": weight}, loss, LoopConfig(steps=6, lr=0.1, warmup=1), folder)
    return weight.detach()


def test_two_processes_begin_alike_stop_together_and_go_on(tmp_path):
    def one(rank: int, stop: bool) -> None:
        if stop:
            with pytest.raises(SystemExit):
                trained(tmp_path / "two", rank, stop)
        else:
            torch.testing.assert_close(trained(tmp_path / "two", rank), alone, atol=1e-6, rtol=0)

    alone = trained(tmp_path / "one", 0)
    assert in_two_processes(one, True) == [0, 0]
    assert len((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()) == 3
    assert in_two_processes(one, False) == [0, 0]
    assert_same_losses(tmp_path / "one", tmp_path / "two", steps=6)


def test_machines_that_see_different_run_folders_are_refused(tmp_path):
    def one(rank: int) -> None:
        with pytest.raises(ValueError, match="all machines have to see one run folder"):
            trained(tmp_path / str(rank), rank)

    trained(tmp_path / "0", 0)
    assert in_two_processes(one) == [0, 0]
    with pytest.raises(SystemExit):
        trained(tmp_path / "1", 1, stop=True)
    # Six steps, three and none: the middle one is at the mean of all.
    assert in_processes(3, one) == [0, 0, 0]
