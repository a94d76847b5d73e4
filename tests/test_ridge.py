"""Ridge regression: where it sums, and that a CPU's sums stay as they are. What it solves is tested
with what is fitted by it (test_wire.py, test_lens.py)."""

import pytest
import torch

from latentwire.ridge import Ridge


def test_sums_and_maps_lie_where_the_rows_do():
    ridge = Ridge(2, 3, 1)
    for rows in (5, 4):  # of a device that, like a GPU, is not the CPU
        ridge.add(torch.empty(2, rows, 3, device="meta"), torch.empty(2, rows, 1, device="meta"))
    weight, bias = ridge.solve()
    assert (weight.device.type, weight.shape) == ("meta", (2, 3, 1))
    assert (bias.device.type, bias.shape) == ("meta", (2, 1))
    assert ridge.gram.dtype == ridge.moment.dtype == torch.float64


@pytest.mark.parametrize(("n", "features", "targets"), [(4, 65, 3), (1, 40, 90)])
def test_a_cpu_fits_the_same_to_the_last_bit_as_ever(n, features, targets):
    generator = torch.Generator().manual_seed(0)
    ridge, gram, moment = Ridge(n, features, targets), 0.0, 0.0
    for rows in (50, 33):
        x = torch.randn(n, rows, features, generator=generator)
        y = torch.randn(n, rows, targets, generator=generator)
        ridge.add(x, y)
        given = torch.cat([x.double(), torch.ones(n, rows, 1, dtype=torch.float64)], -1)
        gram = gram + given.transpose(1, 2) @ given
        moment = moment + given.transpose(1, 2) @ y.double()
    unit = 1e-3 * 83 * torch.eye(features + 1, dtype=torch.float64)
    expected = [torch.linalg.solve(g + unit, m) for g, m in zip(gram, moment, strict=True)]
    weight, bias = ridge.solve()
    assert torch.equal(torch.cat([weight, bias[:, None]], 1), torch.stack(expected).float())
