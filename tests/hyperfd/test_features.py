"""What the owner's side looks at: samples, subsets, numbers counted by hand, and data that cannot be looked at."""

import pytest
import torch

import lab
from lab.core.data.faces import FaceTask
from lab.hyperfd.features import META_FEATURES, meta_features, samples, subsets


def test_what_the_extractor_sees_of_faces():
    task = lab.tasks.faces("portraits")
    x = samples(task)
    assert x.shape == (96, 4, 64, 64) and float(x.min()) >= -1 and float(x.max()) <= 1
    left, top, right, bottom = (task.learn.boxes[0][0] * 64 / 160).round().int().tolist()
    assert bool((x[0, 3, top:bottom, left:right] == 1).all()) and set(x[:, 3].unique().tolist()) == {-1.0, 1.0}
    with pytest.raises(TypeError, match="a data set is a list"):
        samples.__wrapped__([1, 2])


def test_data_that_cannot_be_looked_at_is_one_line():
    task = lab.tasks.faces("portraits")
    one = FaceTask(learn=task.learn[[0]], held_out=task.held_out[[0]])
    odd = torch.ones(4, 3)
    odd[2, 1] = torch.nan
    for data, words in (
        (one, r"a data set is \(1, 4, 64, 64\): give 2 pictures or more"),
        (torch.ones(1, 3), r"a data set is \(1, 3\): give 2"),
        (torch.ones(5), r"a data set is \(5,\): give 2"),
        (odd, "numbers that are not finite, first in row 2: leave the row out"),
    ):
        for look in (samples, meta_features) if isinstance(data, torch.Tensor) else (samples,):
            with pytest.raises(ValueError, match=words) as caught:
                look(data)
            assert "\n" not in str(caught.value)


def test_subsets_in_pairs_share_nothing_and_small_sets_give_what_they_have():
    x = torch.arange(40.0)[:, None]
    drawn = subsets(x, 4, 10)
    assert drawn.shape == (4, 10, 1)
    assert not set(drawn[0].flatten().tolist()) & set(drawn[1].flatten().tolist())
    assert subsets(x[:6], 3, 10).shape == (3, 3, 1)


@pytest.mark.slow
def test_hand_made_numbers_say_what_they_are_called_and_are_of_one_size():
    portraits, small, dark = (meta_features(lab.tasks.faces(name)) for name in ("portraits", "small", "low light"))
    at = list(META_FEATURES).index
    assert len(portraits) == len(META_FEATURES) == 24
    assert portraits[at("face height 50 %")] > small[at("face height 50 %")] + 2
    assert dark[at("brightness")] < portraits[at("brightness")] - 2
    every = torch.stack([meta_features(lab.tasks.faces(name)) for name in ("groups", "crowded", "grey", "rotated")])
    assert float(every.abs().max()) < 8 and 0.3 < float(every.square().mean().sqrt()) < 2
