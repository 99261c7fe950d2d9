"""Ranges read from data: each rule beside another way to the same number."""

import numpy as np
import pytest
import torch

from lab.core import ranges

NORMAL = torch.randn(1, 16, 4000, generator=torch.Generator().manual_seed(0))
LAPLACE = torch.distributions.Laplace(0.0, 1.0).icdf(
    torch.rand(1, 16, 4000, generator=torch.Generator().manual_seed(1))
)


@pytest.mark.parametrize(
    ("levels", "laplace", "gauss"),
    [(4, 2.83, 1.71), (8, 3.89, 2.15), (16, 5.03, 2.55), (256, 9.89, 3.92)],
)
def test_analytic_clips_are_those_of_the_literature(levels, laplace, gauss):
    assert ranges.laplace_clip(levels) == pytest.approx(laplace, abs=0.01)
    assert ranges.gauss_clip(levels) == pytest.approx(gauss, abs=0.011)


def test_aciq_tells_a_laplace_from_a_gauss():
    assert float(ranges.aciq(NORMAL, 7, True)) == pytest.approx(ranges.gauss_clip(15) * float(NORMAL.std()), rel=0.03)
    spread = float(LAPLACE.abs().mean())
    assert float(ranges.aciq(LAPLACE, 7, True)) == pytest.approx(ranges.laplace_clip(15) * spread, rel=0.05)


@pytest.mark.parametrize("share", [99.9, 99.99, 50.0])
def test_a_percentile_is_numpys(share):
    found = float(ranges.percentile(share)(NORMAL, 7, True))
    wanted = np.percentile(NORMAL.abs().flatten().numpy(), share, method="inverted_cdf")
    assert found == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(("n", "signed"), [(7, True), (15, False), (3, True)])
def test_the_squared_error_is_least_beside_a_fine_search(n, signed):
    x = NORMAL if signed else NORMAL.relu()
    flat = x.flatten().double().numpy()

    def error(alpha):
        step = alpha / n
        return np.mean((np.clip(np.round(flat / step), -n if signed else 0, n) * step - flat) ** 2)

    best = min(error(a) for a in np.linspace(0.5, 5, 800))
    assert error(float(ranges.mse(x, n, signed))) < 1.02 * best
    assert error(float(ranges.least_squares(x, n, signed))) < error(float(ranges.max_abs(x, n, signed)))


def test_least_squares_is_a_fixed_point():
    alpha = float(ranges.least_squares(NORMAL[:, :1], 7, True, rounds=300))
    flat = NORMAL[:, :1].flatten()
    k = (flat / (alpha / 7)).round().clamp(-7, 7)
    assert float((flat * k).sum() / (k * k).sum()) == pytest.approx(alpha / 7, rel=1e-3)


def test_kl_cuts_a_far_outlier_and_keeps_a_uniform_tensor():
    far = torch.cat([NORMAL.flatten(), torch.tensor([60.0])])[None, None]
    assert float(ranges.kl(far, 127, True)) < 15 < float(ranges.max_abs(far, 127, True))
    flat = torch.linspace(-1, 1, 20_000)[None, None]
    assert float(ranges.kl(flat, 127, True)) > 0.95


def test_kl_is_near_onnxruntimes_entropy_calibration():
    calibrate = pytest.importorskip("onnxruntime.quantization.calibrate")
    x = NORMAL.flatten().numpy()
    collector = calibrate.HistogramCollector("entropy", True, 2048, 128, 99.99, "same")
    collector.collect({"x": [x]})
    low, high = (float(v) for v in collector.compute_collection_result()["x"][:2])
    assert float(ranges.kl(NORMAL, 127, True)) == pytest.approx(max(-low, high), rel=0.3)


def test_the_mean_of_samples_is_pams_first_alpha():
    assert float(ranges.sample_mean(NORMAL, 7, True)) == pytest.approx(float(NORMAL[0].abs().amax(1).mean()))


def test_easyquant_answers_more_alike_than_the_maximum_does():
    W = torch.randn(8, 20, generator=torch.Generator().manual_seed(2)) ** 3
    x = NORMAL[0, :, :20] ** 3
    first = W.abs().max()[None], x.abs().max()[None]

    def layer(x, W):
        return x @ W.T

    def likeness(w, a):
        rounded = layer(
            ranges.nearest(x.reshape(1, -1), a, 7, True).view_as(x),
            ranges.nearest(W.reshape(1, -1), w, 7, True).view_as(W),
        )
        return float(torch.cosine_similarity(rounded.flatten(), layer(x, W).flatten(), 0))

    found = ranges.easyquant(x, W, layer, first, (7, 7), True, tried=40)
    assert likeness(*found) > likeness(*first)


def test_a_group_a_channel_is_each_channel_alone():
    W = torch.randn(5, 1, 300, generator=torch.Generator().manual_seed(3)) * torch.arange(1, 6).view(5, 1, 1)
    for rule in (ranges.max_abs, ranges.mse, ranges.least_squares, ranges.aciq, ranges.percentile(99.0)):
        together = rule(W, 7, True)
        torch.testing.assert_close(together, torch.cat([rule(row[None], 7, True) for row in W]))
