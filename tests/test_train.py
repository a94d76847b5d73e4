"""The loop resumes to the bit, its checkpoints are complete, and losses are what they should be."""

import json
import math
import signal

import pytest
import torch

from latentwire.train.loop import CheckpointError, LoopConfig, shuffled, train
from latentwire.train.losses import answer_loss, distillation

CONFIG = LoopConfig(steps=12, lr=0.1, warmup=2, save_every=5)


def parameters():
    return {"w": torch.ones(3, requires_grad=True), "b": torch.zeros(2, requires_grad=True)}


def quadratic(params, stop_at=None):
    def loss(step):
        if step == stop_at:
            signal.raise_signal(signal.SIGINT)  # as Ctrl-C in the middle of a step
        target = torch.tensor([float(i) for i in shuffled(7, seed=0, step=step, size=3)])
        return (params["w"] - target).square().sum() + params["b"].square().sum(), {}

    return loss


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").open()]


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


def test_a_checkpoint_of_other_parameters_is_refused(tmp_path):
    params = parameters()
    train("s", params, quadratic(params), CONFIG, tmp_path)
    fewer = {"w": torch.ones(3, requires_grad=True)}
    with pytest.raises(CheckpointError, match=r"left over .*value/b"):
        train("s", fewer, lambda step: (fewer["w"].sum(), {}), CONFIG, tmp_path)
    other = {"w": torch.ones(4, requires_grad=True), "b": torch.zeros(2, requires_grad=True)}
    with pytest.raises(CheckpointError, match=r"w has shape \[3\]; expected \[4\]"):
        train("s", other, lambda step: (other["w"].sum(), {}), CONFIG, tmp_path)


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path):
    params = parameters()
    with pytest.raises(FloatingPointError, match="loss is nan at step 0"):
        train("s", params, lambda step: (params["w"].sum() * math.nan, {}), CONFIG, tmp_path)
    assert torch.equal(params["w"], torch.ones(3))


def test_an_epoch_sees_every_item_once():
    seen = [i for step in range(4) for i in shuffled(8, seed=3, step=step, size=2)]
    assert sorted(seen) == list(range(8))
    again = [i for step in range(4, 8) for i in shuffled(8, seed=3, step=step, size=2)]
    assert sorted(again) == list(range(8)) and again != seen


def test_answer_loss_by_hand():
    log_probs = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]])
    mask = torch.tensor([[True, True], [True, False]])
    assert answer_loss(log_probs, mask).item() == pytest.approx(2.0)


def test_distillation_is_kl_from_teacher_to_student():
    teacher = torch.tensor([[[math.log(0.75), math.log(0.25)]]])
    student = torch.tensor([[[math.log(0.5), math.log(0.5)]]], requires_grad=True)
    mask = torch.tensor([[True]])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    value = distillation(teacher, student, mask)
    assert value.item() == pytest.approx(expected)
    value.backward()
    # d KL / d logits = softmax(student) - softmax(teacher)
    torch.testing.assert_close(student.grad[0, 0], torch.tensor([-0.25, 0.25]))
