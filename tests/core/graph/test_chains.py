"""From the layer that writes channels to those that read them: each node once, however many ways lead there."""

import signal

import pytest
import torch
from torch import nn

from lab.core.graph import surgery
from lab.core.graph.chains import not_zero_after, readers
from lab.core.graph.tracing import ancestors, descendants, earlier, later, module_of, trace
from lab.decoupling import placement
from lab.gal import structures
from lab.sparsebytenn import rearrange

X = torch.zeros(1, 3, 4, 4)


class Forks(nn.Module):
    """Sixty forks in a row, each joined again at once: 2^60 ways lead through them."""

    def __init__(self, join):
        super().__init__()
        self.join, self.pool, self.same = join, nn.MaxPool2d(1), nn.Identity()
        self.stem, self.conv, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.conv(self.stem(x).relu()).relu()
        for _ in range(60):
            x = self.join(self, x)
        return self.last(x).mean((2, 3))


def product(s, x):
    return s.pool(x) * s.same(x)


def total(s, x):
    return s.pool(x) + s.same(x)


def halves(s, x):  # as in ShuffleNet v2
    left, right = x.chunk(2, 1)
    return torch.cat([left, s.pool(right)], 1)


@pytest.fixture(autouse=True)
def in_time():
    """A walk that takes every way would never end."""

    def stop(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def spot_of(graph):
    return next(node for node in graph.graph.nodes if node.target == "conv")


@pytest.mark.parametrize("join", [product, total, halves])
def test_readers_behind_many_forks(join):
    spot = spot_of(trace(Forks(join), X))
    assert readers(spot) == {"last"}
    assert (not_zero_after(spot) is None) == (join is not total)


@pytest.mark.slow
@pytest.mark.parametrize("join", [product, total, halves])
def test_methods_that_place_gates_masks_and_blocks_return(join):
    network = Forks(join).eval()
    assert [site.layer for site in placement.insert_gates(network, X).sites] == ["conv"]
    for units in (("channel",), ("channel", "block", "branch", "input")):
        try:
            structures.insert_masks(network, units, X)
        except ValueError as error:
            assert "can be masked" in str(error)
    assert surgery.magnitude(network, X) is not None
    assert rearrange.survey(trace(network, X), 2).layers


@pytest.mark.parametrize("join", [product, halves])
def test_what_lies_behind_and_before_layers_is_what_walks_from_each_node_say(join):
    graph = trace(Forks(join), X)
    nodes = set(graph.graph.nodes)
    layers = {node for node in nodes if isinstance(module_of(node), nn.Conv2d)}
    assert later(graph, layers.__contains__) == {n for n in nodes if (ancestors(n) - {n}) & layers}
    assert earlier(graph, layers.__contains__) == {n for n in nodes if (descendants(n) - {n}) & layers}
    assert not later(graph, lambda node: False) and not earlier(graph, lambda node: False)
