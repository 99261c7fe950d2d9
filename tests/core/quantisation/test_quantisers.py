"""Other papers' quantisers: their grids, what they learn, and how their gradients differ."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from lab.core.quantisation import quantisers as q
from lab.core.quantisation.qparams import FixedQuantiser, QParams

X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
ACTIVATIONS = [q.MaxAbs, q.LeastSquares, q.PACT, q.LSQ]
each = pytest.mark.parametrize("kind", ACTIVATIONS, ids=lambda kind: kind.__name__)


def calibrated(kind, bits=4, signed=True, x=X):
    made = kind(bits, signed)
    made.calibrating = True
    made(x)
    made.calibrating = False
    return made


@each
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_a_tensor_is_on_its_grid(kind, bits, signed):
    made = calibrated(kind, bits, signed, X if signed else X.relu())
    y = made(X).detach()
    codes = y * made.n / made.alpha.detach()
    assert torch.allclose(codes, codes.round(), atol=1e-3) and len(codes.round().unique()) <= 2**bits
    assert y.min() >= (-made.alpha if signed else 0) - 1e-6


@each
def test_calibration_rounds_nothing_and_happens_in_training_only(kind):
    made = kind(4)
    made.calibrating = True
    assert torch.equal(made(X), X)
    before = made.alpha.clone()
    made.eval()(2 * X)
    assert torch.equal(made.alpha, before)


def test_the_range_of_max_abs_is_a_mean_of_pictures_and_is_not_learned():
    made = calibrated(q.MaxAbs)
    assert float(made.alpha) == pytest.approx(float(X.abs().flatten(1).amax(1).mean()))
    made(X.clone().requires_grad_()).sum().backward()
    assert made.alpha.grad is None


def test_least_squares_leaves_a_smaller_error_than_the_maximum():
    errors = [float((calibrated(kind, 3)(X) - X).square().mean()) for kind in (q.LeastSquares, q.MaxAbs)]
    assert errors[0] < errors[1]


def test_pact_has_no_gradient_inside_and_lsq_has():
    inside = 0.3 * X.clamp(-1, 1)
    grads = {}
    for kind in (q.PACT, q.LSQ):
        made = kind(4)
        made(inside).sum().backward()
        grads[kind] = float(made.alpha.grad)
    assert grads[q.PACT] == 0 and grads[q.LSQ] != 0
    made = q.PACT(4)
    made(torch.full((1, 1, 1, 1), 5.0)).sum().backward()
    assert float(made.alpha.grad) == 1


def test_lsq_scales_its_gradient():
    made, x = q.LSQ(4), torch.full((2, 1, 3, 3), 5.0)
    made(x).sum().backward()
    assert float(made.alpha.grad) == pytest.approx(18 / (9 * 7) ** 0.5)


@pytest.mark.parametrize(
    "make",
    [lambda W: q.MaxAbsWeight(4), lambda W: q.DoReFaWeight(4, W), lambda W: q.LSQWeight(4, W)],
    ids=["max-abs", "DoReFa", "LSQ"],
)
def test_a_weight_has_few_values_and_can_be_trained(make):
    conv = nn.Conv2d(3, 8, 3)
    before = conv.weight.detach().clone()
    parametrize.register_parametrization(conv, "weight", make(conv.weight))
    assert len(conv.weight.unique()) <= 16
    assert (conv.weight - before).abs().mean() < before.abs().mean() / 3
    conv(X).square().sum().backward()
    assert conv.parametrizations.weight.original.grad.abs().sum() > 0


RANGES = st.tuples(st.floats(-50, 0), st.floats(0.01, 50)), st.integers(2, 8)


@settings(deadline=None)
@given(*RANGES, st.integers(0, 999))
def test_what_is_on_a_grid_stays_there(ends, bits, number):
    grid = FixedQuantiser(QParams.from_min_max(*ends, bits)).eval()
    x = 40 * torch.randn(50, generator=torch.Generator().manual_seed(number))
    y = grid(x)
    assert torch.equal(grid(y), y)
    assert torch.equal(grid(x.flip(0)), y.flip(0))
    assert torch.equal(grid(x.sort().values), y.sort().values)  # no two numbers change places


@settings(deadline=None)
@given(*RANGES)
def test_a_grid_holds_zero_and_its_range(ends, bits):
    grid = QParams.from_min_max(*ends, bits)
    assert grid.qmin <= 0 <= grid.qmax and grid.bits == bits
    assert grid.range[0] <= ends[0] + grid.scale and grid.range[1] >= ends[1] - grid.scale
    assert grid.to_8bit().to_8bit() == grid.to_8bit()
    assert grid.to_int8().to_int8() == grid.to_int8()
