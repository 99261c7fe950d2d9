"""What no path uses is taken out, and the answers on those inputs stay; a plan of outputs on its own, too."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lab.core.graph import surgery
from lab.core.graph.surgery import Plan
from lab.decoupling.layers import gates
from lab.decoupling.paths import record
from lab.decoupling.placement import insert_gates
from lab.decoupling.removal import never_on, removed
from tests.core.graph.test_foreign_networks import Net, conv
from tests.decoupling.families import NETS, QUICK, always, distance, gated, network, plain


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", NETS)
def test_what_is_never_on_goes_and_the_answers_stay(name):
    decoupled, x = gated(name)
    seen = record(decoupled, [x])
    plan = never_on(decoupled, seen, x[:1])
    before = decoupled.model(x)
    smaller = removed(decoupled, plan, x[:1])
    assert distance(smaller.model(x), before) < 1e-5
    assert torch.equal(decoupled.model(x), before)
    assert plan.channels or plan.outputs or name == "one norm for two"
    kept = {**plan.channels, **plan.outputs}
    for old, new in zip(decoupled.sites, smaller.sites, strict=True):
        assert new.layer == old.layer and new.filters == len(kept.get(old.layer, range(old.filters)))
    again = record(smaller, [x])
    for site, bits in zip(decoupled.sites, seen.split(), strict=True):
        index = list(kept.get(site.layer, range(site.filters)))
        assert (again.layer(site.layer) == bits[:, index]).all()
        if name != "one norm for two":
            assert len(index) <= max(2, bits.any(0).sum())


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in QUICK if name != "densenet"])
def test_a_layer_that_is_never_on_keeps_a_filter_or_two(name):
    decoupled, x = gated(name, count=2)
    for site in decoupled.sites:
        always(decoupled, on=False, only=site.layer)
        smaller = removed(decoupled, never_on(decoupled, record(decoupled, [x]), x[:1]), x[:1])
        assert distance(smaller.model(x), decoupled.model(x)) < 1e-5
        assert len(smaller.sites) == len(decoupled.sites)
        if site is decoupled.sites[2 if len(decoupled.sites) > 3 else -1]:
            break


def test_a_plan_survives_its_dictionary():
    decoupled, x = gated("resnet")
    plan = never_on(decoupled, record(decoupled, [x]), x[:1])
    assert plan.channels and plan.outputs
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_a_plan_stored_before_there_were_outputs_is_read():
    old = {"channels": {"a": [0, 2]}, "inputs": {"b": [1]}, "blocks": ["c"], "branches": []}
    assert Plan.from_dict(old) == Plan(channels={"a": (0, 2)}, inputs={"b": (1,)}, blocks=("c",))


def test_residual_writers_are_thinned_and_inner_layers_cut():
    decoupled, x = gated("resnet")
    plan = never_on(decoupled, record(decoupled, [x]), x[:1])
    assert {name.rpartition(".")[2] for name in plan.channels} == {"conv1"}
    assert {name.rpartition(".")[2] for name in plan.outputs} == {"conv2"}
    smaller = removed(decoupled, plan, x[:1])
    for name, index in plan.channels.items():
        assert smaller.model.get_submodule(name).out_channels == len(index)
        assert smaller.model.get_submodule(name.replace("conv1", "conv2")).in_channels == len(index)


@pytest.mark.slow
def test_controllers_lose_what_their_layer_loses():
    decoupled, x = gated("mobilenet_v1")
    smaller = removed(decoupled, never_on(decoupled, record(decoupled, [x]), x[:1]), x[:1])
    for site, gate in zip(smaller.sites, gates(smaller.model).values(), strict=True):
        layer = smaller.model.get_submodule(site.layer)
        assert (gate.controller.fc1.in_features, gate.controller.fc1.weight.shape[1]) == (layer.in_channels,) * 2
        assert gate.controller.fc2.weight.shape[0] == layer.out_channels
    assert smaller.dense < decoupled.dense and smaller.control < decoupled.control


def test_the_mix_is_handed_on():
    decoupled, x = gated("functional")
    for gate in gates(decoupled.model).values():
        gate.mix = "channel"
    smaller = removed(decoupled, never_on(decoupled, record(decoupled, [x]), x[:1]), x[:1])
    assert {gate.mix for gate in gates(smaller.model).values()} == {"channel"}
    assert not smaller.model.training


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ["functional", "vgg"])
def test_nothing_is_planned_where_every_filter_is_used(name):
    decoupled, x = gated(name)
    always(decoupled)
    assert never_on(decoupled, record(decoupled, [x]), x[:1]) == Plan()
    assert distance(removed(decoupled, Plan(), x[:1]).model(x), decoupled.model(x)) < 1e-6


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet", "densenet", "silu and bias"])
def test_what_was_cut_once_is_cut_again(name):
    """The paths of a few pictures take out more of a network that has lost its never-on filters already."""
    decoupled, x = gated(name, count=24)
    once = removed(decoupled, never_on(decoupled, record(decoupled, [x]), x[:1]), x[:1])
    few = x[:2]
    twice = removed(once, never_on(once, record(once, [few]), x[:1]), x[:1])
    assert distance(twice.model(few), decoupled.model(few)) < 1e-5
    assert sum(site.filters for site in twice.sites) < sum(site.filters for site in once.sites)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan(channels={"nowhere": (0,)}), "names 'nowhere', which writes no channels"),
        (Plan(outputs={"nowhere": (0,)}), "names 'nowhere' under outputs, which is not a convolution"),
        (Plan(outputs={"fc": (0,)}), "names 'fc' under outputs, which is not a convolution"),
        (Plan(channels={"layer1.0.conv1": (16,)}), "layer1.0.conv1 has 16 channels, the plan keeps channel 16"),
        (Plan(channels={"layer1.0.conv1": ()}), "layer1.0.conv1 would have 0 channels"),
        (Plan(outputs={"layer1.0.conv2": (0, 99)}), "layer1.0.conv2 has 16 channels, the plan keeps channel 99"),
        (Plan(outputs={"layer1.0.conv2": ()}), "layer1.0.conv2 would have 0 channels"),
    ],
)
def test_a_plan_that_does_not_fit_is_one_line(plan, words):
    decoupled, x = gated("resnet")
    with pytest.raises(ValueError, match=words) as caught:
        removed(decoupled, plan, x[:1])
    assert "\n" not in str(caught.value)


# -- core.graph.surgery: outputs on its own --------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "writer", "norm"),
    [
        ("resnet", "layer1.0.conv2", "layer1.0.bn2"),
        ("resnet", "layer2.0.conv1", "layer2.0.bn1"),
        ("resnet18", "layer2.0.downsample.0", "layer2.0.downsample.1"),
        ("silu and bias", "2", "3"),
        ("one dimension", "2", "3"),
        ("not square", "2", "3"),
    ],
)
def test_outputs_are_zeros_where_the_norm_would_write(name, writer, norm):
    found, x = network(name)
    layer = found.get_submodule(norm)
    index = tuple(range(0, layer.num_features, 3))
    smaller = surgery.remove(found, Plan(outputs={writer: index}), x[:1])
    gone = [k for k in range(layer.num_features) if k not in index]
    layer.weight[gone], layer.bias[gone] = 0, 0
    assert distance(smaller(x), found(x)) < 1e-5
    assert smaller.get_submodule(writer).out_channels == smaller.get_submodule(norm).num_features == len(index)


@torch.no_grad()
def test_outputs_and_channels_of_one_class_go_together():
    """A stream loses channels for all, and one of its writers writes fewer than are left."""
    net = Net(
        lambda s, x: s.fc(F.relu(s.a(F.relu(s.stem(x))) + s.b(F.relu(s.stem(x)))).mean((2, 3))),
        stem=conv(3, 8), a=conv(8, 6), b=conv(8, 6), fc=nn.Linear(6, 4),
    ).eval()  # fmt: skip
    x = torch.randn(2, 3, 8, 8)
    smaller = surgery.remove(net, Plan(channels={"a": (0, 1, 3, 5)}, outputs={"b": (1, 2, 5)}), x[:1])
    for layer, stays in ((net.a, (0, 1, 3, 5)), (net.b, (1, 5))):
        gone = [k for k in range(6) if k not in stays]
        layer.weight[gone], layer.bias[gone] = 0, 0
    assert distance(smaller(x), net(x)) < 1e-5
    assert smaller.get_submodule("b").out_channels == 2 and smaller.get_submodule("fc").in_features == 4


@torch.no_grad()
def test_outputs_that_all_went_elsewhere_leave_one():
    net = Net(
        lambda s, x: s.fc(F.relu(s.a(F.relu(s.stem(x))) + s.b(F.relu(s.stem(x)))).mean((2, 3))),
        stem=conv(3, 8), a=conv(8, 6), b=conv(8, 6), fc=nn.Linear(6, 4),
    ).eval()  # fmt: skip
    x = torch.randn(2, 3, 8, 8)
    smaller = surgery.remove(net, Plan(channels={"a": (0, 1)}, outputs={"b": (4, 5)}), x[:1])
    assert smaller.get_submodule("b").out_channels == 1
    assert smaller(x).shape == (2, 4)


def test_outputs_of_a_dropped_block_are_not_asked_for():
    found, x = network("resnet")
    smaller = surgery.remove(found, Plan(outputs={"layer1.0.conv2": (0, 1)}, blocks=("layer1.0.bn2",)), x[:1])
    assert "layer1.0.conv2" not in dict(smaller.named_modules())
    assert torch.equal(smaller(x), surgery.remove(found, Plan(blocks=("layer1.0.bn2",)), x[:1])(x))


@pytest.mark.parametrize("plan", [Plan(outputs={"layer1.0.conv2": (0, 1)}), Plan(inputs={"layer2.0.conv1": (0, 1)})])
def test_what_is_thinned_stays_on_its_device(plan):
    found, x = network("resnet")
    smaller = surgery.remove(found.to("meta"), plan, x[:1].to("meta"))
    assert {buffer.device.type for buffer in smaller.buffers()} == {"meta"}


def test_a_norm_of_two_layers_cannot_lose_outputs_of_one():
    found, x = network("one norm for two")
    with pytest.raises(ValueError, match=r"more than once|does not run") as caught:
        surgery.remove(found, Plan(outputs={"b": (0, 1, 2)}), x[:1])
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_depthwise_layers_are_cut_with_the_outputs_before_them():
    found = plain(
        conv(3, 8), nn.ReLU(), conv(8, 6, 1), nn.ReLU(), conv(6, 6, groups=6, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        conv(6, 8, 1),
    ).eval()  # fmt: skip
    x = torch.randn(2, 3, 8, 8)
    nn.init.normal_(found[5].bias)
    smaller = surgery.remove(found, Plan(outputs={"2": (1, 4, 5)}), x[:1])
    gone = [0, 2, 3]
    found[5].weight[gone], found[5].bias[gone] = 0, 0
    assert distance(smaller(x), found(x)) < 1e-5
    assert (smaller.get_submodule("4").groups, smaller.get_submodule("7").in_channels) == (3, 6)


def test_filters_that_a_grouped_reader_ties_stay_together():
    """A convolution in groups reads as many channels in each, so a plan of some of them leaves more."""
    net = Net(
        lambda s, x: s.head(F.relu(s.tied(F.relu(s.a(F.relu(s.stem(x)))))).mean((2, 3))),
        stem=conv(3, 8), a=conv(8, 8), tied=nn.Conv2d(8, 8, 3, groups=2), head=nn.Linear(8, 4),
    ).eval()  # fmt: skip
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    decoupled = insert_gates(net, x[:1])
    smaller = removed(decoupled, Plan(channels={"a": (0, 1, 2, 4, 5)}), x[:1])
    (site,) = [site for site in smaller.sites if site.layer == "a"]
    assert site.filters == len(smaller.model.a.weight) == gates(smaller.model)[site.gate].controller.fc2.out_features
    assert smaller.model(x).shape == (2, 4)
