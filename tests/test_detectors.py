"""Rival detectors: each makes the passes that are told of it, and sees what its paper looks at."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lab.decoupling import detection
from tests.decoupling.test_recipe import QUICK, data, run

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
try:
    import detectors
finally:
    sys.path.pop(0)


PIXELS = detectors.Pixels(torch.full((1, 1, 1), -4.0), torch.full((1, 1, 1), 4.0), 0.1, bits=3)


@pytest.fixture(scope="module")
def known():
    outcome = run(**QUICK, r=0.5, bias=1.0)
    x, y = data()
    few = torch.arange(24)
    return detectors.Known(outcome.decoupled, outcome.seen, x, y, few, x[few].flip(1) * 3, PIXELS, seed=0)


@pytest.mark.parametrize("name", detectors.DETECTORS)
def test_a_detector_makes_the_passes_that_are_told(known, name):
    """Counted on a handful of pictures: calls of the network, and gradients that come to its answers."""
    one, passes = detectors.DETECTORS[name], []
    score = one.learn(known)

    def count(_module, _inputs, output):
        passes.append("forward")
        if output.requires_grad:
            output.register_hook(lambda _: passes.append("backward"))

    with known.decoupled.model.register_forward_hook(count):
        found = score(known.x[:6])
    assert found.shape == (6,) and np.isfinite(found).all()
    assert (passes.count("forward"), passes.count("backward")) == (one.forward, one.backward)


@pytest.mark.parametrize("name", [name for name, one in detectors.DETECTORS.items() if not one.sees])
def test_a_detector_that_sees_no_attack_does_not_look_at_any(known, name):
    from dataclasses import replace

    torch.manual_seed(0)
    first = detectors.DETECTORS[name].learn(known)(known.x[:9])
    torch.manual_seed(0)
    other = detectors.DETECTORS[name].learn(replace(known, altered=torch.zeros(0, *known.x.shape[1:])))(known.x[:9])
    assert (first == other).all()


@pytest.mark.parametrize("name", [name for name, one in detectors.DETECTORS.items() if one.sees])
def test_a_detector_that_has_seen_attacks_knows_them_again(known, name):
    score = detectors.DETECTORS[name].learn(known)
    assert detection.auc(score(known.x[known.few]), score(known.altered)) > 0.9


def test_squeezing_asks_how_far_the_answer_moves(known):
    """Pictures of two levels in blocks that a median leaves alone are not moved; fine noise is."""
    score = detectors.feature_squeezing(known)
    flat = torch.full((1, *known.x.shape[1:]), 4.0)
    assert score(flat)[0] == pytest.approx(0, abs=1e-6)
    model = known.decoupled.model
    noisy = known.x[:4]
    coarse = ((noisy + 4) / 8 * 7).round() / 7 * 8 - 4
    with torch.no_grad():
        moved = (model(coarse).softmax(1) - model(noisy).softmax(1)).abs().sum(1)
    assert (score(noisy) >= moved.numpy() - 1e-6).all() and score(noisy).max() > 0


def test_optimised_gates_are_sparse_and_leave_the_answer(known):
    x = known.x[:8]
    found = torch.from_numpy(detectors.cdrp_gates(known.decoupled, x))
    assert (found >= 0).all() and (found < 0.5).float().mean() > 0.2
    with torch.no_grad():
        as_it_was = known.decoupled.model(x).argmax(1)
        assert torch.equal(detectors._masked(known.decoupled, x, found).argmax(1), as_it_was)
    assert all(p.requires_grad and p.grad is None for p in known.decoupled.model.parameters())


def test_a_sub_architecture_is_a_part_that_knows_its_class(known):
    torch.manual_seed(0)
    masks = detectors.nad_masks(known)
    x, y = known.x[known.few], known.y[known.few]
    share = (masks > 0).float().mean()
    with torch.no_grad():
        right = detectors._masked(known.decoupled, x, (masks[y] > 0).float()).argmax(1) == y
        others = detectors._masked(known.decoupled, x, (masks[(y + 1) % 4] > 0).float()).argmax(1) == y
    assert share < 0.9 and right.float().mean() > 0.8 and right.sum() >= others.sum()


def test_likelihood_is_that_of_independent_bits(known):
    score = detectors.path_likelihood(known)
    x, _ = data()
    seen = detectors.paths.record(known.decoupled, [x[:4]])
    least = 1 / (2 + len(known.reference) / 4)
    expected = []
    for bits, answer in zip(seen.bits, seen.predicted, strict=True):
        on = known.reference.bits[known.reference.labels == answer].mean(0).clip(least, 1 - least)
        expected.append(-np.mean([np.log(p if bit else 1 - p) for bit, p in zip(bits, on, strict=True)]))
    assert score(x[:4]) == pytest.approx(expected)
