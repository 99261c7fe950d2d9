"""Trained strategies: each has a grid that holds its values, learns its range, and can be kept."""

import pytest
import torch

from lab.core.quantisation import quantisers as core
from lab.dqss import quantisers as q

X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
KINDS = [q.DoReFa, core.PACT, core.LSQ, q.LSQPlus, q.DSQ, q.TQT, core.RangeQuantiser]


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_values_lie_on_the_grid_that_it_names(kind, signed):
    made, x = kind(4, signed), X if signed else X.relu()
    made.calibrating = True
    made(x)
    made.calibrating = False
    qparams, y = made.qparams(), made(x).detach()
    codes = y / qparams.scale
    assert torch.allclose(codes, codes.round(), atol=1e-3)
    assert qparams.qmin <= codes.round().min() and codes.round().max() <= qparams.qmax and qparams.bits <= 4
    assert torch.equal(y == 0, codes.round() == 0)  # 0 is a code


def test_a_power_of_two_and_a_range_that_is_fixed():
    tqt, fixed = q.TQT(4), q.DoReFa(4)
    for made in (tqt, fixed):
        made.calibrating = True
        made(X)
    assert float(tqt.max_value().detach().log2()) % 1 == 0 and float(fixed.max_value()) == 1
    assert not fixed.alpha.requires_grad


def test_the_gradient_of_a_learned_range_is_that_of_pams():
    from lab.pams import equations as eq

    made, x = core.RangeQuantiser(3), X.clone()
    made(x).sum().backward()
    alpha = torch.ones(1)
    torch.testing.assert_close(made.alpha.grad[0], eq.gradient_alpha(x, alpha, 3).sum(), atol=1e-3, rtol=1e-4)


def test_a_tanh_staircase_has_a_mean_slope_of_one():
    x = torch.linspace(0, 4, 4001).requires_grad_()
    y = q.soft_rounded(x)
    y.sum().backward()
    assert torch.equal(y.detach(), x.detach().round()) and float(x.grad[:-1].mean()) == pytest.approx(1, abs=0.01)
    assert float(x.grad[500]) > 2 * float(x.grad[10])  # steepest between two codes


@pytest.mark.parametrize(
    "make",
    [
        lambda W: core.DoReFaWeight(4, W, zero=True),
        lambda W: q.LSQPlusWeight(4, W),
        lambda W: q.RangeWeight(q.DSQ, 4, W),
        lambda W: q.RangeWeight(q.TQT, 4, W),
        lambda W: core.MaxAbsWeight(4),
        lambda W: core.LSQWeight(4, W),
    ],
)
def test_a_weight_is_integer_multiples_of_its_step(make):
    W = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    made = make(W)
    codes = made(W).detach() / made.step_of(W)
    assert torch.allclose(codes, codes.round(), atol=1e-3) and codes.abs().max() <= 7.001
