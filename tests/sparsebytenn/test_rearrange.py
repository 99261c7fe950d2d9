"""Rearrangement is exact: in any order the network computes the same function, and what cannot move is left alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lab.core.graph.channels import Channels
from lab.core.graph.tracing import trace
from lab.sparsebytenn import rearrange
from tests.core.graph.test_foreign_networks import NETS, Net, X, conv
from tests.decoupling.families import network as token_network
from tests.gal.families import FAMILIES, distance, family

WHOLE = (
    "lenet channels",
    "vgg16 channels",
    "resnet20 jointly",
    "googlenet branches",
    "densenet40 inputs",
    "resnet50 blocks",
    "mobilenet_v1 channels",
    "mobilenet_v2 jointly",
)


class Squeeze(nn.Module):
    """Squeeze and excitation: the mean over the picture, two layers, a gate on each channel."""

    def __init__(self, channels: int, hidden: int, linear: bool) -> None:
        super().__init__()
        self.linear = linear
        layer = nn.Linear if linear else (lambda a, b: nn.Conv2d(a, b, 1))
        self.reduce, self.expand = layer(channels, hidden), layer(hidden, channels)

    def forward(self, x):
        mean = x.mean((2, 3)) if self.linear else F.adaptive_avg_pool2d(x, 1)
        gate = torch.sigmoid(self.expand(F.relu(self.reduce(mean))))
        return x * (gate[:, :, None, None] if self.linear else gate)


def squeezed(linear: bool) -> nn.Module:
    """A residual block of 1 x 1, depthwise and 1 x 1 convolutions with a squeeze in the middle."""

    def forward(s, x):
        x = s.stem(x)
        wide = s.gate(F.relu(s.norm(s.deep(F.relu(s.wide(x))))))
        return s.head((x + s.narrow(wide)).mean((2, 3)))

    return Net(
        forward,
        stem=conv(3, 8),
        wide=conv(8, 24, 1),
        deep=conv(24, 24, groups=24),
        norm=nn.BatchNorm2d(24),
        gate=Squeeze(24, 6, linear),
        narrow=conv(24, 8, 1),
        head=nn.Linear(8, 4),
    )


OWN = {
    **NETS,
    "squeeze by convolutions": lambda: squeezed(False),
    "squeeze by linear layers": lambda: squeezed(True),
    "flattened pictures": lambda: nn.Sequential(
        conv(3, 8),
        nn.ReLU(),
        conv(8, 12),
        nn.BatchNorm2d(12),
        nn.PReLU(12),
        nn.Flatten(),
        nn.Linear(12 * 64, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Linear(16, 4),
    ),
    "joined branches": lambda: Net(
        lambda s, x: s.line(torch.cat([s.a(s.stem(x)), s.stem(x), s.b(s.stem(x))], 1).mean((2, 3))),
        stem=conv(3, 8),
        a=conv(8, 5),
        b=conv(8, 7),
        line=nn.Linear(20, 4),
    ),
}


def own(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return OWN[name]().eval()


def shuffles(network: nn.Module, example: torch.Tensor) -> dict[str, torch.Tensor]:
    """A random order for every class that may move."""
    graph = trace(network, example)
    channels, draw = Channels(graph), torch.Generator().manual_seed(3)
    frozen = rearrange._frozen(channels)
    free = {producers[0]: group for group, producers in channels.free() if group not in frozen}
    return {name: torch.randperm(channels.sizes[group], generator=draw) for name, group in free.items()}


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", WHOLE)
def test_every_family_is_rearranged_exactly(name):
    network, x, _, _ = family(name)
    assert name in FAMILIES
    orders = shuffles(network, x[:1])
    before = network(x)
    moved = rearrange.permute(network, orders, x[:1])
    assert len(orders) > 0 and distance(moved(x), before) < 1e-5
    assert torch.equal(network(x), before)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", OWN)
def test_networks_as_people_write_them_are_rearranged_exactly(name):
    network = own(name)
    before = network(X)
    moved = rearrange.permute(network, shuffles(network, X[:1]), X[:1])
    assert (moved(X) - before).abs().max() <= 1e-5 * before.abs().max()


@torch.no_grad()
def test_in_double_precision_only_the_order_of_sums_is_left():
    network, x, _, _ = family("resnet20 jointly")
    network, x = network.double(), x.double()
    moved = rearrange.permute(network, shuffles(network, x[:1]), x[:1])
    assert distance(moved(x), network(x)) < 1e-13


def survey(network: nn.Module, block: int = 4, example: torch.Tensor = X) -> rearrange.Ground:
    return rearrange.survey(trace(network, example[:1]), block)


def test_a_mobilenet_has_its_pointwise_layers_each_in_a_class_of_its_own():
    network, x, _, _ = family("mobilenet_v1 channels")
    ground = survey(network, example=x)
    assert [len(layers) for layers in ground.classes.values()] == [1] * 13 and not ground.fixed
    assert ground.dense["features.0.0"] == "it reads the network's input"
    assert ground.dense["classifier"] == "it gives the network's answer"
    assert sum(reason == "depthwise" for reason in ground.dense.values()) == 13


@pytest.mark.slow
def test_a_residual_stage_is_one_class_with_several_producers():
    network, x, _, _ = family("mobilenet_v2 jointly")
    ground = survey(network, example=x)
    shared = sorted(len(layers) for layers in ground.classes.values() if len(layers) > 1)
    assert shared == [2, 3, 3, 3, 4]  # the stages of 24, 96, 32 and 160, and 64 channels


@pytest.mark.parametrize("linear", [False, True])
def test_a_squeeze_moves_with_the_channels_it_scales(linear):
    ground = survey(squeezed(linear))
    assert ("wide", "gate.expand") in ground.classes.values()
    assert ("gate.reduce",) in ground.classes.values() and not ground.fixed


def test_what_cannot_move_is_pruned_where_it_stands_and_says_why():
    ground = survey(own("the largest channel"))
    assert ground.layers == ("k",) and ground.fixed == {"k": "max_1 is not followed"}
    assert ground.classes == {}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tied weights", "a: its weight is used more than once"),
        ("groups and dilation", "2: convolution in groups"),
        ("rows joined", "b: it reads the network's input"),
    ],
)
def test_a_network_with_nothing_to_prune_is_one_line(name, words):
    with pytest.raises(ValueError, match=words) as caught:
        survey(own(name))
    assert "\n" not in str(caught.value) and "blocks of 4 rows" in str(caught.value)


class Tokens(nn.Module):
    """Linear layers on a sequence, and torch's attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.wide, self.narrow = nn.Linear(8, 12), nn.Linear(12, 24), nn.Linear(24, 12)
        self.mix, self.head = nn.MultiheadAttention(12, 2, batch_first=True), nn.Linear(12, 4)

    def forward(self, x):
        x = self.embed(x.flatten(1, 2))  # (N, 24, 12)
        x = self.narrow(F.relu(self.wide(x)))
        return self.head(self.mix(x, x, x)[0].mean(1))


