"""The equations against other ways of computing them, and against the pipelines that diffusers ships."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, LatentConsistencyModelPipeline, LCMScheduler
from scipy import linalg

from lab.hybridsd import equations as eq


def test_the_step_map_is_the_released_one():
    assert eq.model_of_step([2, 3]) == [0, 0, 1, 1, 1]
    assert eq.model_of_step([0, 2]) == [1, 1] and eq.model_of_step([1, 0, 1]) == [0, 2]


def test_guidance_of_one_is_the_conditional_and_of_zero_the_unconditional():
    u, c = torch.randn(2, 3, 4)
    assert torch.allclose(eq.guided(u, c, 1.0), c, atol=1e-6) and torch.equal(eq.guided(u, c, 0.0), u)
    assert torch.allclose(eq.guided(u, c, 7.0), 7 * c - 6 * u, atol=1e-5)


@pytest.mark.parametrize("dimension", [8, 9, 256])
def test_the_guidance_embedding_is_diffusers(dimension):
    w = torch.tensor([6.0, 0.5])
    theirs = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, w, embedding_dim=dimension)
    assert torch.equal(eq.guidance_embedding(w, dimension), theirs)


def test_int8_is_within_half_a_step_of_each_channel():
    x = torch.randn(2, 4, 8, 8) * torch.tensor([0.1, 1.0, 10.0, 0.0]).view(4, 1, 1)
    q, scale = eq.int8(x)
    assert q.dtype == torch.int8 and scale.shape == (2, 4, 1, 1) and int(q.abs().max()) == 127
    assert ((q * scale - x).abs() <= scale / 2 + 1e-7).all()
    assert eq.relative_error(x, x) == 0.0 and eq.relative_error(torch.ones(4), torch.zeros(4)) == 1.0


def test_costs_add_up_as_in_the_figure():
    cloud, edge = eq.cloud_share(10, 25, 33.89 / 25, 15.14 / 25, 0.0)
    assert cloud + edge == pytest.approx(22.64, abs=0.005) and cloud == pytest.approx(0.4 * 33.89)
    assert sum(eq.cloud_share(5, 25, 33.89 / 25, 15.14 / 25, 0.0)) == pytest.approx(18.89, abs=0.005)


def test_the_frechet_distance_is_scipys():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(200, 6)), random.normal(size=(300, 6)) @ random.normal(size=(6, 6)) + 1
    sx, sy = np.cov(x.T), np.cov(y.T)
    theirs = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(sx + sy - 2 * linalg.sqrtm(sx @ sy).real)
    assert eq.frechet_distance(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(theirs, rel=1e-8)
    assert abs(eq.frechet_distance(torch.from_numpy(x), torch.from_numpy(x))) < 1e-8


def test_the_three_losses_are_means_of_squares():
    a, b = torch.randn(2, 5, 4, 3, 3)
    mse = torch.nn.functional.mse_loss
    assert torch.allclose(eq.noise_loss(a, b), mse(a, b)) and torch.allclose(eq.output_loss(a, b), mse(a, b))
    assert torch.allclose(eq.feature_loss([a, 2 * a], [b, b]), mse(a, b) + mse(2 * a, b))


def test_the_velocity_is_diffusers():
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    x, noise = torch.randn(2, 3, 4, 8, 8).unbind()
    t = torch.tensor([3, 500, 999])
    a = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    torch.testing.assert_close(eq.velocity(x, noise, a), scheduler.get_velocity(x, noise, t))


# -- by hand, term by term ---------------------------------------------------------------------------------------------


def test_small_numbers_are_neither_lost_in_int8_nor_in_an_error():
    x = torch.tensor([[[[0.02, -0.015]]]])
    q, scale = eq.int8(x)
    assert q.tolist() == [[[[127, -95]]]] and float(scale) == pytest.approx(0.02 / 127)
    assert eq.int8(torch.rand(3, 2, 2))[1].shape == (3, 1, 1)  # without a batch axis too
    assert eq.relative_error(torch.tensor([0.3, 0.4]), torch.tensor([0.3, 0.0])) == pytest.approx(0.8)


def test_the_decoder_is_paid_at_the_edge():
    assert eq.cloud_share(2, 5, 10.0, 1.0, 7.0) == (20.0, 10.0)


def test_features_without_their_twins_are_refused():
    for loss in (eq.feature_loss, eq.perceptual_loss):
        with pytest.raises(ValueError, match="zip"):
            loss([torch.ones(1, 2, 1, 1)] * 2, [torch.ones(1, 2, 1, 1)])


def test_significance_adds_what_means_and_deviations_moved():
    before = torch.tensor([[1.0, 6.0], [3.0, 6.0]]).view(2, 1, 1, 2)
    after = torch.tensor([[4.0, 6.0], [6.0, 14.0]]).view(2, 1, 1, 2)  # means move by (3, 4), deviations by (0, √32)
    assert eq.significance(before, after) == pytest.approx(5 + 32**0.5)


def test_boundary_scalings_by_hand_and_those_of_the_pipeline():
    skip, out = eq.boundary_scalings(torch.tensor([0.0, 0.1]))
    assert skip.tolist() == pytest.approx([1, 0.25 / 1.25]) and out.tolist() == pytest.approx([0, 1 / 1.25**0.5])
    scheduler = LCMScheduler()
    theirs = scheduler.get_scalings_for_boundary_condition_discrete(torch.tensor(3.0))
    torch.testing.assert_close(eq.boundary_scalings(torch.tensor(3.0)), theirs)


def test_a_step_of_ddim_and_its_losses_by_hand():
    a = torch.tensor(0.64)
    assert float(eq.ddim_step(torch.tensor(2.0), torch.tensor(5.0), a)) == pytest.approx(0.8 * 2 + 0.6 * 5)
    x, y = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 0.0])
    assert float(eq.pseudo_huber(x, y, 4.0)) == pytest.approx(0.5)
    assert float(eq.pseudo_huber(x + 1, y + 1, 4.0)) == pytest.approx(0.5)  # of the difference alone
    assert float(eq.pseudo_huber(x, y)) == pytest.approx((3 - 0.001 + 0) / 2, rel=1e-5)
    assert float(eq.latent_loss(torch.ones(2, 1, 2, 2), torch.full((2, 1, 2, 2), 3.0))) == 8
    assert float(eq.hinge_loss(torch.tensor([0.0, 3.0]), torch.tensor([-2.0, 1.0]))) == pytest.approx((0.5 + 1) / 2)


def test_perception_compares_directions_at_each_place():
    fake = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).expand(1, 2, 4, 3)
    real = torch.tensor([10.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 4, 3)
    place = (0.6 - 1) ** 2 + 0.8**2
    assert float(eq.perceptual_loss([fake, real], [real, real])) == pytest.approx(place)
    assert float(eq.perceptual_loss([fake, fake], [real, real])) == pytest.approx(2 * place)
    assert float(eq.perceptual_loss([torch.cat([fake, real])], [torch.cat([real, real])])) == pytest.approx(place / 2)


def test_the_adversary_weighs_as_much_as_perception_at_the_last_weights():
    last = torch.tensor([1.0, 2.0], requires_grad=True)
    perceptual, adversarial = (last * torch.tensor([3.0, 4.0])).sum(), 2 * last[0]
    w = eq.adaptive_weight(perceptual, adversarial, last)
    assert float(w) == pytest.approx(5 / 2.0001) and not w.requires_grad
    assert float(eq.adaptive_weight(adversarial, perceptual, last)) == pytest.approx(2 / 5.0001)  # also below 1
    assert float(eq.adaptive_weight(perceptual, 0 * last.sum(), last)) == 1e4  # 5e4, but for the limit
    assert float(eq.adaptive_weight(perceptual, adversarial, last)) == pytest.approx(5 / 2.0001)  # the graph is kept


def test_a_flow_goes_straight_from_noise_to_picture():
    x, noise = torch.tensor([2.0]), torch.tensor([6.0])
    near, far = (eq.mixed(x, noise, torch.tensor(s)) for s in (0.25, 0.75))
    assert float(near) == pytest.approx(0.75 * 2 + 0.25 * 6) and float(far) == pytest.approx(5)
    assert float(eq.flow(x, noise)) == 4
    torch.testing.assert_close(far - 0.5 * eq.flow(x, noise), near)  # its derivative by the share


def test_the_shift_of_a_flow_is_that_of_the_scheduler():
    u = torch.tensor([0.0, 0.2, 0.5, 0.8, 1.0])
    assert eq.shifted_share(u, 0.25).tolist() == pytest.approx([0, 0.05 / 0.85, 0.2, 0.2 / 0.4, 1])
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    torch.testing.assert_close(scheduler.sigmas, eq.shifted_share(torch.arange(1000, 0, -1) / 1000, 3.0))
