"""Batches: passes that reshuffle and drop nothing, augmentations, aligned patches, bicubic as in the papers."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from lab.core.data.batches import (
    LabelledImages,
    Moved,
    Pairs,
    Patches,
    Shuffled,
    augmented,
    enlarged,
    in_order,
    reduced,
    shifted,
    shuffled,
    turned,
)

GENERATOR = torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("count", "size"), [(1297, 64), (1297, 48), (65, 64), (3, 2), (7, 3), (5, 100), (2, 2), (1, 8)]
)
def test_a_pass_has_every_sample_once_and_none_alone(count, size):
    parts = list(Shuffled(count, size))
    assert sorted(torch.cat(parts).tolist()) == list(range(count))
    assert len(parts) == len(Shuffled(count, size))
    assert min(map(len, parts)) >= min(2, count)
    assert max(map(len, parts)) <= max(size, 3)


def test_each_pass_is_shuffled_anew_by_the_global_generator():
    loader = shuffled(TensorDataset(torch.arange(100)), 16)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first, second = ([x for (x,) in loader] for _ in range(2))
        torch.manual_seed(3)
        again = [x for (x,) in loader]
    assert not torch.equal(torch.cat(first), torch.cat(second))
    assert torch.equal(torch.cat(first), torch.cat(again))
    assert len(loader) == len(first) == 7


def test_scores_see_everything_in_order_and_draw_nothing():
    state = torch.get_rng_state()
    parts = [x for (x,) in in_order(TensorDataset(torch.arange(600)), 250)]
    assert torch.equal(torch.cat(parts), torch.arange(600)) and len(parts) == 3
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size", [1, 0, 2.5, True])
def test_bad_batch_size_is_told_in_one_line(size):
    with pytest.raises(ValueError, match=rf"batch_size={size!r}: give an integer, 2 or more"):
        shuffled(TensorDataset(torch.arange(9)), size)


def test_pictures_are_normalised_after_the_augmentation():
    x = torch.full((2, 1, 6, 6), 255, dtype=torch.uint8)
    plain, y = LabelledImages(x, torch.tensor([4, 7]), [0.5], [0.25])[torch.tensor([1, 0])]
    assert plain.dtype == torch.float32 and torch.equal(plain, torch.full((2, 1, 6, 6), 2.0)) and y.tolist() == [7, 4]
    moved = torch.cat([LabelledImages(x, y, [0.5], [0.25], ["pad-crop"])[torch.tensor([0, 1])][0] for _ in range(20)])
    assert set(moved.unique().tolist()) == {-2.0, 2.0}  # the padding is black, not grey


def test_shifted_is_pad_and_crop_of_each_picture_by_its_own_draw():
    x = torch.randint(1, 256, (300, 3, 6, 5), generator=GENERATOR).to(torch.uint8)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    moves = set()
    for picture, frame in zip(shifted(x, 2), padded, strict=True):
        found = [(t, s) for t in range(5) for s in range(5) if torch.equal(picture, frame[:, t : t + 6, s : s + 5])]
        assert len(found) == 1
        moves.add(found[0])
    assert len(moves) == 25  # all places are reached


def test_flip_mirrors_about_half_of_the_pictures():
    x = torch.arange(2 * 3).view(1, 1, 2, 3).expand(400, 1, 2, 3)
    flipped = augmented(x, ["flip"])
    mirrored = sum(torch.equal(p, x[0].flip(2)) for p in flipped)
    same = sum(torch.equal(p, x[0]) for p in flipped)
    assert mirrored + same == 400 and 140 < mirrored < 260
    assert augmented(x, []) is x


def test_the_eight_turns_differ():
    x = torch.arange(9).view(1, 3, 3)
    assert len({tuple(turned(x, turn).flatten().tolist()) for turn in range(8)}) == 8


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_patches_of_low_and_high_resolution_show_the_same_place(scale):
    rows, columns = torch.meshgrid(torch.arange(20), torch.arange(30), indexing="ij")
    low = torch.stack([rows * 8, columns * 8, rows + columns]).to(torch.uint8)
    high = low.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    batches = Patches([(low, high)], patch=6 * scale, size=5, count=12)
    parts = list(batches)
    assert len(parts) == len(batches) == 12
    for x, y in parts:
        assert x.shape == (5, 3, 6, 6) and y.shape == (5, 3, 6 * scale, 6 * scale)
        assert torch.equal(x.repeat_interleave(scale, 2).repeat_interleave(scale, 3), y)
    assert len({tuple(x[0].flatten().tolist()) for x, _ in parts}) > 6  # random places and turns


def test_pairs_are_whole_pictures_in_the_unit_range():
    low, high = torch.full((3, 4, 5), 51, dtype=torch.uint8), torch.full((3, 8, 10), 255, dtype=torch.uint8)
    ((x, y),) = Pairs([(low, high)])
    assert torch.equal(x, torch.full((1, 3, 4, 5), 0.2)) and torch.equal(y, torch.ones(1, 3, 8, 10))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_is_that_of_pillow(scale):
    x = torch.randint(0, 256, (3, 12 * scale, 10 * scale), generator=GENERATOR).to(torch.uint8)
    image = Image.fromarray(x.permute(1, 2, 0).numpy())
    small = np.asarray(image.resize((10, 12), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(reduced(x, scale).permute(1, 2, 0).numpy().astype(int) - small).max() <= 1
    grey = x[0].float().numpy()
    large = np.asarray(Image.fromarray(grey).resize((30 * scale, 36 * scale), Image.Resampling.BICUBIC))
    assert np.abs(enlarged(torch.from_numpy(grey)[None, None], 3)[0, 0].numpy() - large).max() < 0.01


def test_moved_pictures_are_moved_anew_and_keep_their_labels():
    x = torch.full((40, 1, 9, 9), -0.5)
    x[:, :, 4, 4] = 0.5  # one dot on paper of -0.5
    pictures = Moved(x, torch.arange(40), reach=2, edge=-0.5)
    first, labels = pictures[torch.arange(40)]
    assert len(pictures) == 40 and torch.equal(labels, torch.arange(40))
    assert set(first.unique().tolist()) == {-0.5, 0.5} and ((first == 0.5).sum((1, 2, 3)) == 1).all()
    places = {tuple(place) for place in (first[:, 0] == 0.5).nonzero()[:, 1:].tolist()}
    assert len(places) > 5 and all(2 <= a <= 6 and 2 <= b <= 6 for a, b in places)
    assert not torch.equal(first, pictures[torch.arange(40)][0])
    assert torch.equal(Moved(x, torch.arange(40), reach=0, edge=-0.5)[torch.arange(40)][0], x)
