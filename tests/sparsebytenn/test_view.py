"""What SparseByteNN's pictures show, as numbers."""

import pytest
import torch

import lab
from lab.sparsebytenn import equations as eq
from lab.sparsebytenn import view
from tests.sparsebytenn.test_recipe import QUICK, run, small


@pytest.fixture(scope="module")
def outcome():
    return run(lab.SparseByteNN(**QUICK), small())


def test_numbers_are_the_retained_shares_of_every_layer(outcome):
    for s in (0, 0.5, 0.9):
        shown = view.numbers(outcome, s)
        assert list(shown) == list(outcome.masks)
        for layer, (came, found) in shown.items():
            S = outcome.saliencies[layer].float()
            assert came == eq.retained(S, 4, s) and found == eq.retained(S[outcome.order(layer)], 4, s)
    came, found = zip(*view.numbers(outcome, outcome.recipe.sparsity).values(), strict=True)
    assert 100 * sum(came) / 3 == pytest.approx(outcome.report["retained magnitude"].before, abs=0.05)  # float16
    assert 100 * sum(found) / 3 == pytest.approx(outcome.report["retained magnitude"].after, abs=0.05)


def test_a_pattern_has_the_share_of_blocks_of_the_slider(outcome):
    for rearranged in (True, False):
        mask = view.pattern(outcome, "4.wide", 0.3, rearranged)
        assert mask.shape == (5, 12) and int((~mask).sum()) == 18
    assert not torch.equal(view.pattern(outcome, "4.wide", 0.5), view.pattern(outcome, "4.wide", 0.5, False))


def test_searches_rise_from_none_to_swaps_where_they_were_searched(outcome):
    for layer in ("4.wide", "6"):
        found = view.searched(outcome, layer)
        at = [found[name][view.SHARES.index(0.5)] for name in view.SEARCHES]
        assert at == pytest.approx(sorted(at), abs=1e-6)
        assert all(curve == sorted(curve, reverse=True) for curve in found.values())


def test_the_explorer_moves_in_small_pieces(outcome):
    explorer = lab.view(outcome)
    assert explorer.sparsity == 0.5
    explorer.set(layer="4.narrow", sparsity=0.9)
    assert explorer.frame.facts["blocks kept"] == "5 of 54"
    for layer in outcome.masks:
        for s in view.SHARES:
            assert len(explorer.set(layer=layer, sparsity=s).frame.svg.encode()) < 10_000


def test_the_explorer_draws_no_numbers_but_its_outcomes_own(outcome, monkeypatch):
    def foreign(name):
        raise AssertionError(f"{name} was measured on another network")

    monkeypatch.setattr(view.store, "artefact", foreign)
    drawn = lab.view(outcome).frame.svg
    assert "MobileNet" not in drawn and "digits" not in drawn
    row = outcome.report["accuracy"]
    scores = f"{row.before:.1f} % dense, {row.after:.1f} % with {outcome.report['sparsity'].after:.2f} % removed"
    assert view.measured(outcome) == {"accuracy": scores} and lab.view(outcome).frame.facts["accuracy"] == scores


def test_a_large_layer_is_shown_in_part():
    mask = torch.rand(64, 256, generator=torch.Generator().manual_seed(0)) > 0.5
    assert view._part(mask) == "16 of 64 groups, 48 of 256 inputs"
    assert len(view._blocks(mask, "kept")) < 5_000


def test_blocks_of_one_row_have_no_order_to_search():
    found = run(lab.SparseByteNN(**QUICK, block=1), small())
    assert all(torch.equal(order, torch.arange(len(order))) for order in found.orders.values())
    shown = view.searched(found, "4.wide")
    assert shown["none"] == shown["swaps"]


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_the_race_shows_every_contender_of_every_network(isa):
    table, picture = view.races(isa), view.race(isa)
    assert table.groupby("network").ratio.max().min() > 1.5  # nine tenths of the blocks gone
    dense = table[table.contender.isin(["onnxruntime, dense", "OpenVINO, dense", "MNN, dense", "engine, 0%"])]
    best = dense.loc[dense.groupby("network").ms.idxmin()]
    assert (best.ratio == 1).all()
    assert (table[table.contender == "engine, 0%"].ratio <= 1).all()  # as notebook 05 says
    half = table[table.contender == "engine, 50%"]
    assert len(half) == 5 and (half.ratio > 1.1).all()
    assert [bar.name for bar in picture.data][3:] == ["engine, dense", "engine, 50 % zeros", "engine, 90 % zeros"]
    assert all(len(bar.y) == 5 for bar in picture.data) and picture.layout.shapes[0].y0 == 1
