"""What DQSS shows: numbers as the run left them, pictures that follow, a click in a real browser."""

import math

import pytest

import lab
from lab.dqss import view
from tests.dqss.test_recipe import QUICK, small_task


@pytest.fixture(scope="module")
def outcome():
    return lab.DQSS(**QUICK).run(small_task(), progress=False)


def test_shares_are_those_of_the_run(outcome):
    tensor = outcome.history["roles"][2]
    state = view.numbers(outcome, tensor, -1)
    for shares in state["shares"].values():
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
    layer, role = tensor.split(", ")
    assert state["kept"][tensor] == outcome.choices[layer][role]
    assert state["losses"]["kept"] == pytest.approx(10 * math.log10(outcome.losses["kept"]))
    assert set(state["noise"]) == set(state["shares"][tensor])


def test_the_picture_follows_its_controls(outcome):
    explorer = lab.view(outcome)
    first = explorer.frame.svg
    assert explorer.set(tensor=outcome.history["roles"][0]).frame.svg != first
    assert dict(explorer.frame.facts)["soft-to-hard gap"] == f"{outcome.gap:.1f} dB"


def test_score_against_cost(outcome):
    eight = lab.DQSS(**QUICK, weight_bits=8, activation_bits=8).run(small_task(), progress=False)
    explorer = view.trade([outcome, eight])
    assert explorer.state == {"bits": 8} and "dqss_safe" in explorer.frame.svg
    assert explorer.frame.facts["bytes"] > explorer.set(bits=4).frame.facts["bytes"]
