"""The loop resumes to the bit, its checkpoints are complete, and losses are what they should be."""

import errno
import json
import math
import signal
from contextlib import nullcontext
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from latentwire.runs.folder import begin_training, check_training
from latentwire.train.batches import shuffled
from latentwire.train.checkpoints import CheckpointError, Checkpoints
from latentwire.train.loop import LoopConfig, Session, train
from latentwire.train.losses import cosine_distance, distillation, moment_error
from latentwire.train.schedules import Schedule

CONFIG = LoopConfig(steps=12, lr=0.1, warmup=2, save_every=5)


def parameters():
    return {"w": torch.ones(3, requires_grad=True), "b": torch.zeros(2, requires_grad=True)}


def quadratic(params, stop_at=None, number=signal.SIGINT):
    def loss(step):
        if step == stop_at:
            signal.raise_signal(number)  # as Ctrl-C in the middle of a step
        target = torch.tensor([float(i) for i in shuffled(7, seed=0, step=step, size=3)])
        return (params["w"] - target).square().sum() + params["b"].square().sum(), {}

    return loss


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").open()]


def step_of(path) -> int:
    with safe_open(str(path), framework="pt") as saved:
        return int(saved.metadata()["step"])


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path):
    straight = parameters()
    train("s", straight, quadratic(straight), CONFIG, tmp_path / "a")
    first = parameters()
    with pytest.raises(KeyboardInterrupt):
        train("s", first, quadratic(first, stop_at=7), CONFIG, tmp_path / "b")
    resumed = parameters()
    train("s", resumed, quadratic(resumed), CONFIG, tmp_path / "b")
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    for name in straight:
        assert torch.equal(straight[name], resumed[name])


@pytest.mark.parametrize("stop_at", [2, 4, 7])  # before, at and after the check that opens it
def test_a_gate_opens_at_the_same_step_after_a_resume(stop_at, tmp_path):
    on = Schedule(0.0, 1.0, over=4.0, gate=("held", "below", 2.0))
    session = Session(check_every=4)  # steps 1, 4, 8 and 12

    def run(folder, stop_at=None):
        params, measured, weights, now = parameters(), [], {}, [0]
        plain = quadratic(params, stop_at)

        def loss(step):
            now[0] = step
            weights[step] = on.at(step, 1, measured)
            value, _ = plain(step)
            return value + weights[step] * params["w"].square().sum(), {}

        def probe():
            return {"held": 1.0 if now[0] == 3 else 9.0}  # below 2 at one check alone

        with pytest.raises(KeyboardInterrupt) if stop_at else nullcontext():
            train(
                "s", params, loss, CONFIG, folder, probe=probe, session=session, measured=measured
            )
        return params, weights

    straight, weights = run(tmp_path / "a")
    assert [weights[s] for s in range(12)] == [0.0] * 5 + [0.25, 0.5, 0.75] + [1.0] * 4
    run(tmp_path / "b", stop_at)
    resumed, _ = run(tmp_path / "b")
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert torch.equal(straight["w"], resumed["w"])


def test_a_checkpoint_of_other_parameters_is_refused(tmp_path):
    params = parameters()
    train("s", params, quadratic(params), CONFIG, tmp_path)
    fewer = {"w": torch.ones(3, requires_grad=True)}
    with pytest.raises(CheckpointError, match=r"left over .*value/b"):
        train("s", fewer, lambda step: (fewer["w"].sum(), {}), CONFIG, tmp_path)
    other = {"w": torch.ones(4, requires_grad=True), "b": torch.zeros(2, requires_grad=True)}
    with pytest.raises(CheckpointError, match=r"w has shape \[3\]; expected \[4\]"):
        train("s", other, lambda step: (other["w"].sum(), {}), CONFIG, tmp_path)


