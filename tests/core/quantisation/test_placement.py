"""What is known to give nothing negative, however it is written: such tensors have the grid from 0."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import fx, nn
from torch.nn import functional as F

from lab.core.graph.tracing import module_of, trace
from lab.core.quantisation.bn_folding import fold_batch_norms
from lab.core.quantisation.placement import everywhere, is_positive, left_in_float

X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A convolution, something behind it, and a convolution that reads that."""

    def __init__(self, steps) -> None:
        super().__init__()
        self.steps, self.first, self.last = steps, nn.Conv2d(4, 4, 3, padding=1), nn.LazyConv2d(3, 1)
        self.held = nn.ModuleList(step for step in steps if isinstance(step, nn.Module))
        with torch.no_grad():
            self(X)

    def forward(self, x):
        return self.last(through(self.steps, self.first(x)))


def through(steps, x):
    for step in steps:
        x = step(x)
    return x


def reads(*steps):
    graph = trace(Net(steps), X)
    return next(node for node in graph.graph.nodes if node.target == "last").all_input_nodes[0]


FROM_ZERO = {
    "module": nn.ReLU(),
    "six": nn.ReLU6(),
    "hardtanh": nn.Hardtanh(0, 3),
    "relu": F.relu,
    "torch.relu": torch.relu,
    "x.relu": lambda x: x.relu(),
    "in place": lambda x: F.relu(x, True),
    "keyword": lambda x: F.relu(input=x),
    "relu6": F.relu6,
    "clamp": lambda x: x.clamp(min=0),
    "clamp at 6": lambda x: torch.clamp(x, 0, 6),
    "clip": lambda x: x.clip(0),
    "clamp_min": lambda x: x.clamp_min(0),
    "clamp_min of torch": lambda x: torch.clamp_min(x, 0.0),
    "hardtanh function": lambda x: F.hardtanh(x, min_val=0, max_val=1),
    "sigmoid": torch.sigmoid,
    "abs": torch.abs,
    "square": lambda x: x * x,
    "power": lambda x: x**2,
    "softmax": lambda x: F.softmax(x, 1),
    "softplus": nn.Softplus(),
}
KEEPING = {
    "max pool": nn.MaxPool2d(2),
    "mean pool": lambda x: F.avg_pool2d(x, 2),
    "dropout": nn.Dropout(0.5),
    "dropout function": lambda x: F.dropout(x, 0.5, False),
    "cat": lambda x: torch.cat([x, x * 2], 1),
    "sum": lambda x: x + x.sigmoid(),
    "twice": lambda x: torch.add(x, x, alpha=2),
    "pad": lambda x: F.pad(x, (1, 1)),
    "pad with 1": lambda x: F.pad(x, (1, 1), value=1.0),
    "slice": lambda x: x[:, :, 1:],
    "half": lambda x: x / 2,
    "mean": lambda x: x.mean((2, 3), keepdim=True),
    "enlarged": lambda x: F.interpolate(x, scale_factor=2),
    "shuffled": lambda x: F.pixel_shuffle(x, 2),
    "capped": lambda x: x.clamp(max=3),
    "chunk": lambda x: x.chunk(2, 1)[0],
    "leaky": nn.LeakyReLU(),
    "permuted": lambda x: x.permute(0, 1, 3, 2),
}
LOSING = {
    "plain": lambda x: x,
    "difference": lambda x: x - 1,
    "negative factor": lambda x: x * -2,
    "capped": lambda x: x.clamp(max=3),
    "sum with a negative": lambda x: x.relu() + (-1),
    "subtracted twice": lambda x: torch.add(x.relu(), x.relu(), alpha=-1),
    "pad": lambda x: F.pad(x.relu(), (1, 1), value=-1.0),
    "bicubic": lambda x: F.interpolate(x.relu(), scale_factor=2, mode="bicubic"),
    "cat": lambda x: torch.cat([x.relu(), x], 1),
    "hardtanh": nn.Hardtanh(),
    "cube": lambda x: x**3,
    "norm": nn.BatchNorm2d(4),
    "tanh": torch.tanh,
    "clamp below 0": lambda x: x.clamp(-1, 1),
    "leaky": nn.LeakyReLU(),
    "other way": lambda x: 1 - x.relu(),
}


