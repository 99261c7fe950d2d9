"""GAL's contests: what is kept is of today's settings, and a kept cell can be made again."""

import sys
from pathlib import Path

import pytest

from tests.kept import trains_for_minutes, twice, validated

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
try:
    import gal
    import pruning
finally:
    sys.path.remove(str(ROOT / "benchmarks"))

KEPT = ROOT / "data" / "gal" / "fashion.json"
LONGER = ROOT / "data" / "gal" / "longer.json"


@pytest.mark.slow
def test_what_is_kept_is_of_these_settings():
    assert validated(KEPT, gal.fashion(False)) and validated(LONGER, gal.longer(False))


@pytest.mark.slow
def test_a_quick_look_is_never_taken_for_a_told_cell():
    assert gal.fashion(True).digest != gal.fashion(False).digest


@pytest.mark.slow
def test_a_kept_cell_is_cut_again_to_the_last_channel(tmp_path, monkeypatch):
    monkeypatch.setattr(pruning, "trained", lambda *_: 0.0)
    kept, again = twice(KEPT, gal.fashion(False), "uniform L1", 3, tmp_path)
    for figure in ("macs_ratio", "parameters"):
        assert again[figure] == kept[figure]
    assert again["accuracy_drop"] > kept["accuracy_drop"] + 10  # not trained, as is said


@pytest.mark.slow
@trains_for_minutes
def test_a_kept_cell_is_made_again(tmp_path):
    """What was learned on another processor is near."""
    kept, again = twice(KEPT, gal.fashion(False), "uniform L1", 3, tmp_path)
    assert again["accuracy_drop"] == pytest.approx(kept["accuracy_drop"], abs=1.0)
