"""What views show is what was found."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

import lab
from lab.acenas import view

from .spaces import chains
from .test_recipe import QUICK, Train, own, run


@pytest.fixture(scope="module")
def outcome():
    return run()


def test_ranks_of_a_round(outcome):
    points = view.numbers(outcome, 0)
    assert len(points["ten best predicted"]) == 10
    assert sorted(x for found in points.values() for x, _ in found) == list(
        range(1, 82)
    )  # a small space is drawn whole
    best = int(outcome.scores[0].argmax())
    true = 1 + int((chains().truth > chains().truth[best]).sum())
    assert any(
        x == 1 and y <= true + 3 for x, y in points["ten best predicted"]
    )  # equal truths share a rank in name only


def test_the_explorer_follows_its_slider(outcome):
    explorer = lab.view(outcome)
    assert explorer.round == 2 and "picked" in repr(explorer)
    explorer.round = 1
    assert "trained 10" in repr(explorer) and "picked" not in repr(explorer)


def test_costs_and_front(outcome):
    found = view.costs(outcome, "blocks")
    assert len(found["trained"]) == len(outcome.rows) and set(found["front"]) <= set(found["trained"])
    with pytest.raises(ValueError, match="cost='ms': this space knows blocks"):
        outcome.front("ms")


@pytest.mark.slow
def test_without_a_table_only_what_was_trained_has_a_rank(tmp_path):
    outcome = run(space=own(Train(tmp_path)))
    found = view.numbers(outcome, 1)
    assert sum(map(len, found.values())) == 20
    assert "ndcg" not in repr(lab.view(outcome))


def test_a_graph_is_drawn_without_what_does_nothing():
    operators = ["input", "conv", "none", "skip", "output"]
    drawn = view.graph([[operators, [[0, 1], [0, 2], [0, 3], [1, 4], [2, 4]]]], "a cell")
    assert "conv" in drawn and "none" not in drawn and ">skip<" not in drawn  # it leads nowhere


def test_curves_have_bands():
    rows = [
        {"scorer": s, "budget": b, "seed": i, "ndcg10": torch.rand(1).item()}
        for s in "ab"
        for b in (20, 40)
        for i in range(3)
    ]
    figure = view.curves(pd.DataFrame(rows))
    assert len(figure.data) == 4 and figure.data[1].name == "a" and list(figure.data[1].x) == [20, 40]
    with pytest.raises(ValueError, match="no column 'tau'"):
        view.curves(pd.DataFrame(rows), "tau")


def test_intervals_are_drawn_from_the_top():
    (marks,) = view.intervals({"first": [1.0, 3.0], "second": [5.0]}, "points").data
    assert list(marks.y) == ["second", "first"] and list(marks.x) == [5.0, 2.0]
    assert marks.error_x.array[0] == 0 < marks.error_x.array[1]


@pytest.mark.slow
def test_settings_are_those_of_the_table():
    assert lab.view(run(QUICK)).spec is not None


def test_a_search_explains_its_pick_beside_what_chance_finds(outcome, tmp_path):
    explanation = outcome.explain()
    assert len(explanation.save(tmp_path / "page.html").read_bytes()) < 500_000
    numbers = explanation.to_dict()
    truth = chains().truth
    picked = truth[chains().names.index(outcome.pick)]
    assert numbers["The pick"]["true rank"] == 1 + int((truth > picked).sum())
    assert [row["predicted rank"] for row in numbers["Its alternatives"]] == list(range(1, 11))
    assert numbers["The search"]["best so far"][-1] == pytest.approx(float(picked))
    draws = [truth[torch.randperm(81)[:23]].max() >= picked for _ in range(400)]
    assert view.as_good(outcome) == pytest.approx(sum(map(float, draws)) / 400, abs=0.1)
    assert "keeps none of their networks" in repr(explanation)
    with pytest.raises(TypeError, match="of a search takes no 'most'"):
        outcome.explain(most=3)


def test_a_pick_and_scores_that_are_no_better_than_chance_raise_alarms(outcome):
    worst = chains().names[int(chains().truth.argmin())]
    spoiled = replace(outcome, scores=-outcome.scores, pick=worst, rows=outcome.rows.clone())
    spoiled.rows[-1] = int(chains().truth.argmin())
    assert [check.name for check in view._checks(spoiled) if check.alarm] == ["a random search", "order of the scores"]
    assert not [check.name for check in view._checks(outcome) if check.alarm]