def test_sigterm_ends_the_step_and_keeps_it(tmp_path):
    straight, first, resumed = parameters(), parameters(), parameters()
    train("s", straight, quadratic(straight), CONFIG, tmp_path / "a")
    with pytest.raises(SystemExit) as stop:
        terminated = quadratic(first, stop_at=7, number=signal.SIGTERM)
        train("s", first, terminated, CONFIG, tmp_path / "b")
    assert stop.value.code == 143 and len(losses(tmp_path / "b")) == 8
    train("s", resumed, quadratic(resumed), CONFIG, tmp_path / "b")
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_the_newest_checkpoints_and_the_best_are_kept(tmp_path):
    params, held = parameters(), iter([3.0, 1.0, 2.0, 5.0])

    def probe():
        value = next(held)
        return {"held": value, "held_low": value - 1, "held_high": value + 1, "held_n": 9.0}

    session = Session(check_every=4, keep=3, save_minutes=0.0)  # at every step
    train("s", params, quadratic(params), CONFIG, tmp_path, probe=probe, session=session)
    kept = Checkpoints(tmp_path, "s")
    steps = {path.name: step_of(path) for path in tmp_path.glob("*.safetensors")}
    assert steps == {
        "s.safetensors": 12,
        "s.1.safetensors": 11,
        "s.2.safetensors": 10,
        "s.best.safetensors": 4,
    }
    facts = {"step": 4.0, "held": 1.0, "held_low": 0.0, "held_high": 2.0, "held_n": 9.0}
    assert kept.best() == facts


def test_the_best_check_is_kept_where_the_last_is_worse(tmp_path, capsys):
    at = {1: 3.0, 4: 1.0, 8: 2.0, 12: 5.0}

    def run(folder, held, stop_at=None):
        params, steps = parameters(), iter(held.items())
        probe = lambda: {"held": next(steps)[1]}  # noqa: E731
        with pytest.raises(KeyboardInterrupt) if stop_at else nullcontext():
            loss, session = quadratic(params, stop_at), Session(check_every=4)
            train("s", params, loss, CONFIG, folder, probe=probe, session=session)
        return params

    kept = run(tmp_path / "a", at)
    for name in ("s.best", "s"):  # the parameters of step 4 are kept; the last checkpoint stays
        saved = load_file(tmp_path / "a" / f"{name}.safetensors")["value/w"]
        assert torch.equal(kept["w"], saved) == (name == "s.best")
    assert "s: step 4 is kept, with the lowest held-out loss, 1.0000" in capsys.readouterr().err
    rows = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").open()]
    assert [row.get("kept") for row in rows] == [None] * 11 + [4]
    run(tmp_path / "b", at, stop_at=9)
    for _ in range(2):  # resumed, and once more when it is complete
        assert torch.equal(run(tmp_path / "b", {12: 5.0})["w"], kept["w"])
    (tmp_path / "b" / "s.best.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"s\.best\.safetensors is missing"):
        run(tmp_path / "b", {})
    last = run(tmp_path / "c", {**at, 12: 0.5})
    assert torch.equal(last["w"], load_file(tmp_path / "a" / "s.safetensors")["value/w"])


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, capsys):
    straight, first, resumed = parameters(), parameters(), parameters()
    train("s", straight, quadratic(straight), CONFIG, tmp_path / "a")
    train("s", first, quadratic(first), CONFIG, tmp_path / "b")
    newest, before = tmp_path / "b" / "s.safetensors", tmp_path / "b" / "s.1.safetensors"
    newest.write_bytes(newest.read_bytes()[:-10])
    assert step_of(before) == 10
    train("s", resumed, quadratic(resumed), CONFIG, tmp_path / "b")
    assert "s.safetensors is truncated or damaged; going on from" in capsys.readouterr().err
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert torch.equal(straight["w"], resumed["w"])
    for path in tmp_path.glob("b/s*"):
        path.write_bytes(b"1234567890")
    with pytest.raises(CheckpointError, match=r"and none before it is whole; remove s\*.safetens"):
        train("s", resumed, quadratic(resumed), CONFIG, tmp_path / "b")


