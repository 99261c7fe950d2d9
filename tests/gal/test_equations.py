"""Each of GAL's equations against what its definition says."""

import math

import pytest
import torch
from torch.nn import functional as F

from lab.gal import equations as eq


def test_a_mask_scales_channels_or_the_whole():
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(eq.masked(x, torch.tensor([1.0, 0.0, 2.0]))[:, 2], 2 * x[:, 2])
    assert torch.equal(eq.masked(x, torch.tensor([0.5])), 0.5 * x)
    assert torch.equal(eq.masked(x[:, :, 0, 0], torch.tensor([1.0, 0.0, 1.0]))[:, 1], torch.zeros(2))


def test_the_adversarial_value_is_the_log_likelihood_of_telling_apart():
    d_b, d_g = torch.tensor([[1.0], [3.0]]), torch.tensor([[-2.0], [0.5]])
    by_hand = torch.log(torch.sigmoid(d_b)).mean() + torch.log(1 - torch.sigmoid(d_g)).mean()
    assert eq.adversarial_value(d_b, d_g).item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_losses_by_hand():
    assert eq.data_loss(torch.zeros(2, 2), torch.tensor([[1.0, 2.0], [0.0, 1.0]])).item() == pytest.approx(6 / 4)
    assert eq.sparsity(torch.tensor([1.0, 0.5]), 0.2).item() == pytest.approx(0.3)
    assert eq.regulariser_l1([torch.tensor([-1.0, 2.0]), torch.tensor([3.0])]).item() == 6
    assert eq.regulariser_l2([torch.tensor([-1.0, 2.0]), torch.tensor([3.0])]).item() == 14
    logit = torch.tensor([[0.3]])
    bce = F.binary_cross_entropy_with_logits(logit, torch.ones(1, 1))
    assert eq.generator_loss(logit).item() == pytest.approx(bce.item())
    assert eq.regulariser_adversarial(logit).item() == pytest.approx(bce.item())


@pytest.mark.slow
@pytest.mark.parametrize(("regularised", "at"), [(True, 0.5), (False, 0.0)])
def test_ar_holds_the_discriminator_at_undecided_on_fakes(regularised, at):
    """With separable outputs D(f_b) goes to 1; D(f_g) goes to 1/2 under AR, and to 0 without it."""
    d = torch.zeros(2, requires_grad=True)  # free logits for a real and a fake
    optimiser = torch.optim.Adam([d], lr=0.1)
    for _ in range(2000):
        loss = -eq.adversarial_value(d[:1], d[1:])
        if regularised:
            loss = loss + eq.regulariser_adversarial(d[1:])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    real, fake = torch.sigmoid(d).tolist()
    assert real > 0.99
    assert fake == pytest.approx(at, abs=0.01)


def test_momentum_is_the_root_of_its_recurrence():
    alpha = 1.0
    for _ in range(5):
        after = eq.momentum(alpha)
        assert after**2 - after == pytest.approx(alpha**2)
        alpha = after
    assert eq.momentum(1.0) == pytest.approx((1 + math.sqrt(5)) / 2)


def test_extrapolation_stands_still_at_first_and_then_follows_the_last_move():
    now, before = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 2.0])
    assert torch.equal(eq.extrapolate(now, before, 1.0), now)
    alpha = eq.momentum(1.0)
    expected = 1 + (alpha - 1) / eq.momentum(alpha)
    assert eq.extrapolate(now, before, alpha).tolist() == pytest.approx([expected, 2.0])


def test_shrink_is_the_proximal_step_on_the_non_negative():
    u = torch.tensor([-1.0, 0.05, 0.1, 0.3])
    assert eq.shrink(u, 0.1).tolist() == pytest.approx([0, 0, 0, 0.2])


def test_shrink_minimises_what_it_stands_for():
    """argmin over m >= 0 of (m - u)^2 / 2 + t m, against a fine grid."""
    grid = torch.linspace(0, 2, 20001)
    for u in (-0.5, 0.02, 0.3, 1.4):
        best = grid[((grid - u) ** 2 / 2 + 0.1 * grid).argmin()].item()
        assert eq.shrink(torch.tensor(u), 0.1).item() == pytest.approx(best, abs=1e-4)


def test_the_scale_of_outputs_is_their_standard_deviation_and_never_zero():
    f = torch.tensor([[1.0, 3.0], [3.0, 1.0]])
    assert eq.output_scale(f).item() == 1
    assert eq.output_scale(8 * f).item() == 8
    assert eq.output_scale(torch.full((1, 1), 7.0)).item() == 1


def test_the_data_loss_of_scaled_outputs_is_the_share_of_variance_missed():
    f_b = torch.randn(64, 10) * 7
    sigma = eq.output_scale(f_b)
    mean = f_b.mean().expand_as(f_b)
    assert eq.data_loss(f_b / sigma, mean / sigma).item() == pytest.approx(1, rel=1e-5)


def test_a_mask_of_as_many_entries_as_pictures_scales_channels():
    x = torch.ones(3, 3, 2, 2)
    assert torch.equal(eq.masked(x, torch.tensor([1.0, 0.0, 2.0]))[:, :, 0, 0], torch.tensor([[1.0, 0.0, 2.0]] * 3))
    assert torch.equal(eq.masked(x[:, :, 0, 0], torch.tensor([1.0, 0.0, 2.0])), torch.tensor([[1.0, 0.0, 2.0]] * 3))


def test_a_small_scale_of_outputs_is_kept():
    assert eq.output_scale(torch.tensor([[0.25, 0.75]])).item() == 0.25


@pytest.mark.slow
def test_curvature_is_the_second_derivative_where_the_outputs_agree():
    """Card (13), held to autograd: 2 mu E[(df/dm)^2] is the Hessian's diagonal at f_g = f_b."""
    torch.manual_seed(0)
    weight, x = torch.randn(3, 4), torch.randn(8, 4)
    m = torch.ones(4, requires_grad=True)

    def output(m):
        return (m * x) @ weight.T + 0.1 * ((m * x) @ weight.T) ** 2

    wanted = output(m).detach()
    hessian = torch.autograd.functional.hessian(lambda m: 10 * eq.data_loss(wanted, output(m)), m)
    (found,) = eq.curvature(output(m), [m], 10.0, probes=4000)
    assert torch.allclose(found, hessian.diagonal(), rtol=0.1)
