"""All assignments of a small network: each leaf of the tree is the network that has these strategies."""

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lab
from lab.core.quantisation.bn_folding import fold_batch_norms
from lab.core.running import running
from lab.core.training import seeded
from lab.dqss.space import StrategySpace

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
try:
    import dqss_exhaustive as exhaustive
finally:
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def ground():
    with seeded(0):
        net, x = exhaustive.network().eval(), torch.randn(8, 1, 28, 28)
    batches = [(x, torch.arange(8) % 10)]
    task = lab.Task(model=net, batches=batches, score=lab.tasks.accuracy(batches))
    recipe = replace(exhaustive.recipe(3, "dqss_safe"), calibration=8, steps=4)
    with running(recipe, task, 0, None, None, progress=False) as run:
        yield exhaustive.Ground(run, recipe)


@pytest.mark.slow
def test_each_leaf_is_the_network_of_its_assignment(ground):
    counts = [len(names) for names in ground.names]
    outputs = list(exhaustive.leaves(ground.space, ground.x))
    every = list(itertools.product(*map(range, counts)))
    assert counts[0] == 1 and len(outputs) == len(every) > 100
    for at in (0, 1, len(every) // 2, len(every) - 1):
        ground.space.set(every[at])
        with torch.no_grad():
            assert torch.allclose(outputs[at], ground.space.graph(ground.x), atol=1e-6)


def test_the_best_of_all_and_of_the_uniform_pairs(ground):
    losses = np.arange(np.prod([len(names) for names in ground.names]), 0, -1.0).reshape([len(n) for n in ground.names])
    best = ground.best("assignment", losses)
    assert best == [len(names) - 1 for names in ground.names]
    assert (
        tuple(ground.best("uniform pair", losses)) in ground.uniform
        and len(ground.uniform) <= len(exhaustive.NAMES) ** 2
    )
    assert exhaustive.behind(losses, tuple(best)) == 0 < exhaustive.behind(losses, (0,) * len(best))


def test_losses_are_of_their_own_pictures():
    wanted, y = torch.randn(6, 10), torch.arange(4)
    z = wanted.clone()
    z[:2] += torch.randn(2, 10)
    sharp, soft, last, right = exhaustive.judged(z, wanted, y)
    assert (
        soft > 0.01
        and sharp > 0.01
        and last == pytest.approx(0, abs=1e-6)
        and right == int((wanted[2:].argmax(1) == y).sum())
    )


@pytest.mark.slow
def test_what_the_search_keeps_is_not_beaten_by_a_uniform_pair_of_its_calibration(ground, tmp_path, monkeypatch):
    monkeypatch.setattr(exhaustive, "HELD_OUT", 20)
    losses = ground.losses(tmp_path / "losses.npz")
    assert set(losses) == {*exhaustive.LOSSES, "right"} and losses["right"].max() <= 20
    found, uniform = (
        losses["calibration"][tuple(at)] for at in (ground.found(), ground.best("uniform pair", losses["calibration"]))
    )
    assert losses["calibration"].min() <= found <= uniform * (1 + 1e-4)


def test_a_network_with_a_branch_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            x = self.a(x)
            return (x + self.b(x)).mean((2, 3))

    with seeded(0):
        graph, x = fold_batch_norms(Twice().eval(), torch.randn(2, 1, 8, 8)), torch.randn(2, 1, 8, 8)
    space = StrategySpace(graph, replace(exhaustive.recipe(4, "dqss_safe"), calibration=2), x)
    with pytest.raises(ValueError, match="no chain"):
        next(exhaustive.leaves(space, x))
