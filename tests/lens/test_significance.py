"""Exact tests against values known by hand, and the rate at which they are wrong by chance."""

import numpy as np
import pytest
from scipy import stats

from lab.lens.significance import calibrated_error, calibration_error, least_loss, permutation_p, sign_p


def test_pairs_that_belong_together_are_told_from_random_ones():
    random = np.random.default_rng(0)
    assert permutation_p(np.eye(12)) == 1 / 10_000
    assert permutation_p(np.ones((12, 12))) == 1.0
    assert permutation_p(-np.eye(12)) > 0.3
    ps = [permutation_p(random.normal(size=(8, 8))) for _ in range(100)]
    assert stats.kstest(ps, "uniform").pvalue > 0.01


def test_signs_are_those_of_a_fair_coin():
    assert sign_p(5, 0) == pytest.approx(1 / 32)
    assert sign_p(0, 0) == 1.0
    assert sign_p(8, 2) == pytest.approx(stats.binomtest(8, 10, alternative="greater").pvalue)


def test_a_loss_is_overstated_no_more_often_than_said():
    random, level, lost = np.random.default_rng(0), 0.05, 0.1
    limits = [least_loss(*random.multinomial(200, (0.15, 0.05, 0.8))[:2], 200, level) for _ in range(400)]
    assert np.mean(np.array(limits) > lost) <= level
    assert least_loss(0, 0, 50, level) < 0 < least_loss(50, 0, 50, level) < 1


def test_calibration_by_hand():
    sure, right = np.array([0.9, 0.9, 0.6, 0.6]), np.array([True, True, False, True])
    assert calibration_error(sure, right, bins=10) == pytest.approx((abs(1.8 - 2) + abs(1.2 - 1)) / 4)
    assert calibration_error(np.ones(3), np.ones(3, bool)) == 0
    assert 0 < calibrated_error(np.full(100, 0.7)) < 0.1