def test_rows_on_sequences_move_and_those_of_heads_stay():
    ground = survey(Tokens())
    heads = tuple(f"mix.{part}_proj" for part in "qkv")
    assert ground.layers == ("wide", "narrow", *heads, "mix.out_proj")
    assert ground.classes == {name: (name,) for name in ("wide", "narrow", "mix.out_proj")}
    assert ground.fixed == dict.fromkeys(heads, "its heads stay whole")


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "units"),
    [
        ("vit", ["blocks.0.mlp.fc1", "blocks.1.mlp.fc1"]),
        ("mixer", ["token1", "channel1"]),
        ("convnext", ["widen"]),
        ("an MLP of three layers", ["a", "b"]),
    ],
)
def test_hidden_units_of_mlps_over_tokens_are_rearranged_exactly(name, units):
    network, x = token_network(name)
    ground = survey(network, example=x)
    orders = shuffles(network, x[:1])
    assert set(units) <= set(ground.classes) & set(orders)
    moved = rearrange.permute(network, orders, x[:1])
    assert distance(moved(x), network(x)) < 1e-5
    for unit in units:
        assert torch.equal(moved.get_submodule(unit).bias, network.get_submodule(unit).bias[orders[unit]])


def test_what_of_a_channels_last_block_stays_dense():
    network, x = token_network("convnext")
    ground = survey(network, example=x)
    assert ground.layers == ("widen", "project", "down")
    assert ground.dense == {
        "stem": "it reads the network's input", "depthwise": "depthwise", "fc": "it gives the network's answer"
    }  # fmt: skip


def test_layers_of_fewer_rows_than_a_block_stay_dense():
    ground = survey(squeezed(False), block=8)
    assert ground.dense["gate.reduce"] == "fewer than 8 rows"
    assert "wide" in ground.layers


@pytest.mark.parametrize(
    ("orders", "words"),
    [
        ({"nobody": torch.arange(8)}, "'nobody', which writes no channels"),
        ({"0": torch.tensor([0, 0, 1, 2, 3, 4, 5, 6])}, r"orders\['0'\] is not an order of 8 channels"),
        ({"0": torch.arange(7)}, r"orders\['0'\] is not an order of 8 channels"),
        ({"9": torch.arange(4)}, "channels of 9 cannot move: the network's output"),
    ],
)
def test_a_wrong_order_is_one_line(orders, words):
    with pytest.raises(ValueError, match=words):
        rearrange.permute(own("flattened pictures"), orders, X[:1])


def test_tied_weights_stay_tied():
    network = own("tied weights")
    with pytest.raises(ValueError, match="of a cannot move: the weight of a is used more than once"):
        rearrange.permute(network, {"a": torch.arange(8)}, X[:1])
    moved = rearrange.permute(network, shuffles(network, X[:1]), X[:1])
    assert moved.a.weight is moved.b.weight


class Scaled(nn.Module):
    """A residual block whose branch has a scale a channel, which stands beside the layers (LayerScale)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.scale = nn.Parameter(torch.randn(8, 1, 1))

    def forward(self, x):
        x = self.stem(x)
        return self.last(x + self.scale * self.branch(x))


def test_a_scale_beside_the_layers_moves_with_its_channels():
    torch.manual_seed(0)
    network, x = Scaled().eval(), torch.randn(2, 3, 5, 5)
    moved = rearrange.permute(network, {"stem": torch.randperm(8)}, x[:1])
    assert not torch.equal(moved.scale, network.scale)
    torch.testing.assert_close(moved(x), network(x), atol=1e-5, rtol=1e-5)
