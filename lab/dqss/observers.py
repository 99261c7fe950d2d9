"""Observers: ranges read from data, each by another published rule: the largest value that a tensor's grid shall hold.

Every rule takes x (groups, samples, values) and the grid's largest code n, and gives one alpha a group: one group for a
whole tensor, one a channel for weights. A grid is -n..n times alpha / n, or 0..n where nothing is negative (`signed`).
Rules that try many ranges read at most MOST values a group, drawn with a fixed seed, besides the largest.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

MOST = 2**15
TRIED = 100  # ranges that the squared error and the cosine are searched over
BINS = 2048  # of the histogram that divergences are read from, where a tensor has values enough


def nearest(x: Tensor, alpha: Tensor, n: int, signed: bool) -> Tensor:
    """x rounded to the grid of alpha: (G, V) and (G,) -> (G, V)."""
    step = (alpha / n)[:, None]
    return (x / step).round_().clamp_(-n if signed else 0, n).mul_(step)


def _flat(x: Tensor) -> Tensor:
    return x.flatten(1)


def subsample(flat: Tensor, most: int) -> Tensor:
    """At most `most` values of each row, the same positions every time; equal steps would all meet one column."""
    if flat.shape[-1] <= most:
        return flat
    at = torch.randint(flat.shape[-1], (most,), generator=torch.Generator().manual_seed(0))
    return flat[..., at.to(flat.device)]


def _subsampled(x: Tensor) -> Tensor:
    """At most MOST values a group, and the largest of all where some are left out: (G, S, V) -> (G, v)."""
    flat = _flat(x)
    if flat.shape[1] <= MOST:
        return flat
    largest = flat.gather(1, flat.abs().argmax(1, keepdim=True))
    return torch.cat([subsample(flat, MOST), largest], 1)


def max_abs(x: Tensor, n: int, signed: bool) -> Tensor:
    """The largest |x|: nothing is clipped."""
    return _flat(x).abs().amax(1)


def percentile(share: float) -> Callable[[Tensor, int, bool], Tensor]:
    """A rule: what `share` percent of all |x| do not exceed."""

    def rule(x: Tensor, n: int, signed: bool) -> Tensor:
        flat = _flat(x).abs()
        return flat.kthvalue(max(1, math.ceil(share / 100 * flat.shape[1])), 1).values

    return rule


def mse(x: Tensor, n: int, signed: bool) -> Tensor:
    """Of TRIED shares of max|x| the one of least squared error (OMSE; Choukroun et al., 1902.06822)."""
    values = _subsampled(x)
    shares = torch.linspace(1 / TRIED, 1, TRIED).to(values)
    alphas = values.abs().amax(1).clamp(min=1e-12)[:, None] * shares  # (G, T)
    errors = torch.stack([(nearest(values, a, n, signed) - values).square().mean(1) for a in alphas.T], 1)
    return alphas.gather(1, errors.argmin(1, keepdim=True))[:, 0]


def least_squares(x: Tensor, n: int, signed: bool, rounds: int = 30) -> Tensor:
    """Codes and step by turns: k = round(x / s), then s = <x, k> / <k, k> (ADMM's inner problem; 1707.09870)."""
    values = _subsampled(x)
    low, step = -n if signed else 0, values.abs().amax(1, keepdim=True).clamp(min=1e-12) / n
    for _ in range(rounds):
        k = (values / step).round_().clamp_(low, n)
        square = k.square().sum(1, keepdim=True)
        step = torch.where(square > 0, (values * k).sum(1, keepdim=True) / square.clamp(min=1), step)
    return step[:, 0] * n


def kl(x: Tensor, n: int, signed: bool) -> Tensor:
    """The threshold whose n + 1 levels diverge least from the histogram of |x| (Migacz, TensorRT, GTC 2017).

    Values beyond the threshold are folded into its last bin; the levels are spread over the bins that hold values. What
    is exactly 0, as half of all behind a ReLU, lies on every grid and is left out (ours; NVIDIA's own tool overwrites
    the first bin). Thresholds under a sixteenth of the largest value are not tried, as in the talk.
    """
    return torch.stack([_kl(row, n) for row in _flat(x).abs()])


def _kl(row: Tensor, n: int) -> Tensor:
    row = row[row > 0].float()
    if not len(row):
        return row.new_zeros(())
    bins = min(BINS, max(BINS // 16, len(row) // 8 // 16 * 16))  # few values leave many bins empty
    top = row.max()
    counts = torch.histc(row, bins, 0, float(top)).double()
    stops = range(bins, bins // 16 - 1, -max(1, bins // 256))
    best = min(stops, key=lambda stop: _divergence(counts, stop, n + 1))  # of equals the widest
    return top * best / bins


def _divergence(counts: Tensor, stop: int, levels: int) -> float:
    """KL of the clipped histogram to its own `levels` means, both smoothed as in Migacz's talk."""
    cut = counts[:stop]
    if not cut.any():
        return math.inf
    p = cut.clone()
    p[-1] += counts[stop:].sum()
    level = torch.arange(stop) * levels // stop  # the level of each bin
    some = (cut > 0).double()
    total = torch.zeros(levels, dtype=p.dtype).index_add_(0, level, cut)
    filled = torch.zeros(levels, dtype=p.dtype).index_add_(0, level, some)
    q = (total / filled.clamp(min=1))[level] * some
    p, q = _smoothed(p / p.sum()), _smoothed(q / q.sum())
    return float((p * (p / q).log()).sum())


def _smoothed(p: Tensor, eps: float = 1e-4) -> Tensor:
    """A little of every full bin given to the empty ones, so that no logarithm is infinite."""
    empty = p == 0
    full = int((~empty).sum())
    return torch.where(empty, eps, p - eps * int(empty.sum()) / full).clamp(min=1e-12)


def aciq(x: Tensor, n: int, signed: bool) -> Tensor:
    """The analytic clip of a Laplace or a Gauss distribution, whichever the moments are nearer (Banner, 1810.05723).

    What stands behind a ReLU is taken as one side of a distribution about 0: its zeros, which were the other side, do
    not count in the moments.
    """
    values = _subsampled(x)
    some = values != 0
    count = some.sum(1, keepdim=True).clamp(min=1)
    mean = values.sum(1, keepdim=True) / count if signed else torch.zeros_like(values[:, :1])
    apart = torch.where(some, values - mean, 0)
    b, sigma = apart.abs().sum(1) / count[:, 0], (apart.square().sum(1) / count[:, 0]).sqrt()
    ratio = b / sigma.clamp(min=1e-12)
    is_laplace = (ratio - 0.5**0.5).abs() < (ratio - (2 / math.pi) ** 0.5).abs()
    clip = torch.where(is_laplace, laplace_clip(2 * n + 1) * b, gauss_clip(2 * n + 1) * sigma)
    return torch.minimum(clip + mean[:, 0].abs(), values.abs().amax(1))


@lru_cache
def laplace_clip(levels: int) -> float:
    """The clip of least error in units of E|x|: the a with 3 levels^2 exp(-a) = a; 2.83, 5.03, 9.89 at 4, 16, 256."""
    a = 1.0
    for _ in range(100):  # Newton on a + log a - log(3 levels^2)
        a -= (a + math.log(a) - math.log(3.0 * levels**2)) / (1 + 1 / a)
    return a


@lru_cache
def gauss_clip(levels: int) -> float:
    """The clip of least error of a Gauss distribution in units of sigma, by search: 1.71, 2.55, 3.92 at 4, 16, 256."""

    def error(a: float) -> float:
        outside = (1 + a * a) * math.erfc(a / 2**0.5) - (2 / math.pi) ** 0.5 * a * math.exp(-a * a / 2)
        return outside + a * a / (3 * levels**2)

    return min((k / 1000 for k in range(200, 8000)), key=error)


def sample_mean(x: Tensor, n: int, signed: bool) -> Tensor:
    """The mean over the samples of each one's max|x|, where PAMS starts (2011.04212)."""
    return x.abs().amax(2).mean(1)


def easyquant(
    x: Tensor,
    W: Tensor,
    layer: Callable[[Tensor, Tensor], Tensor],
    alphas: tuple[Tensor, Tensor],
    n: tuple[int, int],
    signed: bool,
    tried: int = TRIED,
    rounds: int = 1,
) -> tuple[Tensor, Tensor]:
    """Ranges of weight and input by turns, those whose layer's output has the largest cosine to the float one.

    EasyQuant (Wu et al., 2006.16669): `tried` factors in [0.5, 2] of the first alphas. x is the layer's input, W its
    weight with as many rows as alphas[0] has entries, n the codes of both; gives both alphas.
    """
    float_output = layer(x, W).flatten()
    factors = torch.linspace(0.5, 2, tried).to(x)
    w, a = alphas

    def rounded(value: Tensor, alpha: Tensor, n: int, signed: bool) -> Tensor:
        return nearest(value.reshape(len(alpha), -1), alpha, n, signed).view_as(value)

    def best(outputs: list[Tensor]) -> Tensor:
        cosines = [float(F.cosine_similarity(output.flatten(), float_output, 0)) for output in outputs]
        return factors[max(range(tried), key=lambda k: cosines[k])]

    for _ in range(rounds):
        x_q = rounded(x, a, n[1], signed)
        w = w * best([layer(x_q, rounded(W, w * f, n[0], True)) for f in factors])
        W_q = rounded(W, w, n[0], True)
        a = a * best([layer(rounded(x, a * f, n[1], signed), W_q) for f in factors])
    return w, a


OBSERVERS: dict[str, Callable[[Tensor, int, bool], Tensor]] = {
    "max": max_abs,
    "p99.9": percentile(99.9),
    "p99.99": percentile(99.99),
    "p99.999": percentile(99.999),
    "mse": mse,
    "kl": kl,
    "als": least_squares,
    "aciq": aciq,
    "pams": sample_mean,
}
