"""The super-net, and the maker of the lab's table."""

import pytest
import torch

import lab
from lab.acenas import supernet
from lab.core.spaces import cells

ALL = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3")
SMALL = [cell for cell in cells.distinct(ALL) if cell.count("none") >= 4]


def test_a_supernet_keeps_no_running_statistics_and_trains_one_path():
    net = supernet.CellNet([ALL] * 6, running=False)
    norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and all(norm.running_mean is None for norm in norms)
    net.chosen = ("nor_conv_3x3",) * 6
    net(torch.randn(4, 1, 8, 8)).sum().backward()
    touched = {name for name, p in net.named_parameters() if p.grad is not None and "edges" in name}
    assert touched and all("nor_conv_3x3" in name for name in touched)


def test_the_path_is_that_of_the_cell():
    torch.manual_seed(0)
    net, x = supernet.CellNet([ALL] * 6, running=False), torch.randn(4, 1, 8, 8)
    net.chosen = ("none",) * 6
    nothing = net(x)
    assert torch.equal(nothing, net.linear.bias.expand(4, 10))  # no data arrives
    net.chosen = ("none", "none", "none", "skip_connect", "none", "none")
    assert not torch.equal(net(x), nothing)


@pytest.mark.slow
def test_weak_labels_say_something(tmp_path):
    net = supernet.supernet(SMALL, epochs=20, checkpoint=tmp_path, progress=False)
    weak = supernet.weak_labels(net, SMALL)
    assert weak.shape == (len(SMALL),) and weak.max() > 25 > 12 > weak.min()  # the empty cell guesses
    again = supernet.supernet(SMALL, epochs=20, checkpoint=tmp_path, progress=False)
    assert torch.equal(supernet.weak_labels(again, SMALL), weak)


@pytest.mark.slow
def test_the_table_is_what_its_maker_trains():
    space = lab.tasks.cells()
    row = next(i for i, choice in enumerate(space.choices) if choice.count("none") == 5 and choice[3] == "nor_conv_3x3")
    valid, _, net = supernet.train(space.choices[row], seed=0)
    assert valid == pytest.approx(float(space.labels[row, 0]), abs=1.5)  # a picture or four on another processor
    assert lab.cost.parameters(net) == space.costs["parameters"][row]
    assert lab.cost.macs(net, torch.zeros(1, 1, 8, 8)) == space.costs["macs"][row]


@pytest.mark.slow
def test_cells_of_ones_own_can_be_searched(tmp_path):
    some = SMALL[:12]
    space = lab.Space(graphs=[cells.graph(cell) for cell in some], train=supernet.accuracy, n_jobs=1, choices=some)
    outcome = lab.AceNAS(budget=4, rounds=2, top=1, scorer="random").run(space, progress=False, checkpoint=tmp_path)
    assert len(outcome.rows) == 5 and outcome.report["accuracy"].after == outcome.labels.max()
