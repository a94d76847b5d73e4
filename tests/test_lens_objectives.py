"""Each objective against a value worked by hand."""

import math

import pytest
import torch

from latentwire.evals.metrics import explained
from latentwire.lens.objectives import (
    group_advantages,
    k3,
    next_token_kl,
    policy_gradient,
    scaled_mse,
    warm_start,
)
from latentwire.train.schedules import Schedule

P, Q = [0.75, 0.25], [0.5, 0.5]
KL_PQ = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
KL_QP = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(2.0)
MASK = torch.tensor([[True, True], [True, False]])


def logits(*rows):
    return torch.tensor(rows).log().requires_grad_()


def test_scaled_mse():
    made, true = torch.tensor([[3.0, 4.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.0], [1.0, 3.0]])
    assert scaled_mse(made, true, 2.0).tolist() == [6.25, 1.0]


def test_next_token_kl_is_from_the_original_to_the_swapped():
    original, swapped = logits(P), logits(Q)
    value = next_token_kl(original, swapped)
    assert value.item() == pytest.approx(KL_PQ)
    assert value.item() != pytest.approx(KL_QP)
    value.sum().backward()
    assert original.grad is None
    torch.testing.assert_close(swapped.grad, torch.tensor([[-0.25, 0.25]]))


def test_warm_start_is_nats_per_token():
    log_probs = torch.tensor([[-1.0, -2.0], [-3.0, -9.0]])
    assert warm_start(log_probs, MASK).tolist() == [1.5, 3.0]


def test_group_advantages_are_in_standard_deviations_of_the_group():
    rewards = torch.tensor([[1.0, 3.0], [5.0, 5.0]])
    expected = torch.tensor([[-1.0, 1.0], [0.0, 0.0]])
    torch.testing.assert_close(group_advantages(rewards), expected, atol=1e-5, rtol=0)


def test_policy_gradient_raises_what_was_better_than_its_group():
    log_probs = torch.tensor([[-1.0, -2.0], [-3.0, -9.0]], requires_grad=True)
    value = policy_gradient(log_probs, torch.tensor([2.0, -1.0]), MASK)
    assert value.tolist() == [-2.0, 1.0]
    value.sum().backward()
    assert log_probs.grad.tolist() == [[-1.0, -1.0], [1.0, 0.0]]


def test_k3_is_zero_where_nothing_changed_and_unbiased():
    log_probs = torch.tensor([[-1.0, -2.0], [-3.0, -9.0]], requires_grad=True)
    assert k3(log_probs, log_probs, MASK).tolist() == [0.0, 0.0]
    reference = torch.tensor([[-1.5, -2.0], [-2.0, 0.0]])
    expected = [(math.exp(-0.5) + 0.5 - 1) / 2, math.exp(1.0) - 1 - 1]
    assert k3(log_probs, reference, MASK).tolist() == pytest.approx(expected)
    # Its mean over the policy's own samples is the KL from policy to reference.
    p, q = torch.tensor(P), torch.tensor(Q)
    each = k3(p.log()[:, None], q.log()[:, None], torch.ones(2, 1, dtype=torch.bool))
    assert (p * each).sum().item() == pytest.approx(KL_PQ)


def test_explained_variance_is_against_the_training_mean():
    # A lens that says the constant 10 where the training mean was 0: it explains nothing of what
    # varies, and variance against the mean of these vectors themselves would hide that.
    vectors = [9.0, 11.0]
    errors, distances = [(v - 10) ** 2 for v in vectors], [v**2 for v in vectors]
    fve, low, high = explained(errors, distances, ["a", "b"])
    assert fve == pytest.approx(1 - 2 / 202)
    assert low == pytest.approx(1 - 1 / 81) and high == pytest.approx(1 - 1 / 121)
    assert explained([4.0, 4.0], [4.0, 4.0], [0, 1]) == (0.0, 0.0, 0.0)
    assert explained([8.0, 8.0], [4.0, 4.0], [0, 1])[0] == -1.0


def test_schedules_run_in_steps_or_epochs():
    line = Schedule(2.0, 1.0, over=10.0)
    assert [line.at(s, 100) for s in (0, 5, 10, 99)] == [2.0, 1.5, 1.0, 1.0]
    assert Schedule(2.0, 1.0, over=2.0, unit="epochs").at(100, 100) == 1.5
    assert Schedule(2.0).at(7, 100) == 2.0
    assert Schedule(2.0, 1.0).at(0, 100) == 1.0
