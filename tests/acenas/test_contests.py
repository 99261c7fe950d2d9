"""The kept benchmarks: what their files say is what the frames say, and searchers are compared on the same seeds."""

import json

import pandas
import pytest

from lab.acenas import contests
from lab.core import store


@pytest.mark.parametrize("part", contests.PARTS)
def test_every_run_has_a_row(part):
    rows = contests.contest(part)
    assert {"table", "budget", "seed", "by"} <= set(rows.columns) and not rows["by"].isna().any()
    assert not rows.duplicated(["table", "budget", "seed", "by"]).any()


def test_fronts_are_those_of_the_figures():
    kept = json.loads(store.artefact("acenas/fronts.json").read_text())["figures"]
    (figures,) = (one["hypervolume"] for name, one in kept.items() if name.startswith("fronts"))
    table = contests.beside(contests.contest("fronts"), "hypervolume", "acenas", "nsga2")
    for budget, found in figures.items():
        assert table.loc[("cells", int(budget)), "acenas"] == f"{float(found['acenas'].split()[0]):.2f}"


def test_only_seeds_that_both_have_are_compared():
    runs = [("a", 0, 1.0), ("a", 1, 2.0), ("a", 2, 9.0), ("b", 0, 3.0), ("b", 1, 4.0), ("c", 0, 0.0)]
    rows = pandas.DataFrame([{"table": "t", "budget": 5, "by": by, "seed": s, "gap": gap} for by, s, gap in runs])
    (row,) = contests.beside(rows, "gap", "b", "a").to_dict("records")
    assert row == {"seeds": 2, "b": "3.50", "a": "1.50", "first less second": "+2.00 (+2.00 to +2.00)"}


def test_another_part_is_refused_in_one_line():
    with pytest.raises(ValueError, match="part='all': give one of losses, weak labels, fronts"):
        contests.contest("all")


def test_seconds_are_of_every_table_and_budget():
    taken = contests.seconds()
    assert set(taken.index) == set(contests.contest("losses")["table"]) and (taken > 0).all(axis=None)
    assert (taken["encoder, 40"] > taken["trees, 40"]).all()
