"""The lens's explorers: what they show, how fast (in time of the processor), how large, and what a click does."""

import io
import json
import re
import time
from base64 import b64decode
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import lab
from lab import lens
from lab.core import tasks
from lab.lens.comparison import matched
from lab.lens.weights import kernels
from tests.lens.models import Functional, Reused, Tokens, photograph, pictures, plain, unchanged


def pressed(explorer):
    """What every part of the picture that can be clicked sets, and those that are pressed."""
    found = re.findall(r'data-set="([^"]*)" aria-pressed="([a-z]*)"', explorer.frame.svg)
    sets = [(json.loads(text.replace("&quot;", '"')), state == "true") for text, state in found]
    return [one for one, _ in sets], [one for one, on in sets if on]


def whole(explorer):
    """Every picture of a frame parses, and none is too large."""
    pieces = re.findall(r"<svg\b.*?</svg>", explorer.frame.svg, re.DOTALL)
    for piece in pieces:
        ElementTree.fromstring(piece)
    assert "".join(pieces) == explorer.frame.svg and len(explorer.frame.svg) < 100_000
    return pieces


def test_the_atlas_shows_a_layer_at_a_time():
    model = plain()
    before = photograph(model)
    explorer = lens.atlas(model, pictures(2))
    assert unchanged(before, model)
    layers = [one["layer"] for one in pressed(explorer)[0]]
    assert layers == [str(k) for k in range(8)]  # up to dropout; a pool to one pixel has no maps
    explorer.set(layer="4", image=1)
    assert pressed(explorer)[1] == [{"layer": "4"}]
    assert repr(explorer).startswith(
        "Explorer(layer='4', page=1, image=1, scale='one for the layer' | filters 12, map 5 x 4"
    )
    whole(explorer)
    whole(explorer.set(scale="each map its own"))


def test_a_segmentation_shows_labels_and_what_is_named_in_the_classes_colours():
    y = torch.tensor([[[0, 1], [2, -100]]]).repeat(8, 1, 1)
    x = nn.functional.one_hot(y.clamp(min=0), 3).permute(0, 3, 1, 2).float()
    colours = ("#ff0000", "#00ff00", "#0000ff")
    explorer = lens.segmentation({"itself": nn.Identity(), "turned": nn.Conv2d(3, 3, 1)}, x, y, colours)
    whole(explorer.set(page=2))
    assert explorer.frame.facts["pixels right, itself"] == "100.0%"
    sources = re.findall(r'href="data:image/png;base64,([^"]*)"', explorer.frame.svg)
    assert len(sources) == 4 * 2  # pictures, labels and two networks; two of eight pictures are left for page 2
    labels, named = (np.asarray(Image.open(io.BytesIO(b64decode(sources[k]))).convert("RGB")) for k in (2, 4))
    assert named.tolist() == [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 0, 0]]]
    assert (labels[:1] == named[:1]).all() and len(set(labels[1, 1])) == 1  # what does not count is grey
    with pytest.raises(ValueError, match="colours: 2 for classes 0 to 2: give 3"):
        lens.segmentation({"itself": nn.Identity()}, x, y, colours[:2])


def test_two_thousand_filters_are_paged_within_a_fifth_of_a_second():
    explorer = lens.atlas(nn.Sequential(nn.Conv2d(3, 2048, 1)), pictures(1, height=28, width=28))
    times = []
    for page in (2, 17, 32):
        start = time.process_time()
        explorer.page = page
        times.append(time.process_time() - start)
        whole(explorer)
    assert "filters 1984 to 2047 of 2048" in explorer.frame.svg and "page 32 of 32" in repr(explorer)
    assert min(times) < 0.2, times


@pytest.mark.slow
def test_a_click_on_a_filter_shows_what_it_answers_to_within_a_fifth_of_a_second():
    task = tasks.scenes()
    *_, x, y = tasks.scenes_data()
    before = photograph(task.model)
    explorer = lens.filters(task.model, ["relu", "layer3.0.relu2"], [(x[:60], y[:60])], shown=2, progress=False)
    assert unchanged(before, task.model)
    explorer.layer = "layer3.0.relu2"
    sets, on = pressed(explorer)
    assert [one["filter"] for one in sets if "filter" in one] == list(range(64))
    assert on == [{"layer": "layer3.0.relu2"}, {"filter": 0}]
    times = []
    for one in (7, 33, 56):
        start = time.process_time()
        explorer.set(filter=one)
        times.append(time.process_time() - start)
        whole(explorer)
    assert min(times) < 0.2 and pressed(explorer)[1][1] == {"filter": 56}
    assert "strongest of 60 pictures" in explorer.frame.svg
    explorer.press("Switch the filter off")
    assert "switched off" in explorer.frame.facts and "random others" in explorer.frame.facts
    assert "switched off" not in explorer.set(filter=57).frame.facts
    explorer.set(layer="relu", filter=63)  # a layer of sixteen
    assert explorer.frame.facts["filter"] == "relu 15"


def test_filters_are_paged_by_a_click_and_need_no_labels():
    model = nn.Sequential(nn.Conv2d(1, 150, 3), nn.ReLU())
    explorer = lens.filters(model, "1", [pictures(5, 1)], k=2, shown=1, progress=False)
    assert explorer.spec["actions"] == []
    assert pressed(explorer)[0][-1] == {"filter": 64} and pressed(explorer)[1] == [{"filter": 0}]
    assert [one["filter"] for one in pressed(explorer.set(filter=70))[0]][-2:] == [0, 128]
    assert "filters 128 to 149 of 150" in explorer.set(filter=149).frame.svg
    whole(explorer)


