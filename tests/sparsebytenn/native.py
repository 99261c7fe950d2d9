"""What the tests of the C code share: tools that live beside the kernels, programs made of them, small networks."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lab.core import kernels
from lab.sparsebytenn import scheduling
from lab.sparsebytenn.packed import Map, Network, Op
from lab.sparsebytenn.tables import Const, Matmul, Norm, Part, Pool, Resize, Strided

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent / "c"
KERNELS = [  # as c/kernels.c tests them
    "spmm", "depthwise", "im2col", "gemv", "mean", "quantise", "spmm_int8", "unary", "binary", "pool", "move", "resize",
    "softmax", "norm",
]  # fmt: skip

_spec = importlib.util.spec_from_file_location("arm", ROOT / "ckernels" / "arm.py")
arm = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(arm)


class Every(nn.Module):
    """Every operator that the engine has, on images of 3 x 18 x 18."""

    def __init__(self):
        super().__init__()
        self.first = _unit(3, 8, 3, stride=2)
        self.pair = nn.Sequential(_unit(8, 8, 3, groups=8), _unit(8, 12, 1))
        self.alone = _unit(12, 12, 5, stride=2, groups=12)
        self.joined, self.other, self.last = nn.Conv2d(12, 12, 1), nn.Conv2d(12, 12, 1), _unit(12, 12, 3, groups=12)
        self.classes = nn.Linear(12, 5)

    def forward(self, x):
        x = self.alone(self.pair(self.first(x)))
        y = self.joined(x) + x
        z = self.other(y)
        return self.classes(self.last(torch.relu(z + y) + z).mean((2, 3)))


class Steps:
    """A network put down operator by operator; each gives the number of the map that it writes."""

    def __init__(self, *inputs):
        self.draws, self.inputs = np.random.default_rng(0), tuple(range(len(inputs)))
        self.maps, self.ops = [Map(*shape) for shape in inputs], []

    def numbers(self, *shape):
        return self.draws.standard_normal(shape, np.float32)

    def add(self, kind, x, shape, **fields):
        self.maps.append(Map(*shape))
        y = len(self.maps) - 1
        self.ops.append(Op(kind, f"{kind} {y}", y if x is None else x, y, **fields))
        return y

    def product(self, kind, x, shape, columns, **fields):
        w = self.numbers(shape[0], columns) * (self.numbers(shape[0], columns) > -0.5)
        weights = kernels.pack(w, k_tile=5)
        return self.add(kind, x, shape, weights=weights, bias=self.numbers(shape[0]), **fields)

    def network(self, *outputs):
        return Network(self.maps, self.ops, self.inputs, outputs)


def windows(n, k, stride, pad, out):
    """[from, to) of each window of a pool."""
    return np.array([(max(0, i * stride - pad), min(n, i * stride - pad + k)) for i in range(out)])


def every_kind():
    """A network of two inputs and three outputs with every kind of operator, activation and function that there is."""
    steps = Steps((5, 12, 14), (6, 1, 1))
    x = steps.product("conv", 0, (8, 6, 12), 30, k=(3, 2), stride=(2, 1), pad=(1, 1), dilation=(1, 3), act="silu")
    taps = {"taps": steps.numbers(8, 49) / 7, "taps_bias": steps.numbers(8), "k": (7, 7), "pad": (3, 2), "tile_rows": 4}
    x = steps.add("depthwise", x, (8, 6, 11), act="hardswish", **taps)
    taps = {"taps": steps.numbers(8, 9), "taps_bias": steps.numbers(8), "k": (3, 3), "pad": (1, 1)}
    pair = {"inner_act": "gelu", "act": "prelu", "slopes": steps.numbers(6), "tile_rows": 2}
    image = steps.product("separable", x, (6, 6, 11), 8, **taps, **pair)
    return steps.network(*_rest(steps, image))


def _rest(steps, x):
    """The operators that are no convolution, from a map (6, 6, 11); the outputs' numbers."""
    image = x
    for act in ("sigmoid", "hardsigmoid", "gelu_tanh", "tanh", "elu", "mish", "softplus"):
        x = steps.add("unary", x, (6, 6, 11), act=act, clamp=(-3.0, 3.0))
    x = steps.add("unary", steps.add("unary", x, (6, 6, 11), act="exp"), (6, 6, 11), act="sqrt")
    for fn, other in zip(("mul", "max", "min", "add", "sub", "rsub"), (1, 1, image, image, 1, 1), strict=True):
        x = steps.add("binary", x, (6, 6, 11), add=other, fn=fn, act="tanh" if fn == "mul" else "")
    table = Pool(windows(6, 3, 2, 1, 3), windows(11, 3, 2, 1, 6), (1, 1), np.ones(3), np.ones(6))
    small = steps.add("pool", x, (6, 3, 6), fn="max", table=table)
    table = Pool(windows(6, 3, 3, 0, 2), windows(11, 2, 4, 0, 3), (2, 1), np.full(2, 0.5), np.full(3, 0.5))
    mean = steps.add("pool", x, (6, 2, 3), fn="mean", table=table)
    rows, columns = np.array([[0, 1], [1, 2], [2, 2]] * 2), np.array([[i // 2, min(5, i // 2 + 1)] for i in range(11)])
    table = Resize(rows, np.linspace(0, 1, 6), columns, np.linspace(0, 0.9, 11))
    x = steps.add("binary", steps.add("resize", small, (6, 6, 11), table=table), (6, 6, 11), add=x, fn="rdiv")
    for fn, planes in (("affine", 1), ("planes", 3), ("rms", 6), ("pixel", 3)):
        table = Norm(1e-3, steps.numbers(6), steps.numbers(6))
        x = steps.add("norm", x, (6, 6, 11), fn=fn, planes=planes, table=table)
    x = steps.add("softmax", x, (6, 6, 11), planes=3)
    return _products(steps, x, mean)


def _products(steps, x, mean):
    """A turned copy of a map (6, 6, 11), a product with it, all beside each other."""
    p, q = steps.maps[x].pitch, Map(11, 1, 36).pitch
    part = Part(x, 0, 0, (1, 1, 1, 11, 6, 6), (0, 0, 0, 1, p, 11), (0, 0, 0, q, 6, 1))
    turned = steps.add("move", x, (11, 1, 36), table=Strided(None, (part,)))
    table = Matmul((1, 3), 2, 11, 36, 0, (0, 2 * p, p, 1), 0, (0, 0, q), 0.5)
    product = steps.add("matmul", x, (6, 6, 6), add=turned, table=table)
    bias = steps.add("const", None, (1, 6, 6), table=Const(steps.numbers(1, 6, 6)))
    product = steps.add("binary", product, (6, 6, 6), add=bias, fn="div", clamp=(-9.0, 9.0))
    wide, m = Map(6, 6, 9).pitch, steps.maps
    parts = (
        Part(product, 0, 2, (1, 1, 1, 6, 6, 6), (0, 0, 0, m[product].pitch, 6, 1), (0, 0, 0, wide, 9, 1)),
        Part(mean, 2, 53, (1, 1, 1, 6, 1, 2), (0, 0, 0, m[mean].pitch, 0, -1), (0, 0, 0, wide, 0, -1)),
    )
    joined = steps.add("move", product, (6, 6, 9), table=Strided(-1.0, parts))
    flat = steps.add("mean", joined, (1, 1, 6), clamp=(-1.0, 1.0))
    scores = steps.add("linear", flat, (1, 1, 10), act="sigmoid", bias=steps.numbers(10),
                       weights=kernels.pack(steps.numbers(10, 6), block=kernels.GEMV_BLOCK))  # fmt: skip
    return joined, scores, scores


def _unit(i, o, k, stride=1, groups=1):
    return nn.Sequential(nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False), nn.BatchNorm2d(o), nn.ReLU6())


def small_networks():
    """name -> (network, shape of an image): every operator, together and each where it ends the arena."""
    torch.manual_seed(0)
    nets = {
        "every": (Every(), (3, 18, 18)),
        "pointwise": (nn.Sequential(nn.Conv2d(5, 6, 1)), (5, 6, 7)),
        "convolution": (nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1)), (3, 9, 9)),
        "two convolutions": (nn.Sequential(nn.Conv2d(2, 5, 1), nn.Conv2d(5, 6, 3, 2, 1)), (2, 9, 9)),
        "depthwise": (nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1, groups=4)), (4, 9, 9)),
        "depthwise, stride 2": (nn.Sequential(nn.Conv2d(4, 4, 5, 2, 2, groups=4)), (4, 11, 9)),
        "separable": (nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1, groups=4), nn.Conv2d(4, 9, 1)), (4, 9, 9)),
        "linear": (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 20)), (12, 3, 3)),
        "mean": (nn.Sequential(nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(1)), (3, 5, 5)),
    }
    return {name: (thinned(net, 0.4), shape) for name, (net, shape) in nets.items()}


def rolled(network, floats=2_000):
    """The network with every map in a rolling row buffer that can be; a chain holds about that many floats."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduling, "LARGE", 0)
        patch.setattr(scheduling, "CACHED", floats)
        return scheduling.chained(network)


@torch.no_grad()
def thinned(net, share):
    """The network with that share of the 4 x 1 blocks of its dense layers zeroed."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.weight.shape[1] > 1:
            flat = layer.weight.view(len(layer.weight), -1)
            for rows in flat.split(4):
                rows[:, torch.rand(flat.shape[1]) < share] = 0
    return net.eval()
