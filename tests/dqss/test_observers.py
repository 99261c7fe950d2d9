"""Ranges read from data: each rule beside another way to the same number."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.core.quantisation.quantisers import largest_code
from lab.dqss import observers

NORMAL = torch.randn(1, 16, 4000, generator=torch.Generator().manual_seed(0))
LAPLACE = torch.distributions.Laplace(0.0, 1.0).icdf(
    torch.rand(1, 16, 4000, generator=torch.Generator().manual_seed(1))
)


@pytest.mark.parametrize(
    ("levels", "laplace", "gauss"),
    [(4, 2.83, 1.71), (8, 3.89, 2.15), (16, 5.03, 2.55), (256, 9.89, 3.92)],
)
def test_analytic_clips_are_those_of_the_literature(levels, laplace, gauss):
    assert observers.laplace_clip(levels) == pytest.approx(laplace, abs=0.01)
    assert observers.gauss_clip(levels) == pytest.approx(gauss, abs=0.011)


def test_aciq_tells_a_laplace_from_a_gauss():
    assert float(observers.aciq(NORMAL, 7, True)) == pytest.approx(
        observers.gauss_clip(15) * float(NORMAL.std()), rel=0.03
    )
    spread = float(LAPLACE.abs().mean())
    assert float(observers.aciq(LAPLACE, 7, True)) == pytest.approx(observers.laplace_clip(15) * spread, rel=0.05)


@pytest.mark.parametrize("share", [99.9, 99.99, 50.0])
def test_a_percentile_is_numpys(share):
    value = float(observers.percentile(share)(NORMAL, 7, True))
    wanted = np.percentile(NORMAL.abs().flatten().numpy(), share, method="inverted_cdf")
    assert value == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(("n", "signed"), [(7, True), (15, False), (3, True)])
def test_the_squared_error_is_least_beside_a_fine_search(n, signed):
    x = NORMAL if signed else NORMAL.relu()
    flat = x.flatten().double().numpy()

    def error(alpha):
        step = alpha / n
        return np.mean((np.clip(np.round(flat / step), -n if signed else 0, n) * step - flat) ** 2)

    best = min(error(a) for a in np.linspace(0.5, 5, 800))
    assert error(float(observers.mse(x, n, signed))) < 1.02 * best
    assert error(float(observers.least_squares(x, n, signed))) < error(float(observers.max_abs(x, n, signed)))


def test_least_squares_is_a_fixed_point():
    alpha = float(observers.least_squares(NORMAL[:, :1], 7, True, rounds=300))
    flat = NORMAL[:, :1].flatten()
    k = (flat / (alpha / 7)).round().clamp(-7, 7)
    assert float((flat * k).sum() / (k * k).sum()) == pytest.approx(alpha / 7, rel=1e-3)


def test_kl_cuts_a_far_outlier_and_keeps_a_uniform_tensor():
    far = torch.cat([NORMAL.flatten(), torch.tensor([60.0])])[None, None]
    assert float(observers.kl(far, 127, True)) < 15 < float(observers.max_abs(far, 127, True))
    flat = torch.linspace(-1, 1, 20_000)[None, None]
    assert float(observers.kl(flat, 127, True)) > 0.95


@pytest.mark.slow
def test_kl_is_near_onnxruntimes_entropy_calibration():
    calibrate = pytest.importorskip("onnxruntime.quantization.calibrate")
    x = NORMAL.flatten().numpy()
    collector = calibrate.HistogramCollector("entropy", True, 2048, 128, 99.99, "same")
    collector.collect({"x": [x]})
    low, high = (float(v) for v in collector.compute_collection_result()["x"][:2])
    assert float(observers.kl(NORMAL, 127, True)) == pytest.approx(max(-low, high), rel=0.3)


@pytest.mark.parametrize("bits", [8, 4, 3])
@pytest.mark.parametrize("rule", [observers.aciq, observers.mse, observers.least_squares])
@pytest.mark.parametrize("x", [NORMAL, LAPLACE], ids=["gauss", "laplace"])
def test_behind_a_relu_a_range_is_nearly_as_good_as_the_best(x, rule, bits):
    """Half of the values are 0, which every grid holds: they must not draw the range to themselves."""
    x, n = x.relu(), largest_code(bits, signed=False)
    best = min(error(x, a, n) for a in torch.linspace(0.05, 1, 200) * x.max())
    allowed = 2 if rule is observers.least_squares else 0.5  # that one ends in a minimum near its start
    assert 10 * math.log10(error(x, rule(x, n, False), n) / best) < allowed
    sparse = x * (torch.rand(x.shape, generator=torch.Generator().manual_seed(4)) < 0.2)
    assert 10 * math.log10(error(sparse, rule(sparse, n, False), n) / error(x, rule(x, n, False), n)) < 3


@pytest.mark.slow
@pytest.mark.parametrize("n", [15, 255])
@pytest.mark.parametrize("x", [NORMAL, LAPLACE], ids=["gauss", "laplace"])
def test_kl_does_not_see_zeros(x, n):
    """It does not ask for the squared error; what a ReLU or a dropout made 0 leaves its range where it was."""
    some = x[x > 0][None, None]
    holed = torch.cat([some, torch.zeros(1, 1, 3 * some.numel())], 2)
    assert (
        float(observers.kl(x.relu(), n, False))
        == float(observers.kl(holed, n, False))
        == float(observers.kl(some, n, False))
    )


def error(x, alpha, n):
    flat = x.flatten(1)
    return float((observers.nearest(flat, torch.as_tensor(alpha).view(1), n, False) - flat).square().mean())


def test_kl_is_scipys_entropy_of_the_same_histogram():
    """The divergence beside NVIDIA's published recipe written out bin by bin, and its least threshold."""
    stats = pytest.importorskip("scipy.stats")
    counts, _ = np.histogram(LAPLACE.abs().flatten().numpy(), observers.BINS, (0, float(LAPLACE.abs().max())))
    stops, values = observers.divergences(torch.from_numpy(counts).double()[None], 16)
    divergences = {stop: value for stop, value in zip(stops.tolist(), values[0].tolist(), strict=True) if not stop % 64}
    wanted = {}
    for stop in divergences:
        p, q = counts[:stop].astype(float), np.zeros(stop)
        p[-1] += counts[stop:].sum()
        for level in range(16):
            part = [k for k in range(stop) if k * 16 // stop == level and counts[k] > 0]
            q[part] = counts[part].mean() if part else 0
        wanted[stop] = stats.entropy(np.where(p > 0, p, 1e-9), np.where(q > 0, q, 1e-9))
    assert abs(min(divergences, key=divergences.get) - min(wanted, key=wanted.get)) <= 128
    top = min(divergences, key=divergences.get) / observers.BINS * float(LAPLACE.abs().max())
    assert float(observers.kl(LAPLACE, 15, True)) == pytest.approx(top, rel=0.15)


def mse_by_a_loop(row, n, signed):
    alphas = row.abs().max().clamp(min=observers.LEAST) * torch.linspace(0.01, 1, observers.TRIED)
    errors = [(observers.nearest(row[None], a[None], n, signed)[0] - row).square().mean() for a in alphas]
    return alphas[min(range(observers.TRIED), key=lambda k: float(errors[k]))]


def kl_by_a_loop(row, n, signed):
    row = row[row != 0].abs()
    if not len(row):
        return torch.zeros(())
    bins = min(2048, max(128, len(row) // 8 // 16 * 16))
    counts, best = torch.histc(row, bins, 0, float(row.max())).double(), (math.inf, 0)
    for stop in range(bins, bins // 16 - 1, -max(1, bins // 256)):
        cut = counts[:stop]
        if cut.any():
            best = min(best, (divergence_by_a_loop(cut, counts[stop:].sum(), n + 1), -stop))
    return row.max() * -best[1] / bins


def divergence_by_a_loop(cut, beyond, levels):
    p, q, some = cut.clone(), torch.zeros_like(cut), cut > 0
    p[-1] += beyond
    level = torch.arange(len(cut)) * levels // len(cut)
    for k in level[some].unique():
        q[(level == k) & some] = cut[level == k].sum() / (some & (level == k)).sum()
    for shares in (p, q):
        empty = shares == 0
        shares /= shares.sum()
        shares -= 1e-4 * empty.sum().double() / (~empty).sum()
        shares[empty] = 1e-4
        shares.clamp_(min=1e-12)
    return float((p * (p / q).log()).sum())


@pytest.mark.slow
@settings(deadline=None, max_examples=15)
@given(
    st.integers(1, 5),
    st.integers(1, 300),
    st.sampled_from([3, 7, 127]),
    st.booleans(),
    st.sampled_from([1, 3]),
    st.integers(0, 9),
)
def test_many_rows_at_once_are_each_row_by_a_loop(groups, values, n, signed, power, seed):
    """Bit for bit: rows of unlike size, some of them with zeros, in one block or several."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, 1, values, generator=generator) ** power * torch.arange(groups).view(-1, 1, 1)
    x = x * (torch.rand(x.shape, generator=generator) < 0.8)
    x = x if signed else x.relu()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observers, "BLOCK", 2 * values)
        for rule, by_a_loop in ((observers.mse, mse_by_a_loop), (observers.kl, kl_by_a_loop)):
            assert torch.equal(rule(x, n, signed), torch.stack([by_a_loop(row[0], n, signed) for row in x]))


@pytest.mark.parametrize("bits", [8, 4, 3])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("rule", observers.OBSERVERS)
def test_tensors_of_one_value(rule, signed, bits):
    """Constant or one element: the range is that value; all zero: there is none."""
    n = largest_code(bits, signed)
    for x in (torch.full((1, 4, 25), 0.3), torch.full((1, 1, 1), 0.3)):
        assert float(observers.OBSERVERS[rule](x, n, signed)) == pytest.approx(0.3, rel=1e-4)
    if signed:
        assert float(observers.OBSERVERS[rule](torch.full((1, 4, 25), -0.3), n, True)) == pytest.approx(0.3, rel=1e-4)
    assert float(observers.OBSERVERS[rule](torch.zeros(1, 4, 25), n, signed)) / n < observers.LEAST


def test_the_mean_of_samples_is_pams_first_alpha():
    assert float(observers.sample_mean(NORMAL, 7, True)) == pytest.approx(float(NORMAL[0].abs().amax(1).mean()))


def test_easyquant_answers_more_alike_than_the_maximum_does():
    W = torch.randn(8, 20, generator=torch.Generator().manual_seed(2)) ** 3
    x = NORMAL[0, :, :20] ** 3
    first = W.abs().max()[None], x.abs().max()[None]

    def layer(x, W):
        return x @ W.T

    def likeness(w, a):
        rounded = layer(
            observers.nearest(x.reshape(1, -1), a, 7, True).view_as(x),
            observers.nearest(W.reshape(1, -1), w, 7, True).view_as(W),
        )
        return float(torch.cosine_similarity(rounded.flatten(), layer(x, W).flatten(), 0))

    alphas = observers.easyquant(x, W, layer, first, (7, 7), True, tried=40)
    assert likeness(*alphas) > likeness(*first)


def test_a_group_a_channel_is_each_channel_alone():
    W = torch.randn(5, 1, 300, generator=torch.Generator().manual_seed(3)) * torch.arange(1, 6).view(5, 1, 1)
    for rule in (
        observers.max_abs,
        observers.mse,
        observers.least_squares,
        observers.aciq,
        observers.percentile(99.0),
    ):
        together = rule(W, 7, True)
        torch.testing.assert_close(together, torch.cat([rule(row[None], 7, True) for row in W]))


@pytest.mark.parametrize("rule", observers.OBSERVERS)
def test_a_tensor_that_nearly_vanishes_has_the_range_of_its_size(rule):
    """Of activations that an untrained network shrinks: a step of another size would be lost in their sum."""
    large = float(observers.OBSERVERS[rule](NORMAL, 7, True))
    assert float(observers.OBSERVERS[rule](NORMAL * 2.0**-40, 7, True)) == pytest.approx(large * 2.0**-40, rel=0.01)
