"""Masks sit where the paper puts them, fold exactly, and their zeros are removed exactly: every family."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lab.core import cost, nets
from lab.core.graph import surgery
from lab.core.graph.channels import Channels
from lab.core.graph.tracing import trace
from lab.gal import structures

from ..core.graph import test_groups as transformers
from ..core.graph.test_channels import BLOCKS
from ..core.graph.test_channels import network as random_network
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


@pytest.mark.slow
def test_the_masks_of_resnet50_sit_on_blocks_and_three_inputs_of_each():
    network, x, units, _ = family("resnet50 jointly")
    found = structures.insert_masks(network, units, x[:1]).structures
    by_unit = {unit: [s for s in found if s.unit == unit] for unit in units}
    assert len(by_unit["block"]) == len(by_unit["input"]) == 16
    assert len(by_unit["channel"]) == 32  # what conv2 and conv3 read
    assert all(s.name.endswith("conv1") for s in by_unit["input"])


@pytest.mark.slow
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


@torch.no_grad()
def test_a_mask_is_never_put_in_front_of_a_batch_norm():
    """Zero before a batch norm is a constant behind it: such channels are masked where they are read."""

    class Forked(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.last, self.other = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            y = self.conv(x)
            return (self.last(self.norm(y)) + self.other(y)).mean((2, 3))

    network, x = Forked().eval(), torch.randn(2, 3, 8, 8)
    network.norm.running_mean.normal_()
    network.norm.bias.normal_()
    masked = structures.insert_masks(network, ("channel",), x[:1])
    close_some(masked)
    removed = surgery.remove(structures.fold(masked), structures.plan(masked)[0], x[:1])
    assert distance(removed(x), masked.model(x)) < 1e-5 and removed.conv.out_channels < 8


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


@pytest.mark.slow
def test_a_module_without_branches_is_refused():
    network, x, units, _ = family("googlenet branches")
    masked = structures.insert_masks(network, units, x[:1])
    for mask in masked.masks()[:4]:
        mask.data.zero_()
    with pytest.raises(ValueError, match=r"all branches of cat are closed \(.*\), nothing would be left.*lower lam"):
        structures.plan(masked)


class Separable(nn.Module):
    """Two branches side by side, which a depthwise convolution with a batch norm of its own reads (ShuffleNet)."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.depthwise, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), norm
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.last(self.norm(self.depthwise(torch.cat([self.a(x).relu(), self.b(x).relu()], 1))))


def test_a_branch_whose_zeros_become_something_else_is_left_dense():
    example = torch.zeros(1, 3, 8, 8)
    channels = Channels(trace(Separable(nn.BatchNorm2d(8)), example))
    found, dense = structures.find(channels, ("branch",))
    assert not found and dense == {name: "norm makes something of its zeros" for name in "ab"}
    found, dense = structures.find(Channels(trace(Separable(nn.Identity()), example)), ("branch",))
    assert [s.name for s in found] == ["a", "b"] and not dense


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


def test_a_residual_stream_is_left_dense_unless_it_is_asked_for():
    channels = Channels(trace(Joined(lambda s, x: residual(s.a(x), s.b)), torch.zeros(1, 3, 4, 4)))
    found, dense = structures.find(channels, ("channel",))
    assert dense == {"a": "its channels are a residual stream", "b": "its channels are shared with a"} and not found
    (found,), _ = structures.find(channels, ("stream",))
    assert (found.unit, found.name, found.entries) == ("stream channel", "a", 8)


@pytest.mark.parametrize("join", [lambda s, x: s.a(x) + s.c(x), lambda s, x: s.a(x) * s.c(x).sigmoid()])
def test_the_channels_of_several_layers_have_one_mask(join):
    (found,), dense = structures.find(Channels(trace(Joined(join), torch.zeros(1, 3, 4, 4))), ("channel",))
    assert (found.unit, found.name, found.entries, dense) == ("channel", "a", 8, {})


