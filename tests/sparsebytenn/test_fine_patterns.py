"""The rivals of the accuracy contest: masks of other shapes, trained as the recipe trains."""

import sys
from pathlib import Path

import pytest
import torch

import lab
from tests.kept import twice, validated

from .test_recipe import small

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
try:
    import contest
    import fine_patterns as fine
    import sparsebytenn_accuracy as accuracy
finally:
    sys.path.remove(str(ROOT / "benchmarks"))

RECIPE = lab.SparseByteNN(sparsity=0.5, block=1, steps=12, regroup_every=2)


@pytest.mark.slow
def test_single_weights_are_the_recipes_own_network_bit_for_bit():
    theirs = RECIPE.run(small(), seed=3, progress=False)
    model, layers, lost, kept = fine.trained(RECIPE, small(), 3, fine.Pattern(fine.single_weights, 0.5))
    assert contest.fingerprint(model) == contest.fingerprint(theirs.model) and layers == list(theirs.masks)
    assert lost == -theirs.report["accuracy"].change
    assert 100 * kept == pytest.approx(theirs.report["retained magnitude"].after)


def test_two_of_four_inputs_stay_whatever_they_weigh():
    S = torch.tensor([[0.5, 2, 3, 4, 9, 8, 7, 6, 0.1], [5, 5, 5, 5, 1, 9, 1, 9, 0.1]])
    M = fine.two_of_four(S, 0.5)
    assert M.tolist() == [
        [False, False, True, True, True, True, False, False, True],
        [False, False, True, True, False, True, False, True, True],
    ]
    assert int((~fine.two_of_four(S, 2 / 18)).sum()) == 2  # the smallest of those that may go
    assert not fine.two_of_four(S, 2 / 18)[0, 0]


def test_a_block_of_a_row_goes_as_one():
    S = torch.tensor([[1.0, 1, 1, 1, 5, 5, 5, 5], [3, 3, 3, 3, 2, 2, 2, 2]])
    assert fine.one_by(4)(S, 0.5).tolist() == [[False] * 4 + [True] * 4, [True] * 4 + [False] * 4]


def test_searched_inputs_keep_more_and_stay_in_their_places():
    S = torch.tensor([[9.0, 0, 9, 0, 9, 0, 9, 0], [0, 9, 0, 9, 0, 9, 0, 9]])
    plain, searched = fine.Pattern(fine.one_by(4), 0.5), fine.Pattern(fine.one_by(4), 0.5, block=4)
    for pattern in (plain, searched):
        pattern.regroup("layer", S)
    assert torch.equal(searched.stays("layer", S, 0.5), S > 0) and searched.retained({"layer": S}) == 1
    assert plain.retained({"layer": S}) == pytest.approx(0.5)


@pytest.mark.slow
@pytest.mark.parametrize("mask", [fine.two_of_four, fine.one_by(4)])
def test_a_trained_network_has_the_zeros_of_its_pattern(mask):
    pattern = fine.Pattern(mask, 0.5, block=4 if mask is not fine.two_of_four else 1)
    model, layers, *_ = fine.trained(RECIPE, small(), 3, pattern)
    for name in layers:
        W = model.get_parameter(f"{name}.weight")
        stays = W.flatten(2).abs().sum(2) > 0 if W.dim() > 2 else W != 0
        order = pattern.orders[name]
        whole = stays[:, order][:, : len(order) // 4 * 4].reshape(len(stays), -1, 4).sum(2)
        assert set(whole.unique().tolist()) <= ({2} if mask is fine.two_of_four else {0, 4})


KEPT = ROOT / "data" / "sparsebytenn" / "fashion.json"


def test_the_kept_contest_is_whole_and_of_these_settings():
    now = accuracy.fashion(False)
    cells = {(r["rival"], r["budget"], r["seed"]) for r in validated(KEPT, now)}
    seeds = {seed for _, _, seed in cells}
    assert len(seeds) > 1 and seeds <= {*now.seeds}
    wanted = {(r, b, s) for r in now.rivals for b in now.only.get(r, now.budgets) for s in seeds}
    assert cells == wanted


@pytest.mark.slow
def test_a_kept_cell_is_made_again(tmp_path):
    """Learned figures differ a little from processor to processor, counted ones do not."""
    kept, again = twice(KEPT, accuracy.fashion(False), "blocks of 4", 0.5, tmp_path)
    for name in ("macs_ratio", "sparsity"):
        assert again[name] == pytest.approx(kept[name])
    assert again["retained"] == pytest.approx(kept["retained"], abs=0.5)
    assert again["accuracy_drop"] == pytest.approx(kept["accuracy_drop"], abs=1.0)
