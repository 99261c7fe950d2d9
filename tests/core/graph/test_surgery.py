"""Removal on networks of all kinds: golden counts, what is followed, what is refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lab.core import cost, nets
from lab.core.graph import surgery
from lab.core.graph.channels import Channels
from lab.core.graph.surgery import Plan
from lab.core.graph.tracing import trace

GOLDEN = [
    ("ResNet-56 GAL-0.6", 56, [(1, i) for i in range(1, 7)] + [(2, i) for i in range(1, 5)], 78_299_776, 747_578),
    (
        "ResNet-56 GAL-0.8", 56,
        [(1, i) for i in range(1, 6)] + [(2, i) for i in range(1, 6)] + [(3, i) for i in range(1, 7)],
        49_988_224, 291_386,
    ),
    (
        "ResNet-50 GAL-1", 50,
        [(1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2), (3, 3), (3, 4), (4, 1)],
        1_584_398_336, 14_665_896,
    ),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "depth", "blocks", "macs", "parameters"), GOLDEN, ids=[g[0] for g in GOLDEN])
def test_published_block_sets_give_the_published_counts(name, depth, blocks, macs, parameters):
    network, side, last = (nets.resnet50(), 224, 3) if depth == 50 else (nets.resnet_cifar(depth), 32, 2)
    example = torch.zeros(1, 3, side, side)
    plan = Plan(blocks=tuple(f"layer{stage}.{block}.bn{last}" for stage, block in blocks))
    smaller = surgery.remove(network, plan, example)
    # the released counts leave the classifier out of the CIFAR multiply-adds but not out of these
    assert cost.macs(smaller, example) == macs
    assert cost.parameters(smaller, convention="paper") == parameters


class Own(nn.Module):
    """A user's network: squeeze-and-excite, a residual sum, concat, depthwise, a view, a hard-coded flatten."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.wide, self.depthwise = nn.Conv2d(16, 24, 1), nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.narrow = nn.Conv2d(24, 16, 1)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.left, self.right = nn.Conv2d(16, 6, 1), nn.Conv2d(16, 10, 3, padding=1)
        self.hidden, self.head = nn.Linear(16 * 16, 20), nn.Linear(20, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.narrow(F.relu6(self.depthwise(F.relu6(self.wide(x)))))
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        x = torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1)
        x = F.avg_pool2d(x, 2).view(x.size(0), -1)
        return self.head(F.relu(self.hidden(x)))


def own() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return Own().eval(), torch.randn(2, 3, 8, 8)


def test_channel_groups_of_an_own_network():
    network, x = own()
    groups = sorted(sorted(producers) for _, producers in Channels(trace(network, x)).free())
    assert groups == [
        ["excite", "narrow", "stem"], ["hidden"], ["left"], ["right"], ["squeeze"], ["wide"],
    ]  # fmt: skip


@torch.no_grad()
def test_removing_dead_channels_of_every_group_changes_nothing():
    """Make some channels of each group exactly zero at the source; removal must then be exact."""
    network, x = own()
    plan = {"hidden": 20, "left": 6, "right": 10, "squeeze": 4}
    keep = {name: tuple(range(0, size, 2)) for name, size in plan.items()}
    for name, index in keep.items():
        layer = network.get_submodule(name)
        gone = [i for i in range(layer.weight.shape[0]) if i not in index]
        layer.weight[gone] = 0
        layer.bias[gone] = 0
    smaller = surgery.remove(network, Plan(channels=keep), x[:1])
    assert (smaller(x) - network(x)).abs().max() < 1e-6
    assert smaller.get_submodule("hidden").in_features == (3 + 5) * 16


@torch.no_grad()
def test_a_residual_class_is_cut_everywhere_at_once():
    network, x = own()
    smaller = surgery.remove(network, Plan(channels={"stem": tuple(range(8)), "wide": (0, 5, 7)}), x[:1])
    weighted = {name: module for name, module in smaller.named_modules() if hasattr(module, "weight")}
    shapes = {name: tuple(module.weight.shape[:2]) for name, module in weighted.items()}
    assert shapes["stem"] == (8, 3) and shapes["narrow"] == (8, 3) and shapes["excite"] == (8, 4)
    assert shapes["squeeze"] == (4, 8) and shapes["left"] == (6, 8) and shapes["depthwise"] == (3, 1)
    assert smaller(x).shape == (2, 5)