class Inverted(nn.Module):
    """MobileNet v3's block: a depthwise layer between two of 1x1, a gate before the last, and a shortcut."""

    def __init__(self, c):
        super().__init__()
        self.up, self.norm = nn.Conv2d(c, 2 * c, 1, bias=False), nn.BatchNorm2d(2 * c)
        self.dw = nn.Conv2d(2 * c, 2 * c, 3, padding=1, groups=2 * c)
        self.squeeze, self.excite = nn.Conv2d(2 * c, 3, 1), nn.Conv2d(3, 2 * c, 1)
        self.down = nn.Conv2d(2 * c, c, 1)

    def forward(self, x):
        y = F.hardswish(self.dw(F.hardswish(self.norm(self.up(x)))))
        return x + self.down(y * F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1))))))


class Bottleneck(nn.Module):
    """RegNet's block: groups of channels between two layers of 1x1."""

    def __init__(self, c):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(c, 12, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1, groups=3),
            nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, c, 1),
        )  # fmt: skip

    def forward(self, x):
        return F.relu(x + self.layers(x))


@pytest.fixture(autouse=True, scope="module")
def more_blocks():
    BLOCKS.update(inverted=Inverted, bottleneck=Bottleneck)
    yield
    del BLOCKS["inverted"], BLOCKS["bottleneck"]


def assert_masked_is_removed(network, units, x):
    """Masked, folded and removed are one function; False where nothing can be masked."""
    try:
        masked = structures.insert_masks(network, units, x[:1])
    except ValueError as error:
        assert "can be masked" in str(error)
        return False
    assert torch.allclose(masked.model(x), network(x), rtol=1e-5, atol=1e-6)
    masked.model(x).square().sum().backward()
    assert all(mask.grad is not None for mask in masked.masks())
    for whole in (0, 1):
        with torch.no_grad():
            close_some(masked, whole=whole)
            expected, folded = masked.model(x), structures.fold(masked)
            removed = surgery.remove(folded, structures.plan(masked)[0], x[:1])
            assert distance(folded(x), expected) < 1e-5 and distance(removed(x), expected) < 1e-5
    return True


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from([*BLOCKS, "inverted", "bottleneck"]), min_size=1, max_size=3),
    st.sampled_from(["mean", "flat", "numbers"]),
    st.lists(st.sampled_from(structures.UNITS), min_size=1, max_size=5, unique=True),
    st.integers(0, 2**16),
)
def test_masks_on_random_networks_are_removed_exactly(names, end, units, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network, x = random_network(names, end), torch.randn(2, 3, 8, 8)
        assert_masked_is_removed(network, tuple(units), x)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.sampled_from([name for name in transformers.BLOCKS if name != "expanded by two"]), min_size=1, max_size=3
    ),
    st.sampled_from([("channel", "block"), ("channel",), ("block",)]),
    st.integers(0, 2**16),
)
def test_masks_on_random_transformers_are_removed_exactly(names, units, seed):
    with torch.random.fork_rng():
        network = transformers.network(names, seed)
        for scale in (network.scale, network.token):
            nn.init.uniform_(scale, 0.5, 1)
        assert_masked_is_removed(network, units, transformers.X)


@pytest.mark.slow
@pytest.mark.parametrize("name", transformers.ATTENTIONS)
def test_each_head_has_one_mask_entry_and_each_residual_branch_too(name):
    with torch.random.fork_rng():
        network = transformers.network([name, "plain"])
        assert assert_masked_is_removed(network, ("channel", "block"), transformers.X)
        found = structures.insert_masks(network, ("channel", "block"), transformers.X[:1]).structures
    heads = transformers.H // (2 if "two" in name else 1)
    assert [(s.unit, s.entries) for s in found] == [("head", heads), ("hidden unit", 8), ("block", 1), ("block", 1)]


@pytest.mark.parametrize(
    ("block", "entries"),
    [
        ("inverted", {"channel": 2 * 8 + 3, "block": 1}),
        ("bottleneck", {"channel": 3, "block": 1}),
        ("convnext", {"hidden unit": 16, "block": 1}),
        ("gate", {"channel": 8 + 3}),
    ],
)
def test_modern_blocks_are_masked_by_what_they_are_made_of(block, entries):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, x = random_network([block], "mean"), torch.randn(2, 3, 8, 8)
        assert assert_masked_is_removed(network, ("channel", "block"), x)
        found = structures.insert_masks(network, ("channel", "block"), x[:1]).structures
    counts = {unit: sum(s.entries for s in found if s.unit == unit) for unit in {s.unit for s in found}}
    assert counts == entries
