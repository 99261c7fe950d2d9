"""Do paths matter? On a network whose parts are known by hand: what it loses, what it is forced to say."""

import numpy as np
import pytest
import torch
from torch import nn

from lab.decoupling.intervention import _changed, force, knock_out, random_bits, specific_bits
from lab.decoupling.layers import gates
from lab.decoupling.paths import record
from lab.decoupling.placement import Decoupled, insert_gates
from tests.decoupling.test_paths import made

CLASSES = 3


@torch.no_grad()
def planted() -> tuple[Decoupled, torch.Tensor, torch.Tensor]:
    """A network of one gated layer: filter k < 3 carries colour k, and is on where that colour is; 3, 4, 5 are idle.

    Class k is colour k. Filter 3 is always on, 4 is never on, 5 is on for bright pictures only.
    """
    net = nn.Sequential(
        nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 3),
    )  # fmt: skip
    for layer in (net[0], net[2], net[6]):
        layer.weight.zero_()
        layer.bias.zero_()
    net[0].weight.copy_(torch.eye(4)[:, :, None, None])
    net[2].weight[[0, 1, 2, 5], [0, 1, 2, 3]] = 1.0
    net[6].weight.copy_(torch.eye(6)[:3])
    decoupled = insert_gates(net.eval(), torch.zeros(1, 4, 4, 4))
    controller = decoupled.model.gate_0.controller
    controller.fc1 = nn.Linear(4, 4)
    controller.fc1.weight.copy_(torch.eye(4))
    controller.fc1.bias.zero_()
    controller.fc2 = nn.Linear(4, 6)
    controller.fc2.weight.zero_()
    controller.fc2.weight[[0, 1, 2, 5], [0, 1, 2, 3]] = 1.0
    controller.fc2.bias.copy_(torch.tensor([-0.5, -0.5, -0.5, 1.0, -1.0, -0.5]))
    decoupled.model.eval()
    y = torch.arange(60) % CLASSES
    x = torch.zeros(60, 4, 4, 4)
    x[torch.arange(60), y] = 1
    x[::4, 3] = 1
    return decoupled, x, y


@pytest.fixture(scope="module")
def network():
    decoupled, x, y = planted()
    seen = record(decoupled, [(x, y)])
    assert (seen.predicted == seen.labels).all()
    return decoupled, seen, [(x, y)]


def test_the_specific_filter_of_a_class_is_found(network):
    _, seen, _ = network
    for label in range(CLASSES):
        assert specific_bits(seen, label, 1).tolist() == [label]


def test_filters_that_are_not_on_more_often_are_never_taken(network):
    _, seen, _ = network
    assert set(specific_bits(seen, 0, 100)) <= {0, 5} and 0 in specific_bits(seen, 0, 100)
    alike = made(np.ones((4, 6)), [0, 1, 0, 1], sizes=(6,))
    assert len(specific_bits(alike, 0, 6)) == 0


def test_random_filters_are_as_many_of_each_layer():
    bits = np.ones((2, 32))
    seen = made(bits, [0, 1])
    chosen = np.array([0, 1, 9, 15, 16, 17])
    drawn = random_bits(seen, chosen, np.ones(32, bool), np.random.default_rng(0))
    count = lambda index: [((index >= a) & (index < b)).sum() for a, b in ((0, 9), (9, 15), (15, 32))]  # noqa: E731
    assert count(drawn) == count(chosen) == [2, 1, 3] and len(set(drawn)) == 6
    pool = np.zeros(32, bool)
    pool[[3, 4, 30]] = True
    assert set(random_bits(seen, chosen, pool, np.random.default_rng(0))) == {3, 4, 30}


def test_knocking_out_costs_the_class_and_no_other(network):
    decoupled, seen, batches = network
    table = knock_out(decoupled, seen, batches, count=1, draws=3)
    assert table.index.tolist() == [0, 1, 2] and (table["filters"] == 1).all()
    assert (table["own"] == 100).all() and (table["others"] == 100).all()
    # without its filter a picture has the scores (0, 0, 0), and is called class 0
    assert table["specific"].tolist() == [100, 0, 0]
    assert (table["others specific"] == 100).all()
    for control in ("as many used", "as many conditional"):
        assert (table[control] >= table["specific"]).all() and table[control].max() <= 100
    assert table.columns.get_loc("as many used") < table.columns.get_loc("as many conditional")


def test_knocking_out_more_than_there_is_takes_what_is_specific(network):
    decoupled, seen, batches = network
    assert (knock_out(decoupled, seen, batches, count=100, draws=1)["filters"] <= 2).all()


