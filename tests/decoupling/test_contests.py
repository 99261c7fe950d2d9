"""Decoupling's contests: grounds lie on one device, and what is kept is of these settings and can be made again."""

import sys
from pathlib import Path

import pytest
import torch

import lab
from tests.kept import trains_for_minutes, twice, validated

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
try:
    import decoupling as benchmark
    import decoupling_grounds as grounds
finally:
    sys.path.remove(str(ROOT / "benchmarks"))

KEPT = {path.stem.replace("_", "-"): path for path in sorted((ROOT / "data" / "decoupling").glob("*.json"))}
CELLS = {  # one that is quickly made, and how far its learned figures may be on another processor
    "fashion": ("dense trained as long", {"accuracy": 1.5, "on-rate": 0.0}),
}


@pytest.mark.slow
def test_a_ground_holds_the_first_pictures_as_the_network_reads_them():
    on = grounds.fashion(32)
    x, y = next(iter(on.task.batches))
    low, high = on.pixels.low, on.pixels.high
    assert len(on.known[1]) == grounds.KNOWN and len(on.held_out[1]) == 2000
    for pictures in (x, on.known[0], on.held_out[0]):
        assert torch.isclose(pictures.min(), low) and torch.isclose(pictures.max(), high)
    with torch.no_grad():
        right = (on.task.model(on.known[0][:200]).argmax(1) == on.known[1][:200]).float().mean()
    assert y.shape == (len(x),) and right > 0.9


@pytest.mark.slow
def test_enlarged_pictures_are_grey_in_three_channels():
    task = grounds.enlarged_fashion(lab.nets.resnet18(classes=10), 32, 40, "cpu")
    x = task.inputs_of(task.first_batch())
    assert x.shape[1:] == (3, 40, 40) == task.example.shape[1:] and (x[:, 0] == x[:, 2]).all()
    assert 0 <= task.measure(task.model) < 40  # of fresh weights


@pytest.mark.parametrize("name", KEPT)
def test_what_is_kept_is_of_these_settings(name):
    assert validated(KEPT[name], benchmark.CONTESTS[name](False, "cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_a_kept_cell_starts_again_from_the_same_network(name, tmp_path, monkeypatch):
    """Without its training it has lost nothing, and its accuracy is the one that the kept drop is counted from."""
    monkeypatch.setattr(benchmark, "trained", lambda *_: None)
    rival, _ = CELLS[name]
    kept, again = twice(KEPT[name], benchmark.CONTESTS[name](False, "cpu"), rival, 0.6, tmp_path)
    assert again["accuracy drop"] == 0
    assert again["accuracy"] == pytest.approx(kept["accuracy"] + kept["accuracy drop"], abs=0.1)


@pytest.mark.slow
@trains_for_minutes
@pytest.mark.parametrize("name", CELLS)
def test_a_kept_cell_is_made_again(name, tmp_path):
    rival, near = CELLS[name]
    kept, again = twice(KEPT[name], benchmark.CONTESTS[name](False, "cpu"), rival, 0.6, tmp_path)
    for figure, apart in near.items():
        assert again[figure] == pytest.approx(kept[figure], abs=apart)