def test_the_network_passed_in_keeps_its_weights_and_mode():
    network, x = own()
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    surgery.remove(network, Plan(channels={"wide": (0,)}), x[:1])
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan(channels={"nowhere": (0,)}), "names 'nowhere'"),
        (Plan(channels={"wide": ()}), "wide would have 0 channels"),
        (Plan(channels={"wide": (99,)}), "wide has 24 channels"),
        (Plan(channels={"head": (0,)}), "head cannot lose channels: the network's output"),
        (Plan(blocks=("stem",)), "drops 'stem'"),
        (Plan(branches=("left", "right")), "0 branches"),
        (Plan(inputs={"hidden": (0,)}), "not a convolution"),
    ],
)
def test_a_plan_that_does_not_fit_is_one_line(plan, words):
    network, x = own()
    with pytest.raises(ValueError, match=words) as caught:
        surgery.remove(network, plan, x[:1])
    assert "\n" not in str(caught.value)


def test_an_untraceable_network_is_one_line():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match="Branching cannot be traced") as caught:
        trace(Branching(), torch.zeros(1, 3))
    assert "\n" not in str(caught.value)


def test_what_is_not_followed_is_frozen_with_a_reason():
    class Shuffling(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2)

        def forward(self, x):
            return self.b(self.a(x).sort(1).values).mean((2, 3))

    channels = Channels(trace(Shuffling(), torch.zeros(1, 3, 4, 4)))
    assert "sort" in channels.frozen[channels.group_of("a")]


@pytest.mark.slow
def test_magnitude_ranks_and_plans_are_monotone():
    network, x = own()
    scores = surgery.magnitude(network, x[:1])
    plans = [surgery.plan_at(scores, rate) for rate in (0, 0.3, 0.6, 0.9)]
    kept = [cost.parameters(surgery.remove(network, plan, x[:1])) for plan in plans]
    assert kept == sorted(kept, reverse=True) and kept[0] == cost.parameters(network)
    weakest = min((float(s.min()), key) for key, s in scores.items())[1][1][0]
    assert weakest in surgery.plan_at(scores, 0.05).channels
    with pytest.raises(ValueError, match="rate=1"):
        surgery.plan_at(scores, 1)


def test_gather_lists_what_stays_of_an_axis_and_in_which_order():
    channels = Channels(
        trace(nn.Sequential(nn.Conv2d(1, 3, 1), nn.Flatten(), nn.Linear(12, 2)), torch.zeros(1, 1, 2, 2))
    )
    flat = next(layout for node, layout in channels.layouts.items() if node.target == "1")
    group = channels.group_of("0")
    assert channels.gather(flat, {}).tolist() == list(range(12))
    assert channels.gather(flat, {group: torch.tensor([2, 0])}).tolist() == [8, 9, 10, 11, 0, 1, 2, 3]
    elsewhere: dict = {channels.group_of("2"): None}  # what does not lie on an axis is not asked for
    assert channels.gather(flat, {group: torch.tensor([0]), **elsewhere}).tolist() == [0, 1, 2, 3]
    joined = (*flat, *flat)
    assert channels.gather(joined, {group: torch.tensor([1])}).tolist() == [4, 5, 6, 7, 16, 17, 18, 19]


@pytest.mark.parametrize("part", ["channels", "inputs", "outputs", "embedding"])
def test_a_channel_that_a_plan_keeps_twice_is_told_in_one_line(part):
    with pytest.raises(ValueError, match="the plan keeps channel 1 of 'conv' twice: name each once"):
        Plan(**{part: {"conv": (0, 1, 1)}})
    with pytest.raises(ValueError, match="twice"):
        Plan.from_dict(Plan().to_dict() | {part: {"conv": [2, 2]}})
