"""Observers: ranges read from data, each by another published rule: the largest value that a tensor's grid shall hold.

Every rule takes x (groups, samples, values) and the grid's largest code n, and gives one alpha a group: one group for a
whole tensor, one a channel for weights. A grid is -n..n times alpha / n, or 0..n where nothing is negative (`signed`).
Rules that try many ranges read at most MOST values a group, drawn with a fixed seed, besides the largest.
"""

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

MOST = 2**15
BLOCK = 2**15  # values of whole groups that are rounded while they are in the processor's cache
TRIED = 100  # ranges that the squared error and the cosine are searched over
BINS = 2048  # of the histogram that divergences are read from, where a tensor has values enough
LEAST = 1e-18  # a tensor of no larger values is taken for all 0: it has no range


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


def _by_blocks(rule: Callable[..., Tensor], values: Tensor, *rest: Any) -> Tensor:
    """A rule of (G, V) -> (G,) for some groups at a time."""
    return torch.cat([rule(block, *rest) for block in values.split(max(1, BLOCK // values.shape[1]))])


def max_abs(x: Tensor, n: int, signed: bool) -> Tensor:
    """The largest |x|: nothing is clipped."""
    return _flat(x).abs().amax(1)


def percentile(share: float) -> Callable[[Tensor, int, bool], Tensor]:
    """A rule: what `share` percent of all |x| do not exceed."""

    def rule(x: Tensor, n: int, signed: bool) -> Tensor:
        flat = _flat(x).abs()
        within = max(1, math.ceil(share / 100 * flat.shape[1]))
        return flat.topk(flat.shape[1] - within + 1, 1, sorted=False).values.amin(1)

    return rule


def mse(x: Tensor, n: int, signed: bool) -> Tensor:
    """Of TRIED shares of max|x| the one of least squared error (OMSE; Choukroun et al., 1902.06822)."""
    return _by_blocks(_least_error, _subsampled(x), n, signed)


def _least_error(values: Tensor, n: int, signed: bool) -> Tensor:
    """The widest ranges first: what is cut off only grows, and alone decides once it is more than the least error."""
    shares = torch.linspace(1 / TRIED, 1, TRIED).to(values)
    alphas = values.abs().amax(1).clamp(min=LEAST)[:, None] * shares  # (G, T)
    errors, low = torch.full_like(alphas, math.inf), -n if signed else 0
    rounded = torch.empty_like(values)
    for k in reversed(range(TRIED)):
        alpha = alphas[:, k : k + 1]
        if k % 5 == 0:
            cut_off = values - values.clamp(alpha * (low / n), alpha)
            if (cut_off.square_().mean(1) > 1.01 * errors.amin(1)).all():
                break
        step = alpha / n
        torch.div(values, step, out=rounded).round_().clamp_(low, n).mul_(step)
        errors[:, k] = rounded.sub_(values).square_().mean(1)
    return alphas.gather(1, errors.argmin(1, keepdim=True))[:, 0]


def least_squares(x: Tensor, n: int, signed: bool, rounds: int = 30) -> Tensor:
    """Codes and step by turns: k = round(x / s), then s = <x, k> / <k, k> (ADMM's inner problem; 1707.09870)."""
    return _by_blocks(_alternated, _subsampled(x), n, signed, rounds)


def _alternated(values: Tensor, n: int, signed: bool, rounds: int) -> Tensor:
    low, step = -n if signed else 0, values.abs().amax(1, keepdim=True).clamp(min=LEAST) / n
    k, products = torch.empty_like(values), torch.empty_like(values)
    for _ in range(rounds):
        torch.div(values, step, out=k).round_().clamp_(low, n)
        square = torch.mul(k, k, out=products).sum(1, keepdim=True)
        dot = torch.mul(values, k, out=products).sum(1, keepdim=True)
        step = torch.where(square > 0, dot / square.clamp(min=1), step)
    return step[:, 0] * n


def kl(x: Tensor, n: int, signed: bool) -> Tensor:
    """The threshold whose n + 1 levels diverge least from the histogram of |x| (Migacz, TensorRT, GTC 2017).

    Values beyond the threshold are folded into its last bin; the levels are spread over the bins that hold values. What
    is exactly 0, as half of all behind a ReLU, lies on every grid and is left out (ours; NVIDIA's own tool overwrites
    the first bin). Thresholds under a sixteenth of the largest value are not tried, as in the talk.
    """
    rows = [row[row > 0].float() for row in _flat(x).abs()]
    alphas = x.new_zeros(len(rows), dtype=torch.float32)
    by_bins: dict[int, list[int]] = {}
    for at, row in enumerate(rows):
        if len(row):  # few values leave many bins empty
            by_bins.setdefault(min(BINS, max(BINS // 16, len(row) // 8 // 16 * 16)), []).append(at)
    for bins, some in by_bins.items():
        tops = torch.stack([rows[at].amax() for at in some])
        counts = [torch.histc(rows[at], bins, 0, top) for at, top in zip(some, tops.tolist(), strict=True)]
        alphas[some] = tops * _by_blocks(_least_divergent, torch.stack(counts).double(), n + 1).to(tops) / bins
    return alphas


def _least_divergent(counts: Tensor, levels: int) -> Tensor:
    """The threshold of least divergence for each histogram, in bins: (G, B) -> (G,)."""
    stops, values = divergences(counts, levels)
    return stops[values.argmin(1)]  # of equals the first, which is the widest


def divergences(counts: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """The thresholds that are tried, in bins (T,), and the divergence of each histogram (G, B) there: (G, T)."""
    bins = counts.shape[1]
    stops = torch.arange(bins, bins // 16 - 1, -max(1, bins // 256))
    sums = F.pad(torch.cat([counts, (counts > 0).double()]).cumsum(1), (1, 0))
    stops = stops.to(counts.device)
    tried = [_divergences(counts, sums, some, levels) for some in stops.split(max(1, BLOCK // counts.numel()))]
    return stops, torch.cat(tried, 1)


def _divergences(counts: Tensor, sums: Tensor, stops: Tensor, levels: int) -> Tensor:
    """KL of clipped histograms to their own `levels` means, both smoothed as in Migacz's talk: (G, T).

    counts (G, B); sums (2 G, B + 1): up to each bin those of the counts, and of the bins that hold values; stops (T,),
    the widest first.
    """
    held, at, lengths = sums[: len(counts)], stops[:, None], stops.tolist()
    bins = torch.arange(lengths[0], device=counts.device)  # no threshold of these takes more
    inside = bins < at  # (T, B')
    cut = torch.where(inside, counts[:, None, : lengths[0]], 0)  # (G, T, B')
    ends = -(torch.arange(levels + 1, device=counts.device) * -at // levels)  # bin i is of level i levels // stop
    total, filled = sums[:, ends].diff().chunk(2)  # (G, T, levels) each
    level = (bins * levels // at).clamp_(max=levels - 1).expand(len(counts), -1, -1)
    q = (total / filled.clamp_(min=1)).gather(2, level) * (cut > 0)
    cut.scatter_add_(2, (at - 1).expand(len(counts), -1, 1), (held[:, -1:] - held[:, stops])[..., None])
    p = _smoothed(cut / held[:, -1:, None], inside)
    q = _smoothed(q / _sums(q, lengths)[..., None], inside)
    return _sums(p * (p / q).log_(), lengths).masked_fill_(held[:, stops] == 0, math.inf)


def _sums(values: Tensor, lengths: list[int]) -> Tensor:
    """The sum of each row (G, T, B) up to its length: (G, T)."""
    return torch.stack([values[:, k, :length].sum(1) for k, length in enumerate(lengths)], 1)


def _smoothed(p: Tensor, inside: Tensor, eps: float = 1e-4) -> Tensor:
    """A little of every full bin given to the empty ones, so that no logarithm is infinite: (G, T, B), as what is
    `inside` (T, B)."""
    empty = (p == 0) & inside
    count = empty.sum(2, keepdim=True).double()
    full = inside.sum(1, keepdim=True) - count
    return torch.where(empty, eps, p - eps * count / full).clamp_(min=1e-12)


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
    ratio = b / sigma.clamp(min=LEAST)
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

    def best(outputs: Iterator[Tensor]) -> Tensor:
        cosines = [float(F.cosine_similarity(output.flatten(), float_output, 0)) for output in outputs]
        return factors[max(range(tried), key=lambda k: cosines[k])]

    for _ in range(rounds):
        x_q = rounded(x, a, n[1], signed)
        w = w * best(layer(x_q, rounded(W, w * f, n[0], True)) for f in factors)
        W_q = rounded(W, w, n[0], True)
        a = a * best(layer(rounded(x, a * f, n[1], signed), W_q) for f in factors)
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