def test_a_saved_page_of_a_small_layer_holds_every_filter(tmp_path):
    explorer = lens.filters(Functional(), "conv1", [pictures(8)], k=3, shown=1, progress=False)
    assert explorer.save(tmp_path / "page.html").stat().st_size < 300_000


def test_weights_are_shown_as_what_they_are():
    model = nn.ModuleDict({
        "colour": nn.Conv2d(3, 5, 3), "deep": nn.Conv2d(20, 18, 3), "own": nn.Conv2d(8, 8, 3, groups=8),
        "point": nn.Conv2d(6, 4, 1), "up": nn.ConvTranspose2d(6, 4, 2), "head": nn.Linear(2000, 1000),
    })  # fmt: skip
    found = kernels(model)
    assert {name: one.shape for name, one in found.items()} == {
        "colour": (5, 3, 3, 3), "deep": (18, 20, 3, 3), "own": (8, 1, 3, 3), "point": (4, 6, 1, 1),
        "up": (4, 6, 2, 2), "head": (1000, 2000),
    }  # fmt: skip
    explorer = lens.weights(model)
    for layer, words in (
        ("colour", "5 kernels of 3 x 3"), ("deep", "filters 0 to 15 (down), inputs 0 to 15 (across)"),
        ("own", "8 of 8 kernels, one input each"), ("point", "4 outputs (down) by 6 inputs (across)"),
        ("head", "1000 outputs (down) by 2000 inputs (across)"),
    ):  # fmt: skip
        assert words in explorer.set(layer=layer).frame.svg
        whole(explorer)
    assert "filters 16 to 17 (down), inputs 16 to 19" in explorer.set(layer="deep", down=2, across=2).frame.svg


@pytest.mark.slow
def test_a_pruned_network_is_compared_with_the_one_it_came_from():
    model, x = tasks.scenes().model, tasks.scenes_concepts()[0][:2]
    kept = [1, 4, 9, 30]
    small = lab.surgery.remove(model, lab.surgery.Plan(channels={"layer2.0.conv1": kept}), x[:1])
    before = photograph(model), photograph(small)
    explorer = lens.compare_maps(model, small, x)
    assert unchanged(before[0], model) and unchanged(before[1], small)
    explorer.layer = "layer2.0.relu1"
    assert explorer.frame.facts == {
        "filters before": 32, "filters after": 4, "relative change": "0.0% of those that stayed"
    }  # fmt: skip
    old, new = (lens.activations(net, x, ["layer2.0.relu1"])["layer2.0.relu1"].numpy() for net in (model, small))
    assert matched(old, new, None, "l").tolist() == kept  # found by correlation, though nobody said so
    wrong = lens.compare_maps(model, small, x, ["layer2.0.relu1"], kept={"layer2.0.relu1": [0, 2, 3, 5]})
    assert wrong.frame.facts["relative change"] != "0.0% of those that stayed"
    whole(explorer)


def test_two_networks_of_one_shape_are_compared_by_number():
    one, two = plain(), plain()
    explorer = lens.compare_maps(one, two, pictures(1), ["0", "4"])
    assert explorer.frame.facts["filters after"] == 8
    same = lens.compare_maps(one, one, pictures(1), ["0"])
    assert same.frame.facts["relative change"] == "0.0% of those that stayed"


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda x: lens.weights(nn.Sequential(nn.ReLU())), "neither convolutions nor linear layers"),
        (lambda x: lens.weights(plain(), ["1"]), "'1' is a BatchNorm2d, whose weights have no picture"),
        (lambda x: lens.filters(plain(), "10", [x], progress=False), "'10' gives (4, 3), no feature maps"),
        (lambda x: lens.filters(Tokens(), "embed", [x], progress=False), "no layer of Tokens does"),
        (lambda x: lens.filters(plain(), "0", [], progress=False), "the batches are empty"),
        (lambda x: lens.filters(plain(), "0", [x], shown=0, progress=False), "shown=0: give an integer"),
        (lambda x: lens.compare_maps(plain(), Functional(), x), "share no layer that gives feature maps"),
        (lambda x: lens.compare_maps(plain(), Reused(), x, ["0"]), "no layer '0' in Reused"),
        (lambda x: matched(x.numpy(), x[:, :2].numpy(), [0, 0], "a"), "2 different ones of 0 to 2 stayed"),
        (lambda x: matched(x[:, :2].numpy(), x.numpy(), None, "a"), "give the models the other way round"),
    ],
)
def test_bad_input_is_one_line(act, words):
    with pytest.raises(ValueError) as error:
        act(pictures())
    assert words in str(error.value) and "\n" not in str(error.value)


def test_dead_filters_and_odd_inputs_are_drawn():
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU())
    torch.nn.init.constant_(model[0].bias, -1e6)
    explorer = lens.atlas(model, pictures(1, channels=4))
    assert explorer.set(layer="1").frame.facts["never above 0 here"] == 6
    whole(explorer)
    assert np.isfinite(float(whole(explorer.set(scale="each map its own")) is not None))
