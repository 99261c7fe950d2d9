"""Functions that others mark as one node are traced through; functions of a layer's weights become that layer."""

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from lab.core.graph import surgery
from lab.core.graph.channels import Channels
from lab.core.graph.groups import groups
from lab.core.graph.tracing import trace

from .test_channels import assert_exact

C, HEADS = 8, 2


def windows(x, qkv, proj, bias, side, shift):
    """Attention in shifted windows of an image, as torchvision's Swin has it: its control flow asks for sizes."""
    n, h, w, c = x.shape
    shift = shift.copy()
    if side >= h:
        shift[0] = 0
    x = F.pad(x, (0, 0, 0, (side - w % side) % side, 0, (side - h % side) % side))
    _, high, wide, _ = x.shape
    count = (high // side) * (wide // side)
    if sum(shift) > 0:
        x = torch.roll(x, shifts=(-shift[0], -shift[1]), dims=(1, 2))
    x = x.view(n, high // side, side, wide // side, side, c)
    x = x.permute(0, 1, 3, 2, 4, 5).reshape(n * count, side * side, c)
    y = F.linear(x, qkv, bias).reshape(x.size(0), x.size(1), 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
    q, k, v = y[0], y[1], y[2]
    scores = q @ k.transpose(-2, -1)
    if sum(shift) > 0:
        mask = x.new_zeros((high, wide))
        mask[: side // 2] = -2.0
        mask = mask.view(high // side, side, wide // side, side).permute(0, 2, 1, 3).reshape(count, side * side)
        scores = scores.view(x.size(0) // count, count, HEADS, x.size(1), x.size(1)) + mask[:, None, None]
        scores = scores.view(-1, HEADS, x.size(1), x.size(1))
    x = F.linear((scores.softmax(-1) @ v).transpose(1, 2).reshape(x.size(0), x.size(1), c), proj)
    x = x.view(n, high // side, wide // side, side, side, c).permute(0, 1, 3, 2, 4, 5).reshape(n, high, wide, c)
    return x[:, :h, :w].contiguous()


def pair(x, scale):
    return x * scale, None if scale is None else x + scale


def guess(x):
    return x if x.sum() > 0 else -x


def doubled_in_place(x):
    x.mul_(2)  # nobody reads what it gives
    return x.view(x.shape[0], -1).sum(1, keepdim=True)


def doubled_then_guessed(x):
    x.mul_(2)
    return x if x.sum() > 0 else -x


def counted(x):
    return x.view(len(x), -1).sum(1, keepdim=True)


def summed(x):
    return sum(sample.sum() for sample in x)


for name in ("windows", "pair", "guess", "counted", "summed", "doubled_in_place", "doubled_then_guessed"):
    fx.wrap(name)


class Windows(nn.Module):
    def __init__(self, shift):
        super().__init__()
        self.stem, self.qkv, self.proj = nn.Conv2d(3, C, 1), nn.Linear(C, 3 * C), nn.Linear(C, C, bias=False)
        self.shift, self.head = shift, nn.Linear(C, 4)

    def forward(self, x):
        x = self.stem(x).permute(0, 2, 3, 1)
        x = windows(x, self.qkv.weight, self.proj.weight, self.qkv.bias, 4, self.shift)
        return self.head(x).mean((1, 2))


@torch.no_grad()
@pytest.mark.parametrize("shift", [[0, 0], [2, 2]])
def test_attention_in_windows_is_traced_through_and_loses_heads(shift):
    net = Windows(shift).eval()
    x = torch.randn(3, 3, 10, 7)
    graph = trace(net, x[:1])
    assert torch.equal(graph(x), net(x))
    assert "windows" not in {getattr(node.target, "__name__", "") for node in graph.graph.nodes}
    listed = {group.name: (group.kind, group.size, group.entries) for group in groups(Channels(graph))}
    assert listed["qkv"] == ("heads", HEADS, 3 * C // HEADS)
    assert_exact(net, surgery.Plan(channels={"qkv": (0,), "stem": (0, 2, 3), "proj": (1, 5)}), x[:1])
    assert net.shift == shift


class Several(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, C, 1), function

    def forward(self, x):
        y = self.function(self.conv(x))
        return y[0] + y[1] if isinstance(y, tuple) else y


class Counting(nn.Module):
    def __init__(self, loops):
        super().__init__()
        self.layer, self.loops = nn.Conv2d(3, C, 1), loops

    def forward(self, x):
        return (summed if self.loops else counted)(self.layer(x))


@pytest.mark.parametrize("loops", [False, True])
@torch.no_grad()
def test_the_number_of_samples_is_none_that_is_known(loops):
    torch.manual_seed(0)
    model, x = Counting(loops), torch.randn(3, 3, 4, 4)
    torch.testing.assert_close(trace(model, x[:1])(x), model(x))


class Doubled(nn.Module):
    def __init__(self, guesses):
        super().__init__()
        self.layer, self.guesses = nn.Conv2d(3, C, 1), guesses

    def forward(self, x):
        y = self.layer(x)
        z = doubled_then_guessed(y) if self.guesses else doubled_in_place(y)
        return y.mean((2, 3)) + z.flatten(1).sum(1, keepdim=True)


@torch.no_grad()
def test_what_works_in_place_is_done_once():
    torch.manual_seed(0)
    model, x = Doubled(guesses=False), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(trace(model, x[:1])(x), model(x))
    with pytest.raises(ValueError, match=r"works in place in a way that is not followed \(doubled_then_guessed\)"):
        trace(Doubled(guesses=True), x[:1])


@torch.no_grad()
def test_several_results_and_what_cannot_be_known():
    x = torch.randn(2, 3, 4, 4)

    class Pair(Several):
        def forward(self, x):
            y = pair(self.conv(x), 2.0)
            return y[0] * y[1]

    graph = trace(Pair(None).eval(), x)
    assert {node.name for node in graph.graph.nodes} == {"x", "conv", "mul", "add", "mul_1", "output"}
    graph = trace(Several(lambda x: guess(x)).eval(), x)
    assert "guess" in {node.name for node in graph.graph.nodes}
    assert "guess is not followed" in Channels(graph).frozen.values()


class Same(nn.Conv2d):
    """Pads as TensorFlow does."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride, groups=self.groups)


class Last(nn.LayerNorm):
    """Over channels that come first."""

    def forward(self, x):
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class Activated(nn.BatchNorm2d):
    def forward(self, x):
        y = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )
        return F.relu(y)


class Plain(nn.Module):
    """Weights without torch's layer."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, C))

    def forward(self, x):
        return F.linear(x, self.weight)


@torch.no_grad()
def test_functions_of_weights_are_the_layers_that_hold_them():
    net = nn.Sequential(
        Same(3, C, 2, 2), Activated(C), nn.Conv2d(C, C, 1), Last(C), Same(C, C, 2, groups=C), Activated(C),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), Plain(), nn.ReLU(), nn.Linear(5, 4),
    )  # fmt: skip
    for index in (1, 5):
        net[index].running_mean.normal_()
        net[index].running_var.uniform_(0.5, 1.5)
    net.eval()
    x = torch.randn(2, 3, 8, 8)
    graph = trace(net, x[:1])
    assert torch.allclose(graph(x), net(x), atol=1e-6)
    kinds = [type(graph.get_submodule(str(n.target))) for n in graph.graph.nodes if n.op == "call_module"]
    assert kinds[:2] == [nn.Conv2d, nn.BatchNorm2d] and kinds.count(nn.LayerNorm) == 1 and kinds.count(nn.Linear) == 2
    assert set(graph.state_dict()) == set(net.state_dict()) | {"1.num_batches_tracked", "5.num_batches_tracked"}
    assert_exact(net, surgery.Plan(channels={"0": (1, 2, 5), "8": (0, 3)}), x)


def test_a_weight_that_is_computed_or_read_twice_is_no_layer():
    class Twice(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.line, self.scale = nn.Linear(C, C), scale

        def forward(self, x):
            return F.linear(x, self.line.weight * self.scale) + self.line.weight.sum()

    graph = trace(Twice(2.0), torch.randn(1, C))
    assert not [node for node in graph.graph.nodes if node.op == "call_module"]


def gated(x, weight, bias, count):
    """A linear layer of which some biases are set to 0, as torchvision's Swin-v2 does with those of its keys."""
    bias = bias.clone()
    bias[count : 2 * count].zero_()
    return F.linear(x, weight, bias)


fx.wrap("gated")


class ZeroedBias(nn.Module):
    def __init__(self):
        super().__init__()
        self.line, self.after = nn.Linear(C, 3 * C), nn.Linear(3 * C, 4)

    def forward(self, x):
        return self.after(gated(x, self.line.weight, self.line.bias, C).relu())


class JoinedBias(nn.Module):
    """A bias of several parameters, as BEiT's, whose keys have none that learns."""

    def __init__(self):
        super().__init__()
        self.line, self.after = nn.Linear(C, 3 * C, bias=False), nn.Linear(3 * C, 4)
        self.q, self.v = (nn.Parameter(torch.randn(C)) for _ in range(2))
        self.register_buffer("k", torch.zeros(C))

    def forward(self, x):
        return self.after(F.linear(x, self.line.weight, torch.cat([self.q, self.k, self.v])).relu())


@pytest.mark.parametrize("kind", [ZeroedBias, JoinedBias])
@torch.no_grad()
def test_a_bias_that_is_computed_from_parameters_alone_is_the_layers(kind):
    torch.manual_seed(0)
    net, x = kind().eval(), torch.randn(2, C)
    net.line.weight.normal_()
    graph = trace(net, x[:1])
    assert torch.allclose(graph(x), net(x), atol=1e-6)
    assert set(graph.state_dict()) == {"line.weight", "line.bias", "after.weight", "after.bias"}
    assert graph.line.bias.requires_grad and not graph.line.bias[C : 2 * C].any()
    assert_exact(net, surgery.Plan(channels={"line": range(3, 20)}), x)


def test_a_bias_that_others_read_stays_computed():
    class Shared(JoinedBias):
        def forward(self, x):
            return super().forward(x) + self.q.sum()

    net, x = Shared().eval(), torch.randn(2, C)
    graph = trace(net, x[:1])
    assert {"q", "k", "v"} <= set(graph.state_dict())
    assert torch.allclose(graph(x), net(x), atol=1e-6)
