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
    import imagenet
    import sparsebytenn_accuracy as accuracy
    import sparsebytenn_int8
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


# -- ImageNet's sample -------------------------------------------------------------------------------------------------

SAMPLE = ROOT / "data" / "sparsebytenn" / "imagenet.json"
at_hand = pytest.mark.skipif(not imagenet.FOLDER.exists(), reason="ImageNet's sample is not at hand")


def test_without_labels_a_pattern_is_trained_by_the_dense_network_alone():
    x = small().batches.dataset.tensors[0]
    pattern = fine.Pattern(fine.two_of_four, 0.5)
    model, layers, *_ = fine.trained(RECIPE, small(batches=[x]), 3, pattern)
    assert layers and all((model.get_parameter(f"{name}.weight") == 0).any() for name in layers)


def test_norms_are_put_back_without_a_change():
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.ReLU6(), torch.nn.Conv2d(8, 8, 3, 1, 1, groups=8)]
    net = torch.nn.Sequential(*layers, torch.nn.ReLU6(), torch.nn.Conv2d(8, 6, 1), torch.nn.Flatten()).eval()
    net[0].weight.data[2], x = 0, torch.randn(4, 3, 8, 8)  # a channel that does not vary
    made = imagenet.normed(net, x)
    assert sum(isinstance(part, torch.nn.BatchNorm2d) for part in made) == 3
    torch.testing.assert_close(made(x), net(x), atol=1e-5, rtol=1e-5)
    raw = made[0](x)
    torch.testing.assert_close(made[1].running_mean, raw.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    assert torch.allclose(raw.std((0, 2, 3))[[0, 1, 3]], torch.ones(3), rtol=1e-3)


def test_the_kept_sample_is_of_these_settings():
    records = validated(SAMPLE, accuracy.imagenet(False))
    assert {r["rival"] for r in records} >= {"blocks of 4", "single weights"}
    for record in records:
        share = 0 if record["rival"] == accuracy.DENSE else 100 * record["budget"]
        assert record["figures"]["sparsity"] == pytest.approx(share, abs=0.1)


@pytest.mark.slow
@at_hand
def test_the_sample_starts_from_a_network_that_knows_its_pictures():
    task, held_out = accuracy.sample(accuracy.FEW), imagenet.pictures(imagenet.HELD_OUT[::20])
    x, y = held_out[torch.arange(len(held_out))]
    same = imagenet.mobilenet()(x)
    torch.testing.assert_close(task.model(x), same, atol=1e-3, rtol=1e-3)
    assert 70 < 100 * float((same.argmax(1) == y).float().mean()) < 100
    assert task.labels_of(task.first_batch()) is None and len(task.first_batch()[0]) == accuracy.FEW


@pytest.mark.parametrize("share", sparsebytenn_int8.SHARES)
def test_the_trained_masks_are_those_of_mobilenet(share):
    kept = sparsebytenn_int8.masks(share)
    assert [tuple(4 * n for n in M.shape) for M in kept][::6] == [(64, 32), (512, 512), (1024, 1024)]
    assert len(kept) == 13 and all(int((~M).sum()) == round(share * M.numel()) for M in kept)
