"""The contest of chains at equal bytes: what is kept is of these settings, and a cell of it can be made again."""

import sys
from pathlib import Path

import pytest

from tests.kept import twice, validated

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
try:
    import chains
finally:
    sys.path.remove(str(ROOT / "benchmarks"))

KEPT = ROOT / "data" / "chains" / "bytes.json"


def test_what_is_kept_is_of_these_settings():
    now = chains.at_equal_bytes(False)
    records = validated(KEPT, now)
    assert {r["seed"] for r in records} == {*now.seeds} and {r["budget"] for r in records} == {*chains.BITS}


def test_rivals_have_the_bytes_of_quantisation_alone():
    """Within 3 %; where pruning alone cannot get so low, it has no cell."""
    records = validated(KEPT, chains.at_equal_bytes(False))
    room = {r["budget"]: r["figures"]["bytes"] for r in records if r["rival"] == "quantise alone"}
    assert sorted(room) == sorted(chains.BITS)
    for record in records:
        assert record["figures"]["bytes"] == pytest.approx(room[record["budget"]], rel=0.03), record["rival"]


@pytest.mark.slow
def test_a_kept_cell_is_made_again(tmp_path):
    kept, again = twice(KEPT, chains.at_equal_bytes(False), "prune, then 8 bits", 6, tmp_path)
    assert again["bytes"] == pytest.approx(kept["bytes"], rel=0.002)
    assert again["accuracy_drop"] == pytest.approx(kept["accuracy_drop"], abs=1.5)
