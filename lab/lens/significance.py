"""Tests whose false-alarm rate is known: random pairs, signs, exact limits; and the error of calibration."""

from functools import lru_cache

import numpy as np
from scipy import stats

SHUFFLES = 9_999
BINS = 15  # of the calibration error, as Guo, Pleiss, Sun and Weinberger have it (ICML 2017, arXiv 1706.04599)


def permutation_p(scores: np.ndarray, seed: int = 0) -> float:
    """The p-value of a permutation test: how often pairs drawn at random score as high as those on the diagonal.

    scores (N, N), of output i against target j. One-sided; from 9,999 permutations, so 0.0001 is the least, and a pair
    of rows that have nothing to do with one another is below a level at most that often.
    """
    matched = scores.trace() - 1e-9 * max(1.0, float(np.abs(scores).max(initial=0)))
    totals = scores.ravel().take(_orders(len(scores), seed)).sum(1)
    return (1 + int((totals >= matched).sum())) / (1 + SHUFFLES)


@lru_cache(maxsize=4)
def _orders(count: int, seed: int) -> np.ndarray:
    """The permutations of so many examples, (9999, count): where each pair stands in a table (count, count)."""
    rows = np.arange(count)
    return rows * count + np.random.default_rng(seed).permuted(np.tile(rows, (SHUFFLES, 1)), axis=1)


def sign_p(wins: int, losses: int) -> float:
    """The p-value of the exact sign test, one-sided: as many wins or more of wins + losses tosses of a fair coin.

    Of two classifiers' right answers to the same examples it is McNemar's exact test.
    """
    return float(stats.binom.sf(wins - 1, wins + losses, 0.5))


def least_loss(worse: int, better: int, count: int, level: float) -> float:
    """A lower limit of the share of right answers that are lost, wrong in at most a share `level` of samples.

    `worse` of `count` examples went from right to wrong, `better` the other way; the exact limits of Clopper and
    Pearson for both, each at half the level.
    """
    low = stats.beta.ppf(level / 2, worse, count - worse + 1) if worse else 0.0
    high = stats.beta.ppf(1 - level / 2, better + 1, count - better) if better < count else 1.0
    return float(low - high)


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """The expected calibration error (ECE): confidence (N,) in [0, 1] and right (N,) bool -> a share.

    Bins of equal width; in each, how far the mean confidence is from the share of right answers, weighed by its size.
    """
    number = np.minimum((confidence * bins).astype(int), bins - 1)
    sums = np.bincount(number, confidence - right, minlength=bins)
    return float(np.abs(sums).sum() / len(confidence))


def calibrated_error(confidence: np.ndarray, bins: int = BINS, draws: int = 200, seed: int = 0) -> float:
    """The mean ECE of a perfectly calibrated network with these confidences: what so few examples give by chance."""
    random = np.random.default_rng(seed)
    errors = [calibration_error(confidence, random.random(len(confidence)) < confidence, bins) for _ in range(draws)]
    return float(np.mean(errors))
