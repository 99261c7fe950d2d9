"""PAMS's equations: closed-form gradients against autograd and finite differences, grids, knowledge transfer."""

import pytest
import torch
from torch import Tensor

from lab.pams import equations as eq
from lab.pams.layers import Quantiser

X = torch.randn(4000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
ALPHA = torch.tensor([1.3], dtype=torch.float64)
each_bits = pytest.mark.parametrize("b", [8, 4, 2])
each_grid = pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])


def straight_through(x: Tensor, alpha: Tensor, n: int, signed: bool) -> Tensor:
    """The quantiser as the release computes it: clamp by max and min, round passed straight through."""
    low = -alpha if signed else torch.zeros_like(alpha)
    c = torch.minimum(torch.maximum(x, low), alpha)
    codes = c * (n / alpha)
    return (codes + (codes.round() - codes).detach()) * (alpha / n)


@each_bits
@each_grid
def test_the_closed_form_gradients_are_those_of_autograd(b, signed):
    n = eq.levels(b, signed)
    x, alpha = X.clone().requires_grad_(), ALPHA.clone().requires_grad_()
    weight = torch.randn(len(X), dtype=X.dtype, generator=torch.Generator().manual_seed(1))
    wanted = torch.autograd.grad((straight_through(x, alpha, n, signed) * weight).sum(), (x, alpha))
    given = weight * eq.gradient_x(X, ALPHA, signed), (weight * eq.gradient_alpha(X, ALPHA, n, signed)).sum()
    torch.testing.assert_close(given[0], wanted[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(given[1], wanted[1][0], atol=1e-9, rtol=1e-12)


@each_bits
@each_grid
def test_the_gradient_of_alpha_is_a_finite_difference_with_codes_held(b, signed):
    """d(round(c n / alpha) alpha / n)/dalpha with the rounding's residual held, as straight-through means it."""
    n, h = eq.levels(b, signed), 1e-6
    held = (eq.quantise(X, ALPHA, n, signed) * n / ALPHA) - torch.minimum(
        torch.maximum(X, -ALPHA if signed else torch.zeros(1, dtype=X.dtype)), ALPHA
    ) * n / ALPHA

    def passed(alpha: Tensor) -> Tensor:
        c = torch.minimum(torch.maximum(X, -alpha if signed else torch.zeros_like(alpha)), alpha)
        return (c * n / alpha + held) * alpha / n

    difference = (passed(ALPHA + h) - passed(ALPHA - h)) / (2 * h)
    torch.testing.assert_close(eq.gradient_alpha(X, ALPHA, n, signed), difference, atol=1e-6, rtol=0)


@each_bits
@each_grid
def test_the_layer_has_these_gradients(b, signed):
    q = Quantiser(b, signed).double()
    q.alpha.data.copy_(ALPHA)
    x = X.clone().requires_grad_()
    q(x).sum().backward()
    torch.testing.assert_close(x.grad, eq.gradient_x(X, ALPHA, signed))
    torch.testing.assert_close(q.alpha.grad[0], eq.gradient_alpha(X, ALPHA, q.n, signed).sum())


def test_at_two_bits_a_gradient_of_zero_inside_has_another_sign():
    """The control: what tells PAMS from PACT, on values mostly inside the range."""
    x = 0.45 * X
    ours = eq.gradient_alpha(x, ALPHA, eq.levels(2)) * x.sign()
    pact = torch.where(x.abs() >= ALPHA, 1.0, 0.0)
    assert float(ours.sum()) < 0 < float(pact.sum())


def test_a_value_at_the_end_of_the_range_has_half_a_gradient():
    ends = torch.tensor([-1.3, 1.3, 0.5, 2.0], dtype=X.dtype)
    assert eq.gradient_x(ends, ALPHA).tolist() == [0.5, 0.5, 1.0, 0.0]


def test_alpha_has_the_whole_gradient_of_a_value_at_the_end_of_the_range():
    ends = torch.tensor([-1.3, 0.0, 1.3], dtype=X.dtype)
    assert eq.gradient_alpha(ends, ALPHA, 127).tolist() == [-1, 0, 1]
    assert eq.gradient_alpha(ends, ALPHA, 255, signed=False).tolist() == [0, 0, 1]


def test_a_small_alpha_clamps_small_values_to_their_own_side():
    x = torch.tensor([-0.7, 0.7])
    assert eq.gradient_alpha(x, torch.tensor([0.5]), 127).tolist() == [-1, 1]


@each_grid
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gradients_are_as_precise_as_the_values(dtype, signed):
    x, alpha = X.to(dtype), ALPHA.to(dtype)
    assert eq.gradient_x(x, alpha, signed).dtype == eq.gradient_alpha(x, alpha, 15, signed).dtype == dtype


@pytest.mark.parametrize("b", [8, 6, 4, 3, 2])
@each_grid
def test_a_grid_is_narrow_idempotent_and_no_finer_than_its_bits(b, signed):
    n = eq.levels(b, signed)
    once = eq.quantise(X, ALPHA, n, signed)
    codes = (once * n / ALPHA).round()
    assert len(codes.unique()) <= (2 * n + 1 if signed else 2**b)
    assert codes.min() == (-n if signed else 0) and codes.max() == n
    torch.testing.assert_close(eq.quantise(once, ALPHA, n, signed), once, atol=1e-15, rtol=0)
    inside = (X.abs() < ALPHA) if signed else (X < ALPHA) & (X > 0)
    assert (once - X)[inside].abs().max() <= ALPHA / n / 2 + 1e-12


def test_levels():
    assert [eq.levels(b) for b in (8, 4, 2)] == [127, 7, 1] and eq.levels(4, signed=False) == 15


def test_unclamped_values_keep_their_size():
    x = torch.tensor([2.6, -5.2], dtype=X.dtype)
    assert eq.quantise_unclamped(x, ALPHA, 127).tolist() == pytest.approx([2.6, -5.2])
    assert eq.quantise(x, ALPHA, 127).tolist() == pytest.approx([1.3, -1.3])


def test_a_weight_reaches_both_ends_and_passes_its_gradient():
    W = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for per_channel in (False, True):
        codes = (eq.quantise_weight(W, 7, per_channel) / eq.weight_scale(W, 7, per_channel)).round()
        largest = codes.abs().flatten(1).amax(1)
        assert codes.abs().max() == 7 and bool((largest == 7).all()) == per_channel
    (grad,) = torch.autograd.grad(eq.quantise_weight(W, 7).sum(), W)
    assert torch.equal(grad, torch.ones_like(W))


def test_a_weight_on_its_grid_by_hand():
    W = torch.tensor([[1.0, -0.3], [0.2, 0.5]], dtype=torch.float64)
    assert eq.weight_scale(W, 2).tolist() == [[pytest.approx((1 + 1e-8) / 2, rel=1e-12)]]  # one step for all channels
    assert eq.quantise_weight(W, 2).flatten().tolist() == pytest.approx([1, -0.5, 0, 0.5])
    assert eq.quantise_weight(W, 2, per_channel=True).flatten().tolist() == pytest.approx([1, -0.5, 0.25, 0.5])
    assert eq.quantise_weight(torch.zeros(1, 1), 7).tolist() == [[0]]  # a weight of zeros has a step too


def test_the_statistic_is_a_mean_over_pictures():
    x = torch.tensor([[1.0, -3.0], [2.0, 0.0]]).view(2, 1, 1, 2)
    assert float(eq.statistic(x)) == 2.5


@pytest.mark.parametrize("decay", [0.5, 0.9997])
def test_the_moving_average_weighs_each_batch_less_than_the_next(decay):
    """From the second batch on, and whatever alpha was before: sum of decay^age M over sum of decay^age."""
    alpha, given = torch.tensor(10.0, dtype=torch.float64), [1.0, 2.0, 6.0, 3.0]
    for seen, M in enumerate(given):
        alpha = eq.moving_average(alpha, torch.tensor(M, dtype=torch.float64), seen, decay)
        weights = [decay**age for age in range(seen, -1, -1)]
        wanted = sum(w * m for w, m in zip(weights, given[: seen + 1], strict=True)) / sum(weights)
        assert float(alpha) == pytest.approx(wanted, rel=1e-9)
    assert float(alpha) != pytest.approx(3.0, rel=1e-6)  # no plain mean
    assert float(eq.moving_average(torch.tensor(1.0), torch.tensor(2.0), 10**6)) == pytest.approx(1.0003)


def test_knowledge_transfer_is_nought_for_equals_and_two_over_hw_for_strangers():
    left, right = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4, 5)
    left[:, :, 0, 0], right[:, :, 3, 4] = 1.0, -2.0
    assert float(eq.knowledge_transfer(left, left)) == 0
    assert float(eq.knowledge_transfer(left, right)) == pytest.approx(2 / 20)
    between = float(eq.knowledge_transfer(torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5)))
    assert 0 < between < 2 / 20


def test_the_spatial_map_does_not_see_scale_or_sign():
    F = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(eq.spatial_map(F), eq.spatial_map(-7 * F))
    torch.testing.assert_close(eq.spatial_map(F), eq.spatial_map(1e-3 * F))
    torch.testing.assert_close(eq.spatial_map(F).norm(dim=1), torch.ones(2))


def test_pixels_are_compared_on_the_scale_of_255():
    assert float(eq.pixel_loss(torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.2))) == pytest.approx(51)
    assert float(eq.pixel_loss(torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 51.0), 255)) == pytest.approx(51)
    assert float(eq.pixel_loss(torch.full((1, 3, 2, 2), 0.5), torch.full((1, 3, 2, 2), 0.3))) == pytest.approx(51)


def test_a_quantised_parameter_is_b_thirty_seconds_of_one():
    assert eq.equivalent_parameters(100, 80, 8) == 20 + 80 / 4


def test_bit_operations_are_multiply_adds_by_both_widths():
    assert eq.bit_operations([(10, 8, 4), (3, 2, 5)]) == 10 * 8 * 4 + 3 * 2 * 5
