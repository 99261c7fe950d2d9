"""What GAL's pictures show, as numbers."""

import pytest

import lab
from lab.gal import view
from tests.gal.test_recipe import QUICK, run, small


@pytest.fixture(scope="module")
def outcome():
    return run(lab.GAL(units="channel", **QUICK), small())


def test_the_last_snapshot_shows_the_masks_that_were_found(outcome):
    shown = view.numbers(outcome, len(outcome.history) - 1)
    masks = outcome.masks()
    assert [name for name, _, _ in shown["channel"]] == ["0", "4"]
    for name, kept, entries in shown["channel"]:
        assert (kept, entries) == (int((masks[f"channel {name}"] > 0).sum()), len(masks[f"channel {name}"]))


def test_at_first_everything_is_open(outcome):
    assert all(kept == entries for _, kept, entries in view.numbers(outcome, 0)["channel"])
    assert [row[0] for row in view.closing(outcome)] == [1.0, 1.0]


def test_closing_is_the_open_share_over_time(outcome):
    rows = view.closing(outcome)
    assert len(rows) == 2 and len(rows[0]) == len(outcome.history)
    assert rows[1][-1] == pytest.approx((outcome.history[-1][12:] > 0).float().mean().item())
    assert min(rows[0] + rows[1]) < 1  # something closed


def test_snapshots_stand_at_the_steps_they_were_taken(outcome):
    assert view.steps(outcome) == list(range(outcome.recipe.steps + 1))


def test_the_explorer_moves_through_the_run_in_small_pieces(outcome):
    explorer = lab.view(outcome)
    last = dict(explorer.frame.facts)
    first = dict(explorer.set(step=0).frame.facts)
    assert first == {"channel entries open": 28}
    assert last["channel entries open"] == int((outcome.history[-1] > 0).sum()) < 28
    assert len(explorer.frame.svg.encode()) < 10_000


def test_names_lose_what_they_share():
    assert view._shared_start(["layer1.0", "layer2.0"]) == "layer"
    assert view._shared_start(["a", "b"]) == "" and view._shared_start(["x", "x"]) == "x"