@pytest.mark.parametrize("behind", FROM_ZERO.values(), ids=FROM_ZERO)
def test_what_starts_at_zero(behind):
    assert is_positive(reads(behind))


@pytest.mark.parametrize("behind", KEEPING.values(), ids=KEEPING)
def test_what_leaves_it_so(behind):
    assert is_positive(reads(F.relu, behind))


@pytest.mark.parametrize("behind", LOSING.values(), ids=LOSING)
def test_what_may_be_negative(behind):
    assert not is_positive(reads(behind))


ALL = {**FROM_ZERO, **KEEPING, **{f"not {name}": behind for name, behind in LOSING.items()}}


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(sorted(ALL)), min_size=1, max_size=4))
def test_what_is_said_to_be_positive_is(names):
    steps = [ALL[name] for name in names]
    try:
        output = through(steps, X)
    except (RuntimeError, ValueError):
        assume(False)
    assume(output.dim() == 4 and output.numel() > 0)
    if is_positive(reads(*steps)):
        with torch.no_grad():
            assert float(through(steps, 10 * X).min()) >= 0


def test_sixty_forks_take_no_longer_than_their_length():
    def behind(x):
        x = x.relu()
        for _ in range(60):
            x = torch.cat([x, x], 1)[:, :4] + x
        return x

    assert is_positive(reads(behind))


@pytest.mark.parametrize("name", ["module", "six", "clamp", "x.relu", "relu6", "hardtanh"])
def test_a_layer_and_its_clamp_have_one_quantiser_behind_both(name):
    graph = fold_batch_norms(Net([FROM_ZERO[name]]), X)
    layers = [node for node in graph.graph.nodes if isinstance(module_of(node), nn.Conv2d)]
    points = {point.source: point for point in everywhere(graph, layers)}
    behind = layers[1].all_input_nodes[0]
    assert set(points) == {"x", behind.name, layers[1].name} and not points[behind.name].signed


def test_what_stays_in_float_is_named_and_what_moves_values_is_not():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.last = nn.Conv2d(4, 4, 1), nn.LayerNorm(4), nn.Linear(4, 3)
            self.heads = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x):
            n, c, h, w = x.shape
            tokens = self.first(x).relu().reshape(n, c, h * w).permute(0, 2, 1)
            tokens = tokens + self.heads(tokens, tokens, tokens, need_weights=False)[0]
            a, b = self.norm(tokens).chunk(2, 1)
            return self.last(F.gelu(torch.cat([a * b.softmax(-1), b], 1)[:, 0]))

    graph = fold_batch_norms(Tokens(), X)
    heads = [f"heads.{part}_proj" for part in ("q", "k", "v", "out")]
    assert left_in_float(graph, ("first", "last")) == {
        **dict.fromkeys(heads, "Linear is not quantised here"),
        "mul_2": "mul is computed in float",
        "softmax_1": "softmax is computed in float",
        "norm": "LayerNorm is not quantised here",
        "softmax": "softmax is computed in float",
        "mul_1": "mul is computed in float",
        "gelu": "gelu is computed in float",
    }
    assert left_in_float(graph, ("first", "norm", *heads), operators=False) == {"last": "Linear is not quantised here"}


def stochastic_depth(x, p, mode, training=True):
    """As torchvision has it: a function that tracing does not look into."""
    return x if not training else x * (torch.rand(len(x), 1, 1, 1) > p) / (1 - p)


fx.wrap("stochastic_depth")


def test_stochastic_depth_is_left_out():
    graph = fold_batch_norms(Net([lambda x: stochastic_depth(x, 0.2, "row", False)]), X)
    assert [node.target for node in graph.graph.nodes if node.op != "output"] == ["x", "first", "last"]
