"""GAL's contests: what is kept is of today's settings, and a kept cell can be made again."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
try:
    import contest
    import gal
    import joint
finally:
    sys.path.remove(str(ROOT / "benchmarks"))

KEPT = sorted((ROOT / "data" / "gal").glob("*.json"))
CIFAR = gal.SHARED / "cifar10"
EMBEDDED = ("fashion", "units")


def now(name: str) -> contest.Contest:
    if name not in EMBEDDED and not CIFAR.exists():
        pytest.skip(f"CIFAR-10 is not in {CIFAR}")
    if name == "vgg16" and not (joint.LARGE / "vgg16.safetensors").exists():
        pytest.skip("the VGG-16 that the contest trains first is not here")
    return gal.CONTESTS[name](False)


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_what_is_kept_is_of_these_settings(path):
    kept, here = json.loads(path.read_text()), now(path.stem)
    assert contest.checked(kept["records"]) == kept["records"]
    assert {r["rival"] for r in kept["records"]} <= {*here.rivals}
    assert {r["seed"] for r in kept["records"]} <= {*here.seeds}
    of_data = () if path.stem in EMBEDDED else ("pictures", "start")  # what of CIFAR-10 was at hand
    settings = json.loads(json.dumps(here.settings))
    assert all(kept["settings"][key] == value for key, value in settings.items() if key not in of_data)
    assert of_data or kept["digest"] == here.digest


@pytest.mark.slow
def test_a_kept_cell_is_made_again(tmp_path):
    """The cut is the same to the last channel; what was learned on another processor is near."""
    kept = json.loads((ROOT / "data" / "gal" / "fashion.json").read_text())["records"]
    (record,) = (r for r in kept if (r["budget"], r["rival"], r["seed"]) == (3, "uniform L1", 10))
    again = contest.made(gal.fashion(False), 3, 10, "uniform L1", tmp_path)["figures"]
    for figure in ("macs_ratio", "parameters"):
        assert again[figure] == record["figures"][figure]
    assert again["accuracy_drop"] == pytest.approx(record["figures"]["accuracy_drop"], abs=1.0)