@pytest.mark.parametrize("full", ["s.new.safetensors.*.part", "metrics.jsonl"])
def test_a_full_disk_leaves_what_was_there(full, tmp_path, monkeypatch):
    straight, first, resumed = parameters(), parameters(), parameters()
    train("s", straight, quadratic(straight), CONFIG, tmp_path / "a")
    write, opened = Path.write_bytes, Path.open

    def filled(path):
        if fnmatch(path.name, full) and (tmp_path / "b" / "s.safetensors").exists():
            raise OSError(errno.ENOSPC, "No space left on device")

    def write_bytes(path, data):
        write(path, data[:5])
        filled(path)
        return write(path, data)

    def open_(path, mode="r", **options):
        if "a" in mode:
            filled(path)
        return opened(path, mode, **options)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    monkeypatch.setattr(Path, "open", open_)
    with pytest.raises(CheckpointError, match=r"cannot be written \(No space left on device\)"):
        train("s", first, quadratic(first), CONFIG, tmp_path / "b")
    monkeypatch.undo()
    assert step_of(tmp_path / "b" / "s.safetensors") == 5
    train("s", resumed, quadratic(resumed), CONFIG, tmp_path / "b")
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/run cannot be written \(Not a directory\); give"):
        begin_training(tmp_path / "file" / "run", "{}")

    def read_only(path, data):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "write_bytes", read_only)
    with pytest.raises(ValueError, match=r"cannot be written \(Read-only file system\); give"):
        begin_training(tmp_path, "{}")


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    for name in ("a", "b"):
        begin_training(tmp_path / name, f'{{"name": "{name}"}}')
    params = parameters()
    train("s", params, quadratic(params), CONFIG, tmp_path / "a")
    check_training(tmp_path / "a", '{"name": "a"}')
    (tmp_path / "a" / "s.safetensors").rename(tmp_path / "b" / "s.safetensors")
    with pytest.raises(CheckpointError, match="is a checkpoint of another recipe"):
        check_training(tmp_path / "b", '{"name": "b"}')
    with pytest.raises(CheckpointError, match="is a checkpoint of another recipe"):
        train("s", params, quadratic(params), CONFIG, tmp_path / "b")


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path):
    params = parameters()
    with pytest.raises(FloatingPointError, match="loss is nan at step 0"):
        train("s", params, lambda step: (params["w"].sum() * math.nan, {}), CONFIG, tmp_path)
    assert torch.equal(params["w"], torch.ones(3))


def test_running_averages_are_as_they_were_before_a_step_that_failed(tmp_path):
    params = parameters() | {"average": torch.zeros(2)}

    def loss(step):
        params["average"] += 1.0 if step < 2 else math.nan
        return params["w"].sum() * (1.0 if step < 2 else math.nan), {}

    with pytest.raises(FloatingPointError, match="step 2"):
        train("s", params, loss, CONFIG, tmp_path)
    kept = load_file(tmp_path / "s.failed.safetensors")["value/average"]
    assert kept.tolist() == params["average"].tolist() == [2.0, 2.0]


def test_an_epoch_sees_every_item_once():
    seen = [i for step in range(4) for i in shuffled(8, seed=3, step=step, size=2)]
    assert sorted(seen) == list(range(8))
    again = [i for step in range(4, 8) for i in shuffled(8, seed=3, step=step, size=2)]
    assert sorted(again) == list(range(8)) and again != seen


def test_an_order_is_made_once_an_epoch(monkeypatch):
    """Of a million items it takes longer than a step of a small model."""
    made, randperm = [], torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda n, **by: made.append(n) or randperm(n, **by))
    seen = [i for step in range(10) for i in shuffled(1234, 5, step, 200)]
    assert made == [1234, 1234] and sorted(seen[:1234]) == list(range(1234))


def test_distillation_is_kl_from_teacher_to_student():
    teacher = torch.tensor([[math.log(0.75), math.log(0.25)]])
    student = torch.tensor([[math.log(0.5), math.log(0.5)]], requires_grad=True)
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    value = distillation(teacher, student)
    assert value.item() == pytest.approx(expected)
    value.backward()
    # d KL / d logits = softmax(student) - softmax(teacher)
    torch.testing.assert_close(student.grad[0], torch.tensor([-0.25, 0.25]))


