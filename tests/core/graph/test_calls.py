"""A call of torch by the names of its arguments: every way to write it is the same call."""

import math
import operator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn
from torch.nn import functional as F

from lab.core.graph.calls import arguments, bounds, is_relu
from lab.core.graph.tracing import propagate

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
CALLS = [  # a function or a method, and what it is called with besides its first tensor, in torch's order
    (F.max_pool2d, {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 1, "ceil_mode": True}),
    (F.avg_pool2d, {"kernel_size": 3, "stride": (2, 1), "padding": 1, "ceil_mode": False, "count_include_pad": False}),
    (F.adaptive_avg_pool2d, {"output_size": 1}),
    (F.pad, {"pad": (1, 2, 0, 1), "mode": "constant", "value": 2.0}),
    (F.hardtanh, {"min_val": 0.0, "max_val": 6.0}),
    (F.leaky_relu, {"negative_slope": 0.3}),
    (F.interpolate, {"size": None, "scale_factor": 2, "mode": "bilinear", "align_corners": True}),
    (F.pixel_shuffle, {"upscale_factor": 2}),
    (F.softmax, {"dim": 1}),
    (torch.mean, {"dim": (2, 3), "keepdim": True}),
    ("mean", {"dim": (2, 3), "keepdim": True}),
    (torch.flatten, {"start_dim": 1, "end_dim": 2}),
    ("flatten", {"start_dim": 1}),
    (torch.clamp, {"min": 0.0, "max": 6.0}),
    ("clamp", {"min": 0.0, "max": 1.0}),
    ("transpose", {"dim0": 1, "dim1": 2}),
    ("permute", {"dims": (0, 2, 3, 1)}),
]  # fmt: skip


def called(target, args: tuple, kwargs: dict) -> fx.Node:
    """The node of one call in a network that is nothing else, run once."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    swap = {"x": x}
    args = tuple(swap.get(arg, arg) if isinstance(arg, str) else arg for arg in args)
    kwargs = {key: swap.get(value, value) if isinstance(value, str) else value for key, value in kwargs.items()}
    make = graph.call_method if isinstance(target, str) else graph.call_function
    node = make(target, args, kwargs)
    graph.output(node)
    propagate(fx.GraphModule(nn.Module(), graph), X)
    return node


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(CALLS), st.data())
def test_positions_and_keywords_are_the_same_call(call, data):
    target, asked = call
    names = list(asked)
    placed = data.draw(st.integers(0, len(names)))
    args, kwargs = tuple(asked[name] for name in names[:placed]), {name: asked[name] for name in names[placed:]}
    if not isinstance(target, str) and placed == 0 and data.draw(st.booleans()):
        node = called(target, (), {"input": "x", **kwargs})
    else:
        node = called(target, ("x", *args), kwargs)
    found = arguments(node)
    assert found["input"] is node.all_input_nodes[0]
    assert {name: found[name] for name in names} == asked


def test_what_is_not_said_is_torchs_default():
    assert arguments(called("mean", ("x", 1), {}))["keepdim"] is False
    assert arguments(called(torch.flatten, ("x",), {}))["start_dim"] == 0
    assert arguments(called(torch.add, ("x", "x"), {}))["alpha"] == 1
    assert arguments(called(torch.mean, ("x",), {"axis": 1, "keepdims": True}))["dim"] == 1


def test_loose_numbers_are_one_argument():
    assert arguments(called("permute", ("x", 0, 2, 3, 1), {}))["dims"] == (0, 2, 3, 1)
    assert arguments(called("view", ("x", 2, -1), {}))["size"] == (2, -1)


def test_operands_have_an_order():
    reversed_ = arguments(called(operator.sub, (2, "x"), {}))
    assert reversed_["input"] == 2 and isinstance(reversed_["other"], fx.Node)
    assert arguments(called(torch.sub, (), {"other": "x", "input": "x", "alpha": 3}))["alpha"] == 3


def test_a_call_that_torch_does_not_have_is_one_line():
    graph = fx.Graph()
    with pytest.raises(ValueError, match="torch has no no_such_method with these arguments"):
        arguments(graph.call_method("no_such_method", (graph.placeholder("x"),)))


@pytest.mark.parametrize(
    ("target", "args", "kwargs", "wanted"),
    [
        (F.relu, ("x",), {}, (0, math.inf)), (F.relu, (), {"input": "x"}, (0, math.inf)),
        (torch.relu, ("x",), {}, (0, math.inf)), ("relu", ("x",), {}, (0, math.inf)),
        ("clamp", ("x",), {"min": 0}, (0, math.inf)), ("clamp", ("x", 0), {}, (0, math.inf)),
        (torch.clamp, ("x", None, 3), {}, (-math.inf, 3)), ("clip", ("x", 0, 6), {}, (0, 6)),
        ("clamp_min", ("x", 0.0), {}, (0, math.inf)), (torch.clamp_max, ("x",), {"max": 1}, (-math.inf, 1)),
        (F.relu6, ("x",), {}, (0, 6)), (F.hardtanh, ("x",), {}, (-1, 1)), (F.hardtanh, ("x", 0, 4), {}, (0, 4)),
        (torch.clamp, ("x",), {"min": "x"}, None), (torch.abs, ("x",), {}, None),
    ],
)  # fmt: skip
def test_what_a_clamp_clamps_to(target, args, kwargs, wanted):
    node = called(target, args, kwargs)
    assert bounds(node) == wanted and is_relu(node) == (wanted == (0, math.inf))


@pytest.mark.parametrize(
    ("module", "wanted"),
    [(nn.ReLU(), (0, math.inf)), (nn.ReLU6(), (0, 6)), (nn.Hardtanh(0, 3), (0, 3)), (nn.GELU(), None)],
)
def test_what_a_module_clamps_to(module, wanted):
    graph = fx.symbolic_trace(nn.Sequential(module))
    assert bounds(list(graph.graph.nodes)[1]) == wanted
