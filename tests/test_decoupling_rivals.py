"""Decoupling's rivals have its on-rate layer by layer, start and steps; detectors are given the same pictures."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import lab
from lab.core.tasks import digits_data
from lab.decoupling.layers import recording

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
try:
    import decoupling as benchmark
    import detectors
finally:
    sys.path.pop(0)

RECIPE = lab.Decoupling(steps=2, bias=1.0)


@pytest.fixture(scope="module")
def ground():
    task, (x, y, x_held_out, y_held_out) = lab.tasks.digits(), digits_data()
    low, high = (torch.full((1, 1, 1), value) for value in (-0.5, 0.5))
    pixels = detectors.Pixels(low, high, 0.2, bits=2)
    return benchmark.Ground(task, (x[:200], y[:200]), (x_held_out, y_held_out), pixels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "contest"


@pytest.fixture
def bits(ground, monkeypatch):
    """What the gates of a rival let through when its accuracy is taken: the share of each layer, picture by picture."""
    shares = []

    def accuracy(task, model):
        with recording(model) as records, torch.no_grad():
            model(ground.held_out[0][:40])
        shares.extend(record[0].z.mean(1) for record in records)
        return {"accuracy": 0.0, "accuracy drop": 0.0}

    monkeypatch.setattr(benchmark, "accuracy", accuracy)
    return shares


@pytest.mark.slow
@pytest.mark.parametrize("make", [benchmark.random_gates, benchmark.static_filters])
def test_a_rival_has_as_many_filters_of_each_layer_on(ground, folder, bits, make):
    _, figures = make(ground, RECIPE, 0.6, 0, folder)
    outcome, seen = benchmark.judged_paths(ground, RECIPE, 0, folder)
    rates = benchmark.on_rates(ground.task, outcome, seen)
    assert len(bits) == len(rates)
    for share, rate, size in zip(bits, rates, (16,) * 6 + (32,) * 6 + (64,) * 6, strict=True):
        assert share.unique().tolist() == pytest.approx([round(rate * size) / size])
    assert figures["on-rate"] == pytest.approx(sum(rates) / len(rates))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_outcome_from_the_folder(ground, folder):
    first = benchmark.decoupled_by(ground, RECIPE, 0, folder)
    again = benchmark.decoupled_by(ground, RECIPE, 0, folder)
    weights = first.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.slow
def test_detectors_are_shown_what_is_misread_only(ground, folder):
    outcome = benchmark.decoupled_by(ground, RECIPE, 0, folder)
    known, clean, altered = detectors.altered_pictures(
        outcome.decoupled, ground.known, ground.held_out, ground.pixels, judged=30, seed=0
    )
    model: nn.Module = outcome.model
    with torch.no_grad():
        right = model(known.x[known.few]).argmax(1)
        answers = model(clean).argmax(1)
        for x in altered.values():
            assert len(x) <= len(clean) == 30
            nearest = (x[:, None] - clean[None]).abs().flatten(2).amax(2).min(1)
            assert (nearest.values <= 0.2 + 1e-6).all()
            assert (model(x).argmax(1) != answers[nearest.indices]).all()
    assert torch.equal(right, known.y[known.few]) and known.few.unique().numel() == len(known.few)
