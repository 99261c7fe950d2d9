"""What filters stand for: exact on filters whose meaning is known, beside the same network with fresh weights."""

import numpy as np
import pytest
import torch
from torch import nn

from lab import lens
from lab.core import tasks
from tests.lens.models import Tokens, photograph, pictures, plain, unchanged


class Shown(nn.Module):
    """A network whose filters are what its input holds: the filter is the concept, or a part of it."""

    def __init__(self):
        super().__init__()
        self.maps = nn.Identity()

    def forward(self, x):
        return self.maps(x).mean((2, 3))


def halves(n=6):
    """Pictures whose three channels are the left part, the right part and noise; masks: left, right, both."""
    x, masks = torch.zeros(n, 3, 8, 8), torch.zeros(n, 3, 8, 8, dtype=torch.bool)
    for i in range(n):
        masks[i, 0, i % 4 : i % 4 + 4, :2] = True
        masks[i, 1, i % 3 : i % 3 + 4, 6:] = True
    masks[:, 2] = masks[:, 0] | masks[:, 1]
    x[:, :2] = masks[:, :2].float()
    x[:, 2] = torch.rand(n, 8, 8, generator=torch.Generator().manual_seed(0))
    return x, masks


def test_a_filter_that_is_the_concept_reaches_one():
    x, masks = halves()
    frame = lens.unit_concepts(Shown(), "maps", [(x[:2], masks[:2]), (x[2:], masks[2:])], ("left", "right", "both"),
                               top=8 / 64, progress=False)  # fmt: skip
    assert frame["concept"].tolist()[:2] == ["left", "right"]
    assert frame["iou"].tolist()[:2] == [1.0, 1.0] and frame["iou"][2] < 0.3
    assert (frame["iou"] <= frame["ceiling"] + 1e-9).all()


def test_two_filters_together_are_what_neither_is_alone():
    x, masks = halves()
    frame = lens.concept_sets(Shown(), "maps", [(x, masks)], ("left", "right", "both"), top=8 / 64, progress=False)
    assert frame.loc["left", "filters"] == [0] and frame.loc["both", "filters"] == [0, 1]
    assert frame.loc["both", "iou"] == pytest.approx(0.5) and frame.loc["both", "set_iou"] == 1


def test_iou_is_that_of_a_few_plain_lines():
    model, x, masks = plain(), *halves()
    found = lens.unit_concepts(model, "4", [(x, masks)], "abc", top=0.1, progress=False)
    maps = lens.activations(model, x, ["4"])["4"]
    best = []
    for f in range(12):
        threshold = maps[:, f].flatten().sort(descending=True).values[int(maps[:, f].numel() * 0.1) - 1]
        large = nn.functional.interpolate(maps[:, f : f + 1], size=(8, 8), mode="bilinear")[:, 0] >= threshold
        best.append(max(float((large & m).sum() / (large | m).sum()) for m in masks.transpose(0, 1)))
    assert np.allclose(found["iou"], best)


def test_a_rare_filter_is_strong_where_it_answers_and_a_dead_one_nowhere():
    x, masks = torch.zeros(4, 2, 8, 8), torch.zeros(4, 1, 8, 8, dtype=torch.bool)
    x[0, 0, 2:4, 2:4] = masks[0, 0, 2:4, 2:4] = 1  # 4 of 256 answers, with a quarter asked for
    frame = lens.unit_concepts(Shown(), "maps", [(x, masks)], ["spot"], top=0.25, progress=False)
    assert frame["iou"].tolist() == [1, 0]


@pytest.mark.slow
def test_trained_filters_name_shapes_and_untrained_ones_do_not():
    task = tasks.scenes()
    x, masks, names = tasks.scenes_concepts()
    batches = [(x[:120], masks[:120])]
    before = photograph(task.model)
    frame = lens.unit_concepts(task.model, "layer3.0.relu2", batches, names, progress=False)
    sets = lens.concept_sets(task.model, "layer3.0.relu2", batches, names, progress=False)
    assert unchanged(before, task.model)
    assert (frame["iou"] > 0.04).sum() > 3 * (frame["random"] > 0.04).sum()
    shapes = sets.loc[["circle", "square", "triangle", "cross"]]
    assert shapes["set_iou"].mean() > 2 * shapes["random_set_iou"].mean()
    assert (shapes["set_iou"] > shapes["random_set_iou"]).all() and (shapes["set_iou"] > shapes["iou"]).all()


def test_fresh_weights_are_others_and_the_same_for_a_seed():
    model = nn.Sequential(plain(), nn.MultiheadAttention(4, 2))
    model[0][1].running_mean += 3
    before = photograph(model)
    one, two, other = (lens.with_fresh_weights(model, seed) for seed in (0, 0, 1))
    assert unchanged(before, model)
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name])
    assert not torch.equal(one[0][0].weight, model[0][0].weight)
    assert not torch.equal(one[0][0].weight, other[0][0].weight)
    assert not torch.equal(one[1].in_proj_weight, model[1].in_proj_weight) and not one[0][1].running_mean.any()


def test_concepts_are_dissected_by_a_click():
    x, masks = halves(12)
    names = ("left", "right", "both")
    explorer = lens.dissect(Shown(), "maps", [(x, masks)], names, top=8 / 64, progress=False)
    frame = lens.concept_sets(Shown(), "maps", [(x, masks)], names, top=8 / 64, progress=False)
    assert explorer.set(concept="both").frame.facts == {
        "filters": "0, 1", "IoU": 1.0, "fresh weights": frame.loc["both", "random_set_iou"], "measured on": "6 pictures"
    }  # fmt: skip
    picture = explorer.frame.svg
    assert picture.count("data-set=") == 3 and picture.count("lab-strong") == picture.count("lab-frame") == 6
    assert explorer.set(filters="the best filter").frame.facts["IoU"] == 0.5


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda x, m: lens.unit_concepts(plain(), "4", [], "abc"), "empty: give at least one (x, masks)"),
        (lambda x, m: lens.unit_concepts(plain(), "4", [(x, m)], "ab"), "masks are (6, 3, 8, 8): give (6, 2, H, W)"),
        (lambda x, m: lens.unit_concepts(plain(), "4", [x], "abc"), "no pair (x, masks)"),
        (lambda x, m: lens.unit_concepts(plain(), "10", [(x, m)], "abc"), "gives (6, 3), no feature"),
        (lambda x, m: lens.unit_concepts(plain(), "4", [(x, m)], "abc", top=2, progress=False), "top=2"),
        (lambda x, m: lens.concept_sets(plain(), "4", [(x[:1], m[:1])], "abc", progress=False), "one picture only"),
        (lambda x, m: lens.concept_sets(plain(), "4", [(x, m)], "abc", most=0), "most=0"),
        (lambda x, m: lens.unit_concepts(Tokens(), "head", [(pictures(6), m)], "abc"), "no feature maps"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(act, words):
    with pytest.raises(ValueError) as error:
        act(*halves())
    assert words in str(error.value) and "\n" not in str(error.value)
