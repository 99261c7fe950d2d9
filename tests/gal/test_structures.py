"""Masks sit where the paper puts them, fold exactly, and their zeros are removed exactly: every family."""

import pytest
import torch
from torch import nn

from lab.core import cost, nets
from lab.core.graph import surgery
from lab.core.graph.tracing import trace
from lab.gal import structures

from .families import FAMILIES, close_some, distance, family


@pytest.fixture(scope="module", params=FAMILIES)
def pruned(request):
    network, x, units, entries = family(request.param)
    masked = structures.insert_masks(network, units, x[:1])
    return network, x, masked, entries


@pytest.mark.slow
@torch.no_grad()
def test_open_masks_change_nothing(pruned):
    network, x, masked, entries = pruned
    assert sum(s.entries for s in masked.structures) == entries
    for mask in masked.masks():
        mask.data.fill_(1)
    assert torch.equal(masked.model(x), network(x))


@pytest.mark.slow
@torch.no_grad()
def test_folded_and_removed_equal_masked(pruned):
    network, x, masked, _ = pruned
    before = {name: value.clone() for name, value in network.state_dict().items()}
    close_some(masked)
    expected = masked.model(x)
    folded = structures.fold(masked)
    assert distance(folded(x), expected) < 1e-5
    assert not any(isinstance(module, structures.Mask) for module in folded.modules())
    plan, _ = structures.plan(masked)
    removed = surgery.remove(folded, plan, x[:1])
    assert distance(removed(x), expected) < 1e-5
    assert cost.parameters(removed) < cost.parameters(network)
    assert cost.macs(removed, x[:1]) < cost.macs(network, x[:1])
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.slow
@torch.no_grad()
def test_the_plan_alone_rebuilds_the_network(pruned):
    network, x, masked, _ = pruned
    close_some(masked)
    plan, _ = structures.plan(masked)
    removed = surgery.remove(structures.fold(masked), plan, x[:1])
    again = surgery.remove(network, surgery.Plan.from_dict(plan.to_dict()), x[:1])
    again.load_state_dict(removed.state_dict())
    assert torch.equal(again(x), removed(x))


def test_the_masks_of_resnet50_sit_on_blocks_and_three_inputs_of_each():
    network, x, units, _ = family("resnet50 jointly")
    found = structures.insert_masks(network, units, x[:1]).structures
    by_unit = {unit: [s for s in found if s.unit == unit] for unit in units}
    assert len(by_unit["block"]) == len(by_unit["input"]) == 16
    assert len(by_unit["channel"]) == 32  # what conv2 and conv3 read
    assert all(s.name.endswith("conv1") for s in by_unit["input"])


def test_first_blocks_of_a_stage_leave_their_shortcut():
    network, x, *_ = family("resnet56 blocks")
    plan = surgery.Plan(blocks=("layer2.0.bn2", "layer3.0.bn2"))
    smaller = surgery.remove(network, plan, x[:1])
    assert smaller(x).shape == (2, 10)
    network, x, *_ = family("resnet50 blocks")
    smaller = surgery.remove(network, surgery.Plan(blocks=("layer2.0.bn3",)), x[:1])
    assert {name for name, _ in smaller.named_modules() if name.startswith("layer2.0.")} == {
        "layer2.0.downsample", "layer2.0.downsample.0", "layer2.0.downsample.1"
    } | {name for name, _ in smaller.named_modules() if name.startswith("layer2.0.relu")}  # fmt: skip


def test_a_wholly_closed_layer_keeps_one_dead_channel():
    network, x, units, _ = family("vgg16 channels")
    masked = structures.insert_masks(network, units, x[:1])
    masked.masks()[3].data.zero_()
    plan, empty = structures.plan(masked)
    assert empty == (masked.structures[3].name,)
    assert plan.channels[empty[0]] == (0,)


def test_a_mask_in_front_of_a_batch_norm_is_not_placed():
    """Zero before a batch norm is a constant behind it: such channels stay dense, with the reason."""

    class Forked(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.last, self.other = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            y = self.conv(x)
            return (self.last(self.norm(y)) + self.other(y)).mean((2, 3))

    with pytest.raises(ValueError, match="conv: norm would turn a zero channel into a constant"):
        structures.insert_masks(Forked(), ("channel",), torch.zeros(1, 3, 8, 8))


def test_a_mask_goes_before_an_activation_that_a_scale_does_not_pass():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 2)
    )
    masked = structures.insert_masks(network.eval(), ("channel",), torch.zeros(1, 3, 8, 8))
    assert masked.structures[0].after == "_1"
    close_some(masked)
    x = torch.randn(2, 3, 8, 8)
    plan, _ = structures.plan(masked)
    with torch.no_grad():
        removed = surgery.remove(structures.fold(masked), plan, x[:1])
        assert distance(removed(x), masked.model(x)) < 1e-5


def test_a_module_without_branches_is_refused():
    network, x, units, _ = family("googlenet branches")
    masked = structures.insert_masks(network, units, x[:1])
    for mask in masked.masks()[:4]:
        mask.data.zero_()
    with pytest.raises(ValueError, match=r"all branches of cat are closed \(.*\), nothing would be left.*lower lam"):
        structures.plan(masked)


def test_nothing_to_mask_is_an_error_that_says_so():
    with pytest.raises(ValueError, match=r"units=\('block',\): nothing in Sequential can be masked"):
        structures.insert_masks(nets.lenet(), ("block",), torch.zeros(1, 1, 28, 28))


class Joined(nn.Module):
    """Two layers whose channels are joined."""

    def __init__(self, join):
        super().__init__()
        self.join, self.a, self.b, self.head = join, nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.c = nn.Conv2d(3, 8, 1)

    def forward(self, x):
        return self.head(self.join(self, x)).mean((2, 3))


def residual(x, branch):
    return x + branch(x.relu())


@pytest.mark.parametrize(
    ("join", "reason"),
    [
        (lambda s, x: residual(s.a(x), s.b), "a residual stream"),
        (lambda s, x: s.a(x) + s.c(x), "joined to those of c"),
        (lambda s, x: s.a(x) * s.c(x).sigmoid(), "multiplied by those of c"),
    ],
)
def test_each_group_of_several_layers_says_what_ties_them(join, reason):
    _, dense = structures.find(trace(Joined(join), torch.zeros(1, 3, 4, 4)), ("channel",))
    assert dense["a"] == f"its channels are {reason}"