@pytest.mark.parametrize("label", range(CLASSES))
def test_forcing_a_path_silences_the_other_classes(network, label):
    decoupled, seen, batches = network
    table = force(decoupled, seen, label, batches)
    assert table["own"].tolist() == [100] * 3
    assert table["named"].tolist() == [100.0 * (k == label) for k in range(3)]
    # only the filter of `label` is on: other classes' pictures have the scores (0, 0, 0), and are called class 0
    assert table["forced own"].tolist() == [100.0 * (k in (0, label)) for k in range(3)]
    assert table["forced"][label] == 100
    assert (table["random"] >= 0).all() and (table["random"] <= 100).all()


def test_random_paths_are_drawn_many_times_with_their_spread(network):
    """One filter of three on, by chance: each class is named in as many draws as its filter is the one, or none is."""
    decoupled, seen, batches = network
    one = force(decoupled, seen, 1, batches, draws=1, seed=3)
    assert (one["random spread"] == 0).all() and set(one["random"]) <= {0.0, 50.0, 75.0, 100.0, 25.0}
    many = force(decoupled, seen, 1, batches, draws=30, seed=3)
    assert many["random spread"].max() > 0 and not many["random"].equals(one["random"])
    again = force(decoupled, seen, 1, batches, draws=30, seed=3)
    assert many.equals(again)


def test_the_forced_path_is_the_majority_path(network):
    decoupled, seen, batches = network
    given = []
    hook = decoupled.model.gate_0.register_forward_hook(lambda _, __, out: given.append(out))
    force(decoupled, seen, 1, batches, draws=1)
    hook.remove()
    as_it_was, forced, control = given[::2][:3]  # 60 pictures are two passes
    assert not forced[:, [0, 2, 4, 5]].any() and not torch.equal(as_it_was, forced)
    assert control.shape == forced.shape


@pytest.mark.parametrize("call", [lambda *a: force(*a, draws=2), lambda d, s, label, b: specific_bits(s, label, 3)])
def test_an_unknown_class_is_one_line(network, call):
    decoupled, seen, batches = network
    with pytest.raises(ValueError, match="label=9: the paths know the classes 0, 1, 2") as caught:
        call(decoupled, seen, 9, batches)
    assert "\n" not in str(caught.value)


def test_changes_are_undone_even_after_an_error(network):
    decoupled, seen, batches = network
    before = record(decoupled, batches).packed
    broken = [*batches, torch.zeros(40, 9, 4, 4)]
    for act in (lambda: knock_out(decoupled, seen, broken), lambda: force(decoupled, seen, 1, broken)):
        with pytest.raises(RuntimeError):
            act()
    with pytest.raises(RuntimeError), _changed(decoupled, seen, lambda bits: lambda z: z * 0, np.ones(6, bool)):
        record(decoupled, broken)
    assert all(gate.change is None and gate.record is None for gate in gates(decoupled.model).values())
    assert (record(decoupled, batches).packed == before).all()


def test_interventions_are_reproducible_and_leave_global_state(network):
    decoupled, seen, batches = network
    np.random.seed(1)
    torch.manual_seed(1)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state()
    tables = [knock_out(decoupled, seen, batches, count=2, draws=2, seed=4) for _ in range(2)]
    assert tables[0].equals(tables[1])
    assert np.random.get_state()[1].tolist() == before[0] and torch.equal(torch.get_rng_state(), before[1])


def test_classes_that_are_not_among_the_judged_pictures_have_no_number(network):
    """Paths of three classes, pictures of two: the third has no accuracy, and that is no warning."""
    decoupled, seen, ((x, y),) = network
    table = knock_out(decoupled, seen, [(x[y < 2], y[y < 2])], count=1, draws=1)
    assert np.isnan(table["own"][2]) and table["own"][0] == 100


def test_paths_of_one_class_have_no_specific_filters():
    seen = made(np.eye(6), [0] * 6, sizes=(6,))
    with pytest.raises(ValueError, match="all paths are of class 0: specific filters need") as caught:
        specific_bits(seen, 0, 3)
    assert "\n" not in str(caught.value)


def test_pictures_without_a_class_cannot_be_judged(network):
    decoupled, seen, ((x, _),) = network
    for act in (lambda: knock_out(decoupled, seen, [x]), lambda: force(decoupled, seen, 1, [x], draws=1)):
        with pytest.raises(ValueError, match=r"pictures without a class: give pairs \(x, y\)") as caught:
            act()
        assert "\n" not in str(caught.value)
