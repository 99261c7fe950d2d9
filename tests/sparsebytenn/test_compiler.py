"""From torch to the engine's operators: whatever reads a value how, and however a call is written."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lab.core import kernels
from lab.sparsebytenn import compiler, packed, reference
from lab.sparsebytenn.runtime import Engine

from .native import rolled

SIDE = 12


class Net(nn.Module):
    """A network of the given modules, and what it does with them."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.does = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.does(self, x)


def compared(model, x, interleaved=False, floats=0):
    """The largest difference to torch, over its largest number, of the engine and of its numpy reference."""
    network = compiler.compile(model, x[:1], interleaved=interleaved)
    data = packed.write(rolled(network, floats) if floats else network)
    given_ = x.permute(0, 2, 3, 1).contiguous() if interleaved else x
    with torch.no_grad():
        exact = model.eval()(x)
    y = Engine(data)(given_)
    mine = np.stack([reference.run(packed.read(data), picture.numpy()) for picture in given_])
    assert y.shape == exact.shape
    size = float(exact.abs().max()) or 1.0
    return max(float((z - exact).abs().max()) / size for z in (y, torch.from_numpy(mine).reshape(exact.shape)))


def conv(i, o, k=1, **options):
    return nn.Conv2d(i, o, k, **{"padding": k // 2, **options})


def deep(c=8, k=3, **options):
    return conv(c, c, k, groups=c, **options)


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def x():
    return torch.randn(2, 3, SIDE, SIDE)


# -- networks drawn at random ------------------------------------------------------------------------------------------

TAKEN = (
    "pointwise",
    "pointwise relu",
    "conv",
    "conv norm",
    "depthwise",
    "depthwise relu",
    "down",
    "add",
    "twice",
    "dw + pw",
    "pw + dw",
)
OTHERS = ("relu", "clamp", "norm", "cat", "identity")
LAYERS = {
    "pointwise": lambda c: conv(c, 4),
    "pointwise relu": lambda c: nn.Sequential(conv(c, 4), nn.ReLU()),
    "conv": lambda c: conv(c, 4, 3),
    "conv norm": lambda c: nn.Sequential(conv(c, 4, 3), nn.BatchNorm2d(4), nn.ReLU6()),
    "depthwise": deep,
    "depthwise relu": lambda c: nn.Sequential(deep(c, 5), nn.ReLU()),
    "down": lambda c: deep(c, 3, stride=2),
    "relu": lambda c: nn.ReLU(),
    "clamp": lambda c: nn.Hardtanh(-0.3, 0.5),
    "norm": nn.BatchNorm2d,
    "identity": lambda c: nn.Identity(),
    "dw + pw": lambda c: Net(lambda n, x: n.a(x) + n.b(x), a=deep(c), b=conv(c, c)),
    "pw + dw": lambda c: Net(lambda n, x: n.a(x) + n.b(x), a=conv(c, c), b=deep(c)),
}


class Drawn(nn.Module):
    """A graph: each step reads one or two of the values so far, whichever its numbers say."""

    def __init__(self, steps, ends_in_map):
        super().__init__()
        self.layers, self.steps, self.ends_in_map = nn.ModuleList([conv(3, 4, 3)]), [], ends_in_map
        shapes = [(4, 8)]  # channels, side
        for kind, i, j in steps:
            i %= len(shapes)
            alike = [n for n, shape in enumerate(shapes) if shape == shapes[i]]
            c, side = shapes[i]
            self.layers.append(LAYERS[kind](c) if kind in LAYERS else nn.Identity())
            self.steps.append((kind, i, i if kind == "twice" else alike[j % len(alike)]))
            changes = kind in ("pointwise", "pointwise relu", "conv", "conv norm")
            channels = 4 if changes else 2 * c if kind == "cat" else c
            shapes.append((channels, -(-side // 2) if kind == "down" else side))
        self.head = nn.Linear(shapes[-1][0], 3)

    def forward(self, x):
        values = [self.layers[0](x)]
        for layer, (kind, i, j) in zip(list(self.layers)[1:], self.steps, strict=True):
            if kind in LAYERS:
                values.append(layer(values[i]))
            else:
                values.append(torch.cat([values[i], values[j]], 1) if kind == "cat" else values[i] + values[j])
        return values[-1] if self.ends_in_map else self.head(values[-1].mean((2, 3)))


def steps_of(kinds):
    return st.lists(st.tuples(st.sampled_from(kinds), st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=9)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(steps_of(TAKEN), st.booleans(), st.booleans(), st.sampled_from([0, 300, 3_000]))
def test_a_value_may_be_read_in_any_role_by_any_number(steps, ends_in_map, interleaved, floats):
    """Paths side by side, sums of anything with anything, one value read twice: the engine is torch."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert compared(Drawn(steps, ends_in_map), torch.randn(1, 3, 8, 8), interleaved, floats) < 1e-4


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(steps_of(TAKEN + 2 * OTHERS), st.booleans())
def test_what_may_be_fused_is_so_only_where_nobody_else_reads_it(steps, interleaved):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert compared(Drawn(steps, True), torch.randn(1, 3, 8, 8), interleaved) < 1e-4


def test_a_depthwise_convolution_that_is_added_is_not_joined_to_what_adds_it(x):
    """y = dw(x) + pw(x): the pointwise one alone reads the depthwise one's map, but not as its input."""
    net = Net(lambda n, x: (lambda y: n.dw(y) + n.pw(y))(n.a(x)), a=conv(3, 8, 3), dw=deep(), pw=conv(8, 8))
    network = compiler.compile(net, x[:1])
    assert [op.kind for op in network.ops] == ["conv", "depthwise", "pointwise"] and network.ops[2].add is not None
    assert compared(net, x) < 1e-5


def test_a_map_that_a_sum_is_taken_into_stays_whole(x):
    """dw(x) + pw(x) and a convolution behind: a rolling row buffer would lie at another pitch than what is added."""
    net = Net(
        lambda n, x: n.b((lambda y: n.dw(y) + n.pw(y))(n.a(x))),
        a=conv(3, 8, 3),
        dw=deep(),
        pw=conv(8, 8),
        b=conv(8, 4, 3),
    )
    network = rolled(compiler.compile(net, x[:1]), 0)
    fused = next(op for op in network.ops if op.add is not None)
    assert fused.kind == "pointwise" and not network.maps[fused.y].buffer_rows
    assert compared(net, x, floats=1) < 1e-5


def test_a_clamp_is_not_written_into_a_map_that_is_read_under_another_name(x):
    """relu(flatten(y)) beside mean(y): flatten is another name of y's map."""
    net = Net(
        lambda n, x: (lambda y: n.fc(torch.relu(y.flatten(1))) + y.mean((2, 3)))(n.a(x)),
        a=conv(3, 8, 3),
        fc=nn.Linear(8 * SIDE**2, 8),
    )
    assert compared(net, x) < 1e-5


# -- calls, however they are written -----------------------------------------------------------------------------------

SAME = {
    "a padding alone is left": Net(lambda n, x: n.a(F.pad(x[..., :1], (-1, 5), value=2)), a=conv(3, 8, 3)),
    "one stride for both axes": Net(lambda n, x: n.a(x), a=nn.Conv2d(3, 8, 3, [2], [1], [1])),
    "relu, in place, as a keyword and not": Net(
        lambda n, x: F.relu(n.b(F.relu(input=n.a(x), inplace=False)), False), a=conv(3, 8, 3), b=conv(8, 8)
    ),
    "methods": Net(lambda n, x: n.a(x).relu(), a=conv(3, 8, 3)),
    "clamps": Net(lambda n, x: n.b(n.a(x).clamp(min=0)).clamp(-0.1, max=0.2), a=conv(3, 8, 3), b=conv(8, 8)),
    "clamps that do not meet": Net(lambda n, x: torch.clip(n.a(x).clamp(-1, 1), 2, 3) + n.a(x), a=conv(3, 8, 3)),
    "hardtanh": Net(lambda n, x: F.hardtanh(n.h(n.a(x)), max_val=0.1), a=conv(3, 8, 3), h=nn.Hardtanh(-0.5, 0.3)),
    "clamp_min": Net(lambda n, x: torch.clamp_min(n.a(x), 0.1), a=conv(3, 8, 3)),
    "sums by keyword": Net(lambda n, x: torch.add(other=n.a(x), input=n.b(x)), a=conv(3, 8, 3), b=conv(3, 8)),
    "mean over a list": Net(lambda n, x: torch.mean(n.a(x), dim=[-1, -2], keepdim=True), a=conv(3, 8, 3)),
    "pool by keyword": Net(lambda n, x: F.adaptive_avg_pool2d(input=n.a(x), output_size=[1, 1]), a=conv(3, 8, 3)),
    "flatten by keyword": Net(lambda n, x: torch.flatten(start_dim=1, input=n.a(x)), a=conv(3, 8, 3)),
    "a view of the sizes": Net(lambda n, x: n.a(x).relu().view(x.size(0), -1), a=conv(3, 8, 3)),
    "a view that is clamped": Net(lambda n, x: n.a(x).view(x.size(0), -1).relu(), a=conv(3, 8, 3)),
    "a mean that is clamped": Net(lambda n, x: n.a(x).mean((2, 3)).clamp(-0.05, 0.05), a=conv(3, 8, 3)),
    "a 1 x 1 head behind the pool": Net(
        lambda n, x: n.c(n.p(n.a(x))).flatten(1), a=conv(3, 8, 3), p=nn.AdaptiveAvgPool2d(1), c=conv(8, 5)
    ),
    "layers behind the pool": Net(
        lambda n, x: n.d(n.b(n.c(n.p(n.p(n.a(x))))).relu()),
        a=conv(3, 8, 3), p=nn.AdaptiveAvgPool2d((1, 1)), c=conv(8, 6), b=nn.BatchNorm2d(6), d=conv(6, 4, 3),
    ),
    "the picture itself": nn.Identity(),
    "the picture's mean": Net(lambda n, x: x.mean((2, 3))),
    "the picture and itself": Net(lambda n, x: x + x),
    "a shortcut from the picture": Net(lambda n, x: n.a(x) + x, a=conv(3, 3)),
    "a linear layer first": Net(lambda n, x: n.fc(x.flatten(1)), fc=nn.Linear(3 * SIDE**2, 4)),
    "depthwise first": Net(lambda n, x: n.b(n.a(x).relu()), a=deep(3), b=conv(3, 4)),
    "a padding that is not zero": Net(lambda n, x: n.a(F.pad(x, (1, 1, 1, 1), value=2.0)), a=conv(3, 4)),
    "a scaled sum": Net(lambda n, x: torch.add(n.a(x), n.b(x), alpha=2), a=conv(3, 4), b=conv(3, 4)),
    "a number": Net(lambda n, x: n.a(x) + 1, a=conv(3, 4)),
    "numbers a row": Net(lambda n, x: 2 - (n.a(x) * 3 - torch.arange(4.0)[:, None, None]) / 4, a=conv(3, 4)),
    "a broadcast": Net(lambda n, x: n.a(x) + n.a(x).mean((2, 3), keepdim=True), a=conv(3, 4)),
    "a vector and a map": Net(lambda n, x: n.a(x) + x.mean((2, 3), keepdim=True), a=nn.Conv2d(3, 3, SIDE)),
    "depthwise behind the pool": Net(lambda n, x: n.a(x.mean((2, 3), keepdim=True)), a=deep(3)),
    "a linear layer on a map": Net(lambda n, x: n.b(n.a(x)), a=conv(3, 4), b=nn.Linear(SIDE, 4)),
    "a pool by the name of add": Net(lambda n, x: n.add(n.a(x)), a=conv(3, 4), add=nn.MaxPool2d(2)),
    "a pool by the name of mean": Net(lambda n, x: n.mean(n.a(x)), a=conv(3, 4), mean=nn.MaxPool2d(2)),
    "attention of which one query sees nothing": Net(
        lambda n, x: F.scaled_dot_product_attention(
            *[n.a(x).permute(0, 2, 3, 1)] * 3, attn_mask=torch.arange(SIDE)[:, None].expand(SIDE, SIDE) > 0
        ),
        a=conv(3, 5),
    ),
    "attention whose mask hides all from one query": Net(
        lambda n, x: F.scaled_dot_product_attention(x, x, x, torch.arange(SIDE)[:, None].expand(SIDE, SIDE) > 0)
    ),
    "in place inside torch": Net(lambda n, x: n.b(n.a(x)), a=conv(3, 4), b=nn.RMSNorm(SIDE)),
    "sums over axes": Net(  # what divides is a sum without cancellation: over what may be 0, last bits would grow
        lambda n, x: n.a(x).sum(3) / n.a(x).relu().sum((1, 2, 3), keepdim=True)[..., 0], a=conv(3, 4)
    ),
    "chunks": Net(lambda n, x: torch.relu(n.a(x).chunk(2, 1)[0]), a=conv(3, 4)),
    "as many planes as pixels, a row of numbers": Net(lambda n, x: n.a(x) * x[:, :1, :1], a=nn.Conv2d(3, 12, (12, 1))),
}  # fmt: skip


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("name", SAME)
def test_a_call_means_the_same_however_it_is_written(name, interleaved, x):
    assert compared(SAME[name], x, interleaved) < 1e-5


REFUSED = {
    "a norm without statistics": (
        Net(lambda n, x: n.b(n.a(x)), a=conv(3, 4), b=nn.BatchNorm2d(4, track_running_stats=False)),
        r"b \(BatchNorm2d\) keeps no running statistics",
    ),
    "what it does not have": (Net(lambda n, x: n.a(x).cumsum(1), a=conv(3, 4)), r"cumsum \(cumsum\) is aten.cumsum"),
    "all that it lacks": (
        Net(lambda n, x: n.a(x.cumsum(1)).sin(), a=conv(3, 4)), r"cumsum \(cumsum\) .*; sin \(sin\) is aten.sin"
    ),
    "an answer without a batch": (
        Net(lambda n, x: n.a(x).mean((0, 1, 2, 3)), a=conv(3, 4)), r"gives \(\): .* first axis is the batch's"
    ),
    "written into its parts by torch": (
        Net(lambda n, x: n.a(x), a=conv(3, 4, 3, padding_mode="circular")), r"a \(Conv2d\) works in place in torch"
    ),
    "places of the largest": (
        Net(lambda n, x: n.p(n.a(x))[1].float(), a=conv(3, 4), p=nn.MaxPool2d(2, return_indices=True)),
        "gives the places of the largest",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_engine_lacks_is_told_in_one_line(name, x):
    net, words = REFUSED[name]
    with pytest.raises(ValueError, match=words) as caught:
        compiler.compile(net, x[:1])
    assert "\n" not in str(caught.value)


def test_complex_numbers_are_refused_and_lose_nothing(x):
    with pytest.raises(ValueError, match="holds complex numbers"):
        compiler.compile(nn.Sequential(nn.Conv2d(3, 4, 1, dtype=torch.complex64)), x[:1].to(torch.complex64))
    engine = Engine(packed.write(compiler.compile(nn.Sequential(conv(3, 4)), x[:1])))
    for wrong in (x * 1j, (x * 1j).numpy()):
        with pytest.raises(ValueError, match=r"x holds complex64 values: give real numbers"):
            engine(wrong)
    assert torch.equal(engine(x.double()), engine(x)) and engine(x.bfloat16()).shape == (2, 4, SIDE, SIDE)


@pytest.mark.skipif(kernels.lib is None, reason="the C kernels are not built")
def test_a_number_that_is_none_stays_where_it_is_clamped_behind_a_mean(x):
    net = SAME["a mean that is clamped"]
    x[0, 0, 0, 0] = torch.nan
    y = Engine(packed.write(compiler.compile(net, x[:1])))(x)
    assert y[0].isnan().all() and y[1].isfinite().all()


@pytest.mark.parametrize("value", [0.1, 1 / 3, 7.7, 1e4])
@pytest.mark.parametrize("norm", [nn.LayerNorm(7), nn.GroupNorm(1, 6), nn.GroupNorm(2, 6)], ids=str)
def test_equal_numbers_have_no_variance_to_the_last_bit(norm, value):
    """A mean that is a bit off would be a number of its own, which the root of eps makes three hundred times larger."""
    engine = Engine(packed.write(compiler.compile(norm.eval(), torch.zeros(1, 6, 5, 7))))
    assert float(engine(torch.full((1, 6, 5, 7), value)).abs().max()) == 0.0
