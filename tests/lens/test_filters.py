"""What a filter sees, answers to most, is needed for and prefers: exact where it can be, beside its control."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from lab import lens
from lab.core import nets, tasks
from lab.core.data.batches import shuffled
from lab.lens.selectivity import selectivity_index
from tests.lens.models import Failing, Functional, Recurrent, hooks, photograph, pictures, plain, unchanged


def by_gradient(model, x, row, column):
    """The box of pixels whose gradient at a unit is not 0, weights made positive: another way to the same box."""
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.abs() + 0.1)
    x = torch.rand_like(x.double()).requires_grad_()
    model(x)[0, :, row, column].sum().backward()
    seen = x.grad[0].abs().sum(0) > 0
    rows, columns = seen.any(1).nonzero(), seen.any(0).nonzero()
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(3, 4, 3)],
        [nn.Conv2d(3, 4, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)],
        [nn.Conv2d(3, 3, 3, padding=2, dilation=2, groups=3), nn.AvgPool2d(2), nn.Conv2d(3, 2, (1, 3))],
    ],
)
def test_receptive_fields_are_those_of_the_gradient(layers):
    model = nn.Sequential(*layers)
    x = pictures(1, height=17, width=14)
    last = str(len(layers) - 1)
    field = lens.receptive_fields(model, [last], x)[last]
    for row in range(len(field.rows)):
        for column in range(len(field.columns)):
            assert field.box(row, column) == by_gradient(model, x, row, column)


def test_receptive_fields_of_pools_coarse_bands_and_whole_pictures():
    model = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = pictures(1, height=12, width=12)
    fields = lens.receptive_fields(model, ["0", "1", "3"], x)
    assert fields["0"].box(2, 3) == (4, 6, 6, 8) and fields["1"].box(2, 3) == (2, 4, 8, 10)
    assert fields["3"].box(0, 0) == (0, 0, 12, 12)
    coarse = lens.receptive_fields(model, ["1"], x, bands=4)["1"].box(2, 3)
    assert coarse == (0, 3, 9, 12)  # outwards to bands of three pixels
    with pytest.raises(ValueError, match="answers NaN on finite data"):
        lens.receptive_fields(nn.Sequential(nn.Conv2d(3, 1, 1), Broken()), ["1"], x)


class Broken(nn.Module):
    def forward(self, x):
        return x * float("nan")


def test_the_strongest_pictures_are_those_of_a_sort():
    model, x = plain(), pictures(23)
    before = photograph(model)
    batches = [(part, torch.zeros(len(part))) for part in x.split(5)]
    top = lens.strongest(model, "4", batches, k=4, progress=False)
    assert unchanged(before, model)
    answers = lens.activations(model, x, ["4"])["4"]
    values, order = answers.amax((2, 3)).T.sort(descending=True)
    assert torch.allclose(top.values, values[:, :4], atol=1e-6) and torch.equal(top.number, order[:, :4])
    for f in range(12):
        for rank, (number, (row, column)) in enumerate(zip(top.number[f].tolist(), top.unit[f].tolist(), strict=True)):
            assert torch.allclose(answers[number, f, row, column], top.values[f, rank], atol=1e-6)
            assert torch.equal(top.images(f)[rank], x[number])
    assert set(top.kept) == set(top.number.flatten().tolist()) and top.seen == 23


def test_a_crop_is_all_that_the_unit_needs():
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 6, 3))
    top = lens.strongest(model, "2", [pictures(9)], k=3, progress=False)
    for f in range(6):
        for rank, crop in enumerate(top.crops(f)):
            assert crop.shape == (3, 5, 5)
            assert torch.allclose(model(crop[None])[0, f, 0, 0], top.values[f, rank], atol=1e-6)


def test_a_loader_that_shuffles_leaves_the_generator_and_gives_the_same_twice():
    model, batches = plain(), shuffled(TensorDataset(pictures(40), torch.zeros(40)), 8)
    state = torch.get_rng_state()
    one, two = (lens.strongest(model, "2", batches, k=2, progress=False) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(one.number, two.number)
    with pytest.raises(ValueError) as error:  # the error holds the half-read loader
        lens.strongest(model, "2", Odd(batches), progress=False)
    assert "use one size" in str(error.value) and torch.equal(torch.get_rng_state(), state)


class Odd:
    """The batches of a loader, the third of which is of another size."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        for k, (x, _) in enumerate(self.batches):
            yield x[..., k // 2 :]


def stripes():
    """A network that counts vertical and horizontal edges, and pictures of both: filter 2 does nothing."""
    conv = nn.Conv2d(1, 3, 2, bias=False)
    conv.weight.data = torch.tensor([[[[1.0, -1], [1, -1]]], [[[1.0, 1], [-1, -1]]], [[[0.0, 0], [0, 0]]]])
    head = nn.Linear(3, 2, bias=False)
    head.weight.data = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    model = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    wave = (torch.arange(8) % 2).float()
    across, down = wave.view(1, 1, 1, 8).expand(1, 1, 8, 8), wave.view(1, 1, 8, 1).expand(1, 1, 8, 8)
    x = torch.cat([across, down] * 5) + 0.01 * pictures(10, 1, 8, 8)
    return model, x, torch.tensor([0, 1] * 5)


def test_without_its_filter_a_class_is_lost_and_without_another_nothing():
    model, x, y = stripes()
    before = photograph(model)
    frame = lens.switched_off(model, "1", [(x, y)], progress=False)
    assert unchanged(before, model)
    assert frame["accuracy"].tolist() == [50, 50, 100] and frame["change"].tolist() == [-50, -50, 0]
    assert frame["class 0"].tolist() == [-100, 0, 0] and frame["class 1"].tolist() == [0, -100, 0]


def test_random_filters_stand_beside_the_chosen():
    model, x, y = plain(), pictures(12), torch.arange(12) % 3
    frame = lens.switched_off(model, "4", [(x, y)], [2, (0, 1, 2)], controls=4, seed=1, progress=False)
    assert frame["kind"].tolist() == ["chosen"] * 2 + ["random"] * 8
    sizes = [len(text.split(", ")) for text in frame["filters"]]
    assert sizes == [1, 3, 1, 1, 1, 1, 3, 3, 3, 3]
    assert not any({"0", "1", "2"} & set(text.split(", ")) for text in frame["filters"][2:])
    again = lens.switched_off(model, "4", [(x, y)], [2, (0, 1, 2)], controls=4, seed=1, progress=False)
    assert frame.equals(again)


def test_switched_off_filters_answer_zero_also_in_tuples_until_the_block_ends():
    model, x = plain().eval(), pictures()
    whole = model(x)
    with lens.without(model, "4", [3, 5]):
        answer = lens.activations(model, x, ["4"])["4"]
        assert not answer[:, [3, 5]].any() and answer[:, 4].any()
        assert not torch.equal(model(x), whole)
    assert torch.equal(model(x), whole) and hooks(model) == 0
    with pytest.raises(RuntimeError, match="the reader's own error"), lens.without(failing := Failing(), "conv", 0):
        failing(x)
    assert hooks(failing) == 0


def test_the_index_is_morcos_formula():
    means = np.array([[4.0, 1, 0, 2], [2, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0]])
    index, best, high, other = selectivity_index(means, np.array([7, 7, 8, 9]))
    assert best[0] == 7 and high[0] == 3 and other[0] == 0.5  # the mean of the classes' means 1 and 0
    assert index[0] == pytest.approx(2.5 / 3.5) and index[1] == 0 and np.isnan(index[2]) and index[3] == 1


@pytest.mark.slow
def test_selective_filters_are_far_above_shuffled_labels_and_a_dull_one_is_not():
    model, x, y = stripes()
    frame = lens.selectivity(model, "1", [(x[:4], y[:4]), (x[4:], y[4:])], progress=False)
    assert frame["class"].tolist()[:2] == [0, 1]
    assert (frame["index"][:2] > 0.9).all() and (frame["index"][:2] > frame["shuffled_high"][:2]).all()
    assert np.isnan(frame["index"][2])
    task = tasks.scenes()
    *_, x, y = tasks.scenes_data()
    trained = lens.selectivity(task.model, "layer3.0.relu2", [(x[:120], y[:120])], progress=False)
    assert trained["index"].mean() > 2 * trained["shuffled_high"].mean()


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda m, x, y: lens.strongest(m, "1", [], progress=False), "the batches are empty"),
        (lambda m, x, y: lens.strongest(m, "1", [x], k=0, progress=False), "k=0: give an integer"),
        (lambda m, x, y: lens.strongest(m, "1", [x, x[..., 1:]], progress=False), "use one size"),
        (lambda m, x, y: lens.strongest(Recurrent(), "lstm", [pictures()], progress=False), "(4, 10, 8), where"),
        (lambda m, x, y: lens.switched_off(m, "1", [x], progress=False), "no pair (x, y) of equal length"),
        (lambda m, x, y: lens.switched_off(m, "1", [(x, y)], [3], progress=False), "not all in '1': it has 0 to 2"),
        (lambda m, x, y: lens.switched_off(m, "1", [(x, y)], [0.5], progress=False), "filters=0.5: give integers"),
        (lambda m, x, y: lens.switched_off(m, "1", [(x, F.one_hot(y))], progress=False), "not one class number a"),
        (lambda m, x, y: lens.selectivity(m, "0", [(x, y)], progress=False), "'0' gives negative values"),
        (lambda m, x, y: lens.selectivity(m, "1", [(x, 0 * y)], progress=False), "one class only"),
        (lambda m, x, y: lens.selectivity(m, "rel", [(x, y)], progress=False), "no layer 'rel'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(act, words):
    with pytest.raises(ValueError) as error:
        act(*stripes())
    assert words in str(error.value) and "\n" not in str(error.value)


def test_an_iterator_is_refused_where_it_could_be_used_up():
    model, x, y = stripes()
    with pytest.raises(TypeError, match="ends after one pass: give a DataLoader or a list"):
        lens.switched_off(model, "1", iter([(x, y)]), progress=False)
    with lens.without(model, "1", [7]), pytest.raises(ValueError, match="filter 7 is not in '1': it has 0 to 2"):
        model(x)


@pytest.mark.parametrize("make", [Functional, lambda: nets.resnet_cifar(8, classes=3)])
def test_other_networks(make):
    model, x, y = make(), pictures(6, height=16, width=12), torch.arange(6) % 3
    assert lens.strongest(model, "conv1", [x], k=2, progress=False).values.shape[1] == 2
    assert len(lens.switched_off(model, "conv1", [(x, y)], [0], controls=1, progress=False)) == 2
