"""Scenes: what the caption says is what is in the picture, to the pixel."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy import ndimage

from lab.core import nets, store, tasks
from lab.core.data import scenes
from lab.core.data.scenes import CONCEPTS, SHAPES, Scene


def test_captions_are_plain_english():
    assert Scene(2, "red", "circle", "left").caption == "two red circles on the left"
    assert Scene(1, "blue", "cross", "middle").caption == "one blue cross in the middle"
    assert Scene(3, "green", "cross", "top").caption == "three green crosses at the top"


def test_every_caption_comes_equally_often_and_the_same_for_a_seed():
    made = scenes.random_scenes(480, seed=3)
    assert set(Counter(one.caption for one in made).values()) == {2} and len({one.caption for one in made}) == 240
    assert made == scenes.random_scenes(480, seed=3) != scenes.random_scenes(480, seed=4)
    assert len(scenes.random_scenes(7)) == 7
    x = scenes.draw(made[:9])[0]
    assert torch.equal(x[4:5], scenes.draw(made[4:5])[0])  # whatever it is drawn with


@pytest.mark.parametrize("size", [24, 32, 64])
def test_masks_hold_what_the_caption_says(size):
    made = scenes.random_scenes(240, seed=5)
    pictures, masks = scenes.draw(made, size)
    assert pictures.shape == (240, 3, size, size) and pictures.dtype == torch.float32
    assert 0 <= pictures.min() and pictures.max() <= 1 and masks.shape == (240, len(CONCEPTS), size, size)
    for one, mask in zip(made, masks.numpy(), strict=True):
        assert {CONCEPTS[k] for k in np.flatnonzero(mask.any((1, 2)))} == {one.shape, one.colour}
        things = mask[CONCEPTS.index(one.shape)]
        assert (things == mask[CONCEPTS.index(one.colour)]).all()
        assert ndimage.label(things)[1] == one.count
        y, x = (float(axis.mean()) / size - 0.5 for axis in np.nonzero(things))
        across, along = (x, y) if one.place in ("left", "right") else (y, x)
        assert abs(along) < 0.1
        sign = {"left": -1, "top": -1, "middle": 0, "right": 1, "bottom": 1}[one.place]
        assert abs(across - 0.29 * sign) < 0.1


def test_colours_are_what_they_are_called():
    made = scenes.random_scenes(240, seed=6)
    pictures, masks = scenes.draw(made)
    inks = {colour: torch.tensor(ink) / np.linalg.norm(ink) for colour, ink in scenes.COLOURS.items()}
    for one, x, mask in zip(made, pictures, masks, strict=True):
        mean = x[:, mask[CONCEPTS.index(one.shape)]].mean(1)
        assert max(inks, key=lambda colour: float(inks[colour] @ (mean / mean.norm()))) == one.colour


def test_shapes_have_one_area():
    made = [Scene(1, "red", shape, "middle", seed) for shape in SHAPES for seed in range(40)]
    areas = scenes.draw(made, 96)[1][:, :4].sum((1, 2, 3)).view(4, 40).float().mean(1)
    assert areas.max() / areas.min() < 1.05


@pytest.mark.slow
def test_the_task_and_its_network():
    task = tasks.scenes()
    assert task.measure(task.model) >= 99 and task.example.shape == (1, 3, 32, 32)
    fresh = tasks.scenes(nets.resnet_cifar(8, classes=4))
    assert fresh.measure(fresh.model) < 60  # the control: chance is 25 %
    x, y, x_test, _ = tasks.scenes_data("place", 16)
    assert x.shape == (1920, 3, 16, 16) and x_test.shape == (480, 3, 16, 16)
    assert torch.bincount(y).tolist() == [384] * 5 and -0.5 <= x.min() and x.max() <= 0.5
    first = x[0].flatten()
    assert not any(torch.equal(first, other.flatten()) for other in x_test)
    assert store.artefact("scenes/resnet8.safetensors").stat().st_size < 300_000


@pytest.mark.slow
def test_the_concepts_are_those_of_the_held_out_pictures():
    x, masks, names = tasks.scenes_concepts()
    *_, x_test, y_test = tasks.scenes_data()
    assert torch.equal(x, x_test) and names == CONCEPTS
    assert torch.equal(masks[:, :4].flatten(2).any(2).int().argmax(1), y_test)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: Scene(4, "red", "circle", "left"), "Scene: count=4 is not allowed: give one of 1, 2, 3"),
        (lambda: Scene(1, "pink", "circle", "left"), "colour='pink'"),
        (lambda: Scene(1, "red", "circle", "left", -1), "seed=-1"),
        (lambda: scenes.random_scenes(0), "count=0"),
        (lambda: scenes.draw([], 8), "size=8: give an integer number of pixels, 16 or more"),
        (lambda: tasks.scenes(label="size"), "label='size': give one of 'shape', 'colour'"),
        (lambda: tasks.scenes(label="colour"), "no trained network for label='colour', size=32"),
    ],
)
def test_bad_input_is_one_line(act, words):
    with pytest.raises(ValueError) as error:
        act()
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_ground_is_plain_unless_it_is_asked_for():
    plain = [Scene(2, "red", "circle", "left", seed) for seed in range(20)]
    for texture, words in (("striped", ", on stripes"), ("dotted", ", on dots")):
        made = [Scene(2, "red", "circle", "left", seed, texture) for seed in range(20)]
        assert made[0].caption == plain[0].caption + words
        apart = (scenes.draw(made)[0] - scenes.draw(plain)[0]).abs().mean(1)
        inside = scenes.draw(plain)[1][:, CONCEPTS.index("circle")]
        assert torch.equal(scenes.draw(made)[1], scenes.draw(plain)[1])  # the things stand where they stood
        assert apart[~inside].mean() > 0.03 and apart[inside].mean() < apart[~inside].mean()
    with pytest.raises(ValueError, match=r"texture='checked' is not allowed: give one of 'plain', 'striped', 'dotted'"):
        Scene(1, "red", "circle", "left", 0, "checked")


def test_kinds_to_draw_from():
    some = scenes.kinds(("plain", "dotted"))[:10]
    made = scenes.random_scenes(30, 2, some)
    assert set(Counter((s.count, s.colour, s.shape, s.place, s.texture) for s in made).values()) == {3}
    assert len(scenes.kinds(scenes.TEXTURES)) == 720 and len(scenes.kinds()) == 240
    with pytest.raises(ValueError, match="among is empty"):
        scenes.random_scenes(3, 0, [])
