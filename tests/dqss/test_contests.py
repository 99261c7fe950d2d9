"""DQSS's contests: what is judged is apart from what is calibrated on, and kept cells can be made again."""

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.kept import twice, validated

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
try:
    import contest
    import dqss
    import ort_static
finally:
    sys.path.remove(str(ROOT / "benchmarks"))

KEPT = {name: ROOT / "data" / "dqss" / f"{name}.json" for name in ("exhaustive",)}
CELLS = {  # one that is quickly made, and its learned figures
    "exhaustive": ("4 bits", "best uniform pair for the calibration", ("accuracy", "held_out_behind")),
}


@pytest.mark.slow
@pytest.mark.parametrize("fresh", [True, False])
def test_no_picture_is_calibrated_on_and_judged(fresh):
    task = dqss.ground("cpu", fresh)
    judged = dqss.held_out(dqss.PICTURES)[0].flatten(1)
    x = next(iter(task.batches))[0].flatten(1)
    assert float(torch.cdist(x[:32], judged).min()) > 0.1
    assert len(x) > 32 and task.measure(task.model) > 90


@pytest.mark.slow
def test_onnxruntimes_network_has_a_hash_of_its_own():
    task = dqss.ground("cpu")
    pictures = [next(iter(task.batches))[0][:8]]
    networks = [ort_static.deployed(task, pictures, method) for method in ("MinMax", "Percentile")]
    assert len({contest.fingerprint(network) for network in networks}) == 2
    assert all(dqss.lost(task, network) < 20 for network in networks)  # thousandths


@pytest.mark.parametrize("name", KEPT)
def test_what_is_kept_is_of_these_settings(name):
    assert validated(KEPT[name], getattr(dqss, name)(False))


@pytest.mark.slow
@pytest.mark.parametrize("name", KEPT)
def test_a_kept_cell_is_made_again(name, tmp_path):
    """Another processor trains another network from the same seed: it lies where those of the kept seeds do."""
    budget, rival, learned = CELLS[name]
    _, again = twice(KEPT[name], getattr(dqss, name)(False), rival, budget, tmp_path)
    rows = json.loads(KEPT[name].read_text())["summary"]
    (row,) = (row for row in rows if (row["rival"], row["budget"]) == (rival, budget))
    for figure in learned:
        assert again[figure] == pytest.approx(row[figure], abs=3 * row[f"{figure} sd"])
