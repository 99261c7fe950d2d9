"""Two objectives: layers, areas, what is tried next, NSGA-II, and what a search for both leaves."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lab
from lab.acenas import equations as eq
from lab.acenas import fronts, view

from .spaces import chains
from .test_recipe import QUICK, Train, own, run

BOTH = replace(QUICK, scorer="lightgbm", objectives=("accuracy", "blocks"))
points = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30)


def columns(some):
    return tuple(torch.tensor([float(point[k]) for point in some]) for k in (0, 1))


def dominates(a, b) -> bool:
    return a[0] >= b[0] and a[1] <= b[1] and a != b


@given(points)
def test_layers_are_peeled_off_one_by_one(some):
    layer = eq.layers(*columns(some)).tolist()
    left = sorted(set(some))
    for number in range(max(layer) + 1):
        front = {a for a in left if not any(dominates(b, a) for b in left)}
        if len(set(some)) == len(some):  # equal ones lie one layer behind each other
            assert {point for point, at in zip(some, layer, strict=True) if at == number} == front
        elif number == 0:
            assert {point for point, at in zip(some, layer, strict=True) if at == 0} == front
        left = [a for a in left if a not in front]


@given(points)
def test_the_hypervolume_is_the_squares_that_are_dominated(some):
    squares = sum(any(y > i and c <= j for y, c in some) for i in range(1, 9) for j in range(9))
    assert eq.hypervolume(*columns(some), worst_label=1.0, worst_cost=9.0) == pytest.approx(squares)


def test_the_crowding_distance_of_four():
    distance = eq.crowding(torch.tensor([4.0, 0.0, 3.0, 1.0]), torch.tensor([10.0, 0.0, 5.0, 2.0]))
    assert distance.tolist() == pytest.approx([torch.inf, torch.inf, (10 - 2) / 10 + (4 - 1) / 4, 5 / 10 + 3 / 4])


def test_what_is_tried_next_is_the_first_layer_and_lies_apart():
    scores, costs = torch.tensor([9.0, 5.0, 6.0, 7.0, 0.0, 1.0]), torch.tensor([9.0, 1.0, 4.0, 8.9, 5.0, 0.1])
    assert set(fronts.best_spread(costs, scores, range(6), 2)) == {0, 5}  # the ends
    assert set(fronts.best_spread(costs, scores, range(6), 5)) == {0, 1, 2, 3, 5}
    assert 4 in fronts.best_spread(costs, scores, [2, 4, 5], 3)


def test_a_search_for_both_covers_more_than_chance_and_says_how_much():
    outcome = run(replace(BOTH, budget=30))
    covered = outcome.report["hypervolume"]
    assert covered.before < covered.after <= 100 + 1e-9
    assert [step.terms["hypervolume"] for step in outcome.trace] == sorted(
        s.terms["hypervolume"] for s in outcome.trace
    )
    front = outcome.front()
    assert front == outcome.front("blocks") and len(front) > 3
    assert [c for _, c, _ in front] == sorted(c for _, c, _ in front)
    assert [y for *_, y in front] == sorted(y for *_, y in front)


def test_all_that_is_known_covers_all():
    space = chains(labels=chains().truth)
    both = fronts.CostObjective.of(space, range(81), "blocks", [])
    assert both.share(range(81), space.truth.tolist(), space.truth) == pytest.approx(100)
    assert both.share([0], [float(space.truth[0])], space.truth) < 1


@pytest.mark.parametrize("scorer", ["nsga2", "random"])
def test_a_search_without_a_scorer_has_a_front_too(scorer):
    outcome = run(replace(BOTH, scorer=scorer))
    assert len(set(outcome.rows.tolist())) == len(outcome.rows) == 23
    assert 0 < outcome.report["hypervolume"].after <= 100


def test_nsga2_trains_a_generation_together_and_none_twice():
    space, asked = chains(), []

    def evaluate(rows):
        asked.append(list(rows))
        return space.truth[list(rows)].tolist()

    labels = fronts.nsga2(space, range(81), 45, evaluate, 0, costs=space.costs["blocks"])
    assert len(labels) == sum(map(len, asked)) == 45 and len(asked[0]) > 10


def test_the_explorer_draws_the_front_beside_the_tables():
    outcome = run(BOTH)
    explorer = lab.view(outcome)
    assert explorer.cost == "blocks" and "what the front covers" in explorer.frame.svg
    drawn = view.costs(outcome, "blocks")
    assert set(drawn) == {"trained", "front", "the table's front"}
    best = max(y for _, y in drawn["the table's front"])
    assert best == float(chains().truth.max()) and set(drawn["front"]) <= set(drawn["trained"])


def test_without_a_table_the_box_of_what_was_trained_is_the_measure(tmp_path):
    outcome = run(BOTH, own(Train(tmp_path)))
    assert outcome.report["hypervolume"].before is None and 0 < outcome.report["hypervolume"].after <= 100
    assert set(view.costs(outcome, "blocks")) == {"trained", "front"}


@pytest.mark.parametrize(
    "objectives, message",
    [
        (("loss", "blocks"), "what is learned of this space is 'accuracy'"),
        (("accuracy", "latency"), "'latency' this space knows blocks: give one of them"),
        (("accuracy", "b"), "'b' may mean blocks, bytes: give one of them"),
    ],
)
def test_objectives_that_the_space_lacks_are_one_line(objectives, message):
    known = chains().costs["blocks"]
    costs = {"blocks": known, **({"bytes": known} if objectives[1] == "b" else {})}
    with pytest.raises(ValueError, match=message) as caught:
        run(replace(BOTH, objectives=objectives), chains(costs=costs))
    assert "\n" not in str(caught.value)


def test_a_beginning_of_a_costs_name_is_enough():
    assert run(replace(BOTH, objectives=("accuracy", "bl"))).context["objective"] == "blocks"


@pytest.mark.parametrize("objectives", [("accuracy",), "accuracy", ("accuracy", 3), ("a", "b", "c")])
def test_objectives_are_two_names(objectives):
    with pytest.raises(ValueError, match="objectives="):
        lab.AceNAS(objectives=objectives)


def test_nsga2_asks_for_two_objectives():
    with pytest.raises(ValueError, match=r"scorer='nsga2' weighs two objectives: give objectives="):
        lab.AceNAS(scorer="nsga2")


def test_an_outcome_without_a_second_objective_has_no_front_of_its_own():
    with pytest.raises(ValueError, match="give cost, one of blocks"):
        run(replace(QUICK, scorer="random")).front()
