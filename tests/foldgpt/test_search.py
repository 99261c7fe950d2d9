"""The search over both moves: what it measures, what it may do, and that it keeps a budget."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lab
from lab.foldgpt.folding import Fold, Sizes, removed
from lab.foldgpt.ranking import loss
from lab.foldgpt.search import (
    FoldMove,
    FoldSearch,
    blocks_saved,
    fitting,
    of_each_depth,
    order,
    promising,
    saver,
    searched,
    steps_from,
)
from lab.foldgpt.sharing import inputs_seen, put, shared, weights

from .small import model, tokens
from .test_recipe import idle, told

X = (tokens(4, 16),)
WHOLE = Fold(tuple(range(6)), (), 2)


def search(net, goal: float = 0.1, unit: str = "bytes", batches=X) -> FoldSearch:
    return FoldSearch(
        model=net, batches=batches, saved=saver(Sizes.of(net), unit), goal=goal, rank=2, representative="regression",
        start="activations", seen=inputs_seen(net, range(6), batches), sharing=unit == "bytes",
    )  # fmt: skip


@st.composite
def folds(draw):
    """A fold of six blocks that a search can come to."""
    fold = WHOLE
    for _ in range(draw(st.integers(0, 4))):
        fold = draw(st.sampled_from([nearby for nearby, _ in steps_from(fold, True)] or [fold]))
    return fold


@given(folds())
def test_a_step_saves_more_and_stays_a_fold(fold):
    for nearby, run in steps_from(fold, True):
        assert blocks_saved(nearby, 6) > blocks_saved(fold, 6) and nearby.kept
        members = [block for group in nearby.groups for block in group]
        assert len(members) == len({*members}) and {*members} <= {*nearby.kept}
        layers = [[nearby.kept.index(block) for block in group] for group in nearby.groups]
        assert all(b - a == 1 for group in layers for a, b in pairwise(group)) and all(len(g) <= 4 for g in layers)
        assert len(run) == 1 or run in nearby.groups
    assert all(len(run) == 1 for _, run in steps_from(fold, False))


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # a block of the second stands the other way round
def test_what_is_measured_is_the_loss_of_the_fold_itself(family):
    net = model(family)
    before = [p.clone() for p in net.parameters()]
    fold = Fold((0, 2, 3, 4), ((2, 3, 4),), rank=2)
    made = shared(net, fold, "regression", "activations", X)
    assert search(net).loss(fold) == pytest.approx(loss(made, X), rel=1e-4)
    assert search(net).loss(Fold((0, 2, 5))) == pytest.approx(loss(removed(net, (0, 2, 5)), X), rel=1e-5)
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))
    assert loss(net, X) == search(net).loss(WHOLE)


def test_adapters_of_full_rank_take_back_all_that_sharing_took():
    net = model("llama")
    whole, fold = loss(net, X), Fold(WHOLE.kept, ((1, 2, 3),), 32)
    assert search(net).loss(fold) == pytest.approx(whole, rel=1e-4)
    assert abs(search(net).loss(replace(fold, rank=2)) - whole) > 1e-3 * whole


def test_the_block_that_does_nothing_is_the_one_to_go():
    net, x = idle(4)
    gone, moves = searched(search(net, goal=0.05, batches=(x,)))
    assert gone.kept == (0, 1, 2, 3, 5) and not gone.groups and gone.rank == 0
    assert min(moves, key=lambda move: move.loss).blocks in {(4,), (3, 4), (4, 5)}


def test_equal_neighbours_are_the_ones_to_share():
    net = model("llama")
    put(net.model.layers[3], weights(net.model.layers[2]))
    with torch.no_grad():
        net.lm_head.weight.mul_(20.0)  # sure of what it says, so that any other change costs much
        x = tokens(4, 1)
        for _ in range(15):
            x = torch.cat([x, net(x).logits[:, -1:].argmax(-1)], 1)
    fold, moves = searched(replace(search(net, goal=0.05, batches=(x,)), rank=0))
    assert fold == Fold(WHOLE.kept, ((2, 3),), 0)
    alone = {move.blocks: move.loss for move in moves}
    assert alone[2, 3] == pytest.approx(loss(net, (x,)), rel=1e-4)


@pytest.mark.parametrize("unit", ["bytes", "operations"])
def test_a_budget_is_kept_and_used(unit):
    net = model("llama")
    fold, moves = searched(search(net, goal=0.3, unit=unit), tried=2)
    saved = saver(Sizes.of(net), unit)
    assert 0.3 <= saved(fold)
    if unit == "operations":  # sharing saves none
        assert not fold.groups and {move.kind for move in moves} == {"remove"}
        assert saved(fold) == pytest.approx(1 - len(fold.kept) / 6)
    else:
        made = shared(net, fold, "regression", "activations", X)
        assert 1 - sum(p.numel() for p in made.parameters()) / Sizes.of(net).P0 == pytest.approx(saved(fold))


def test_what_a_budget_leaves_goes_to_the_adapters():
    net = model("llama")
    fold = Fold((0, 2, 3, 4, 5), ((2, 3),), 1)
    wanted = search(net, goal=0.2)
    rank = fitting(wanted, fold)
    assert wanted.saved(replace(fold, rank=rank)) >= 0.2 > wanted.saved(replace(fold, rank=rank + 1))
    assert fitting(wanted, Fold((0, 2, 3), (), 1)) == 0
    assert fitting(wanted, Fold((0, 2, 3, 4, 5), (), 1)) is None  # one block in six is less than a fifth of all bytes


def test_a_share_that_is_not_a_binary_number_takes_no_block_more():
    fold, _ = searched(search(model("llama"), goal=1 / 6, unit="operations"), tried=1)
    assert len(fold.kept) == 5


def test_more_than_there_is_cannot_be_saved():
    with pytest.raises(ValueError, match=r"no fold saves 0\.95 of the model: lower removal"):
        searched(search(model("llama"), goal=0.95), tried=1, beam=1)


def test_moves_that_cost_least_for_each_block_are_tried_first():
    gains = {(b,): 1.0 for b in range(6)} | {(1, 2): 0.2, (1, 2, 3): 0.5, (4, 5): 0.6}
    runs = [run for _, run in promising(WHOLE, {**{(k, k + 1): 2.0 for k in range(5)}, **gains}, 3, True)]
    assert runs == [(0,), (1,), (2,), (1, 2), (1, 2, 3), (4, 5)]


@given(st.dictionaries(folds(), st.tuples(st.floats(0, 9), st.floats(0, 9)), max_size=8), st.integers(1, 3))
def test_each_depth_has_its_own_best_fold(measured, beam):
    class Known:
        def sure(self, fold):
            return measured[fold][1]

    best = of_each_depth(Known(), {fold: value for fold, (value, _) in measured.items()}, beam)
    assert [len(fold.kept) for fold in best] == sorted({len(fold.kept) for fold in measured})[:beam]
    for fold in best:
        alike = [other for other in measured if len(other.kept) == len(fold.kept)]
        close = sorted(alike, key=lambda other: measured[other][0])[:3]  # on the first batches
        assert fold in close and measured[fold][1] == min(measured[other][1] for other in close)


def test_removals_come_first_and_a_group_saves_the_rest(monkeypatch):
    def cost(_, fold):  # before a cure two removals cost forty times what two pairs do
        return (6 - len(fold.kept)) ** 2 + 0.1 * sum(len(group) - 1 for group in fold.groups)

    monkeypatch.setattr(FoldSearch, "loss", cost)
    monkeypatch.setattr(FoldSearch, "sure", cost)
    wanted = search(model("llama"), goal=0.3)
    fold, _ = searched(wanted)
    shares = Fold(WHOLE.kept, ((0, 1, 2), (3, 4, 5)), 2)
    assert wanted.saved(shares) >= 0.3 and cost(None, shares) < cost(None, fold)  # and yet:
    assert len(fold.kept) == 5 and fold.groups and fold.rank == fitting(wanted, fold)


def test_blocks_that_went_come_first_in_the_order():
    moves = [FoldMove((b,), value) for b, value in enumerate((3.0, 1.0, 2.0, 0.5))] + [FoldMove((0, 1), 0.1)]
    assert order(Fold((0, 1, 3)), moves) == (2, 3, 1, 0)


def test_the_best_are_measured_on_more_text_than_all_are():
    net, batches = model("llama"), tuple(tokens(4, k) for k in range(8, 14))
    wanted = search(net, goal=0.2, batches=batches)
    assert wanted.loss(WHOLE) == pytest.approx(loss(net, batches[:4])) != pytest.approx(loss(net, batches))
    assert wanted.sure(WHOLE) == pytest.approx(loss(net, batches))


def test_a_run_with_a_budget_saves_it_and_keeps_what_was_measured(tmp_path):
    outcome = lab.FoldGPT(ranking="bytes", removal=0.2, rank=1, cure_steps=0).run(
        told(model("llama"), X[0]), progress=False
    )
    size = outcome.report["parameters"]
    assert size.after <= 0.8 * size.before and len(outcome.moves) > 6 and sorted(outcome.ranking) == list(range(6))
    outcome.save(tmp_path)
    again = lab.load(tmp_path)
    assert again.moves == outcome.moves and again.recipe == outcome.recipe and again.fold == outcome.fold
