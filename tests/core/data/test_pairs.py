"""Pairs: what the caption says of each thing is in the picture, at its place."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from lab.core.data import pairs, scenes
from lab.core.data.pairs import Pair


def test_captions_are_plain_english():
    assert Pair("red", "circle", "left", "blue", "square").caption == "a red circle left of a blue square"
    words = "a green cross above a green triangle, on dots"
    assert Pair("green", "cross", "above", "green", "triangle", "dotted").caption == words


def test_two_things_differ_and_every_kind_comes_equally_often_and_the_same_for_a_seed():
    every = pairs.kinds()
    assert len(every) == len(set(every)) == 2 * (16 * 16 - 16) * 3
    assert all(kind[:2] != kind[3:5] for kind in every)
    made = pairs.random_pairs(40, 3, every[:20])
    assert set(Counter(pair.caption for pair in made).values()) == {2}
    assert made == pairs.random_pairs(40, 3, every[:20]) != pairs.random_pairs(40, 4, every[:20])


@given(st.sampled_from(pairs.kinds()), st.integers(0, 2**62))
def test_each_thing_has_its_colour_and_place_and_touches_neither_the_other_nor_the_side(kind, seed):
    pair = Pair(*kind, seed)
    x = pairs.draw([pair, pair], 64)
    assert x.dtype == torch.float32 and torch.equal(x[0], x[1]) and 0 <= x.min() and x.max() <= 1
    picture = x[0].numpy()
    inked = picture.max(0) - picture.min(0) > 0.28  # the ground is grey, its noise has a deviation of 0.03
    inked = ndimage.binary_opening(inked, np.ones((2, 2)))
    regions, count = ndimage.label(inked)
    assert count == 2
    assert not (inked[[0, -1]].any() or inked[:, [0, -1]].any())
    middles = [ndimage.center_of_mass(regions == i) for i in (1, 2)]
    axis = 1 if pair.relation == "left" else 0
    first, second = sorted((1, 2), key=lambda i: middles[i - 1][axis])
    for region, (colour, _) in zip((first, second), pair.things, strict=True):
        mean = picture[:, regions == region].mean(1)
        inks = {name: np.array(ink) / np.linalg.norm(ink) for name, ink in scenes.COLOURS.items()}
        assert max(inks, key=lambda name: inks[name] @ mean) == colour


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: Pair("pink", "circle", "left", "red", "cross"), "Pair: colour='pink' is not allowed: give one of"),
        (lambda: Pair("red", "circle", "under", "red", "cross"), "relation='under'"),
        (lambda: Pair("red", "circle", "left", "red", "cross", seed=-1), "seed=-1"),
        (lambda: pairs.random_pairs(0, 0, pairs.kinds()), "count=0"),
        (lambda: pairs.random_pairs(1, 0, []), "among is empty"),
        (lambda: pairs.draw([], 8), "size=8: give an integer number of pixels, 16 or more"),
    ],
)
def test_bad_input_is_one_line(act, words):
    with pytest.raises(ValueError) as error:
        act()
    assert words in str(error.value) and "\n" not in str(error.value)