def test_distances_of_rows_by_hand():
    target = torch.tensor([[0.0, 0.0], [2.0, 4.0]], requires_grad=True)  # variances 1 and 4
    made = torch.tensor([[1.0, 2.0], [1.0, 2.0]], requires_grad=True)
    apart = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    others = torch.tensor([[0.0, 2.0], [3.0, 3.0]])
    assert cosine_distance(apart, others).item() == pytest.approx(0.5)
    # Means 2 and 4, deviations 1 and 4: (2 ** 2 + 3 ** 2) / 16.
    moments = moment_error(torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [8.0]]))
    assert moments.item() == pytest.approx(13 / 16)
    (cosine_distance(made, target) + moment_error(made, target)).backward()
    assert target.grad is None and made.grad.isfinite().all()


def test_schedules_wait_and_bend():
    late = Schedule(0.0, 2.0, after=3.0)
    assert [late.at(s, 1) for s in range(5)] == [0, 0, 0, 2, 2]
    bent = Schedule(0.0, 1.0, over=4.0, shape="cosine", after=2.0)
    eighth = (1 - math.sqrt(0.5)) / 2  # (1 - cos(pi / 4)) / 2
    expected = [0, 0, 0, eighth, 0.5, 1 - eighth, 1, 1]
    assert [bent.at(s, 1) for s in range(8)] == pytest.approx(expected)
    assert Schedule(0.0, 1.0, after=1.0, unit="epochs").at(10, 10) == 1.0
    falling = Schedule(1.0, 0.3, over=2.0)
    assert (falling.lowest, falling.on) == (0.3, True)
    assert not Schedule(0.0).on and Schedule(0.0, 1.0).on
    for wrong, said in (({"over": -1.0}, "over is -1"), ({"after": 2.0}, "end is None")):
        with pytest.raises(ValueError, match=said):
            Schedule(1.0, **wrong)


def test_a_gate_stays_open():
    gated = Schedule(0.5, gate=("gap", "above", 0.1))
    before, opened = {"step": 1.0, "gap": 0.05}, {"step": 5.0, "gap": 0.2}
    assert gated.at(9, 1, []) == gated.at(9, 1, [before, {"step": 7.0}]) == 0
    assert gated.at(9, 1, [before, opened, {"step": 8.0, "gap": 0.0}]) == 0.5
    assert gated.lowest == 0
    with pytest.raises(ValueError, match=r"told of no checks: remove it"):
        gated.at(0, 1)
    with pytest.raises(ValueError, match=r"waits for 'gap'; checks find held, step: name one"):
        gated.at(9, 1, [{"step": 1.0, "held": 2.0}])


def test_a_gate_closes_again():
    gated = Schedule(0.0, 1.0, over=4.0, gate=("cosine", "above", 0.8, 0.6))
    found = [{"step": s, "cosine": c} for s, c in ((1.0, 0.9), (5.0, 0.7), (9.0, 0.5), (13.0, 0.9))]
    assert [gated.at(8, 1, found[:n]) for n in range(4)] == [0, 1, 1, 0]  # 0.7 is in between
    assert gated.at(15, 1, found) == 0.5  # and its way begins anew
    words = "0 end=1.0 over=4.0 gate=cosine,above,0.8,0.6"
    assert Schedule.parse(words.split()) == gated and gated.words() == words.split()
    for side, closing in (("above", 0.9), ("below", 0.7)):
        with pytest.raises(ValueError, match="to close on the other side of what opens it"):
            Schedule(1.0, gate=("cosine", side, 0.8, closing))


def test_a_schedule_is_read_from_words_and_said_in_them():
    gated = Schedule(0.0, 1.0, 2.0, "epochs", "cosine", 3.0, ("held", "below", 2.5))
    said = "0 end=1.0 over=2.0 unit=epochs shape=cosine after=3.0 gate=held,below,2.5"
    assert Schedule.parse(said.split()) == gated and gated.words() == said.split()
    assert Schedule.parse(["0.5"]) == Schedule(0.5) and Schedule(0.5).words() == ["0.5"]
    for words, wrong in (
        ("", "is no schedule"),
        ("1 ende=3", "argument 'ende'"),
        ("1 end", "expected a number, and after it"),
        ("1 end=1 unit=hours", "hours"),
        ("1 gate=held,under,2", "under"),
    ):
        with pytest.raises(ValueError, match=wrong):
            Schedule.parse(words.split())
