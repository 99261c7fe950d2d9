"""What modern networks write is followed: random small graphs lose channels exactly; what stays has a true reason."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn
from torch.nn import functional as F

from lab.core.graph import surgery
from lab.core.graph.channels import Channels
from lab.core.graph.tracing import trace


class Gate(nn.Module):
    """Squeeze and excite."""

    def __init__(self, c):
        super().__init__()
        self.down, self.up = nn.Conv2d(c, 3, 1), nn.Conv2d(3, c, 1)

    def forward(self, x):
        return x * F.hardsigmoid(self.up(F.silu(self.down(F.adaptive_avg_pool2d(x, 1)))))


class Shuffle(nn.Module):
    """ShuffleNet v2: one half goes on as it is, and the two are shuffled."""

    def __init__(self, c):
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(c // 2, c // 2, 1), nn.BatchNorm2d(c // 2), nn.Hardswish())

    def forward(self, x):
        left, right = x.chunk(2, dim=1)
        x = torch.cat([left, self.branch(right)], dim=1)
        n, c, h, w = x.size()
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


class ConvNeXt(nn.Module):
    """Depthwise, channels last, LayerNorm, Linear as 1x1, layer scale."""

    def __init__(self, c):
        super().__init__()
        self.dw, self.norm = nn.Conv2d(c, c, 3, padding=1, groups=c), nn.LayerNorm(c)
        self.up, self.down = nn.Linear(c, 2 * c), nn.Linear(2 * c, c)
        self.scale = nn.Parameter(torch.rand(c, 1, 1))

    def forward(self, x):
        y = self.norm(self.dw(x).permute(0, 2, 3, 1))
        return x + self.scale * self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2)


class Halves(nn.Module):
    """A gated linear unit of two slices."""

    def __init__(self, c):
        super().__init__()
        self.both = nn.Conv2d(c, 2 * c, 1)

    def forward(self, x):
        y, half = self.both(x), x.shape[1]
        return y[:, :half] * y[:, half:].sigmoid()


class PixelShuffle(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.up = nn.Conv2d(c, 4 * c, 1)

    def forward(self, x):
        return F.max_pool2d(F.pixel_shuffle(self.up(x), 2), 2)


class Scaled(nn.Module):
    """Layer scale alone, on the residual sum of a grouped convolution."""

    def __init__(self, c):
        super().__init__()
        self.conv, self.scale = nn.Conv2d(c, c, 3, padding=1, groups=2), nn.Parameter(torch.rand(1, c, 1, 1))

    def forward(self, x):
        return x + self.scale * self.conv(x)


class LastAndBack(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.mlp = nn.Linear(c, c)

    def forward(self, x):
        return F.relu(self.mlp(x.movedim(1, -1))).permute(0, 3, 1, 2)


BLOCKS = {
    "gate": Gate,
    "shuffle": Shuffle,
    "convnext": ConvNeXt,
    "halves": Halves,
    "pixels": PixelShuffle,
    "grouped": Scaled,
    "last": LastAndBack,
    "group norm": lambda c: nn.Sequential(nn.Conv2d(c, c, 1), nn.GroupNorm(4, c), nn.SiLU()),
    "multiplier": lambda c: nn.Sequential(nn.Conv2d(c, 2 * c, 3, 1, 1, groups=c), nn.ReLU6(), nn.Conv2d(2 * c, c, 1)),
    "transposed": lambda c: nn.Sequential(nn.ConvTranspose2d(c, c, 2, 2), nn.BatchNorm2d(c), nn.AvgPool2d(2)),
    "channel shuffle": lambda c: nn.ChannelShuffle(4),
}  # fmt: skip
C = 8


def network(names, end):
    ends = {
        "mean": (nn.Identity(), lambda x: x.mean((2, 3)), C),
        "flat": (nn.AdaptiveAvgPool2d(2), lambda x: x.contiguous().view(x.size(0), -1), 4 * C),
        "numbers": (nn.AdaptiveAvgPool2d(2), lambda x: x.reshape(-1, 4 * C), 4 * C),
    }
    pool, flatten, size = ends[end]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.blocks = nn.Conv2d(3, C, 3, padding=1), nn.Sequential(*(BLOCKS[name](C) for name in names))
            self.pool, self.head = pool, nn.Linear(size, 5)

        def forward(self, x):
            return self.head(flatten(self.pool(self.blocks(self.stem(x)))))

    net = Net()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net.eval()


class Masked(fx.Interpreter):
    """The whole network, in which each channel that goes is zero wherever it is read."""

    def __init__(self, graph, channels, kept):
        super().__init__(graph)
        self.channels, self.kept = channels, kept

    def run_node(self, n):
        value = super().run_node(n)
        if layout := self.channels.layouts.get(n):
            size = [-1 if axis == self.channels.axes[n] else 1 for axis in range(value.dim())]
            stays = self.channels.expand(layout, self.kept)
            stays = stays.repeat(value.shape[self.channels.axes[n]] // len(stays))  # heads of several examples
            value = value.masked_fill(~stays.view(size), 0)  # where it may be infinite
        return value


def assert_exact(net, plan, x):
    graph = trace(net, x[:1])
    channels = Channels(graph)
    expected = Masked(graph, channels, surgery.kept_channels(channels, plan)).run(x)
    removed = surgery.remove(net, plan, x[:1])(x)
    assert (removed - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(list(BLOCKS)), min_size=1, max_size=4),
    st.sampled_from(["mean", "flat", "numbers"]),
    st.integers(0, 2**16),
)
def test_random_plans_on_random_networks_are_exact(names, end, seed):
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        net, x = network(names, end), torch.randn(2, 3, 8, 8)
        scores = surgery.magnitude(net, x[:1])
        kept = {name: torch.rand(len(score)).gt(0.4).nonzero().flatten() for (_, (name,)), score in scores.items()}
        plan = surgery.Plan(channels={name: tuple(index.tolist()) or (0,) for name, index in kept.items()})
        assert_exact(net, plan, x)
        if scores:
            assert_exact(net, surgery.plan_at(scores, 0.3), x)


@pytest.mark.parametrize("name", BLOCKS)
def test_each_block_alone_is_followed_or_says_why_not(name):
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        net, x = network([name], "numbers"), torch.randn(2, 3, 8, 8)
        channels = Channels(trace(net, x[:1]))
        frozen = {channels.frozen.get(channels.group_of(n)) for n in channels.rows if n != "head"} - {None}
        assert frozen == ({"LayerNorm normalises over all of its channels"} if name == "convnext" else set())
        assert_exact(net, surgery.plan_at(surgery.magnitude(net, x[:1]), 0.4), x)
