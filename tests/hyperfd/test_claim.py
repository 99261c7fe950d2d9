"""The claim as it was measured: what its file says is what the frame says."""

import json

import pandas
import pytest

from lab.core import store
from lab.hyperfd import claim


def test_the_frame_holds_every_order_of_every_recommender():
    rows = claim.contest()
    assert set(rows.groupby("by")["seed"].nunique()) == {10} and set(rows["place"]) == set(range(12))
    figures = json.loads(store.artefact("faces/claim.json").read_text())["figures"]["numbers, tasks 6 to 12"]
    late = rows[rows["place"] >= 5].groupby("by")["regret"].mean()
    assert {by: late[by] for by in figures} == pytest.approx({by: one["mean"] for by, one in figures.items()}, abs=1e-3)


def test_leads_are_of_the_same_orders():
    rows = [
        {"by": by, "seed": seed, "place": place, "regret": regret + seed + place}
        for by, regret in (("hyperfd", 1), ("random", 4))
        for seed in (0, 1)
        for place in (0, 1)
    ]
    rows = pandas.DataFrame(rows)
    found = claim.leads(rows, 1, 1)
    assert list(found.index) == ["hyperfd", "random"]
    assert list(found[claim.MORE]) == ["", "3.0 (3.0 to 3.0)"]
    assert claim.leads(rows, 2, 2).loc["random", "regret"].startswith("5.5 (")
    assert list(claim.paired(rows[::-1])[claim.MORE]) == [3] * 4 + [0] * 4  # whatever the order of the rows
