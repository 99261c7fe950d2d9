"""What the tests of the C code share: tools that live beside the kernels, programs made of them, small networks."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from lab.sparsebytenn import scheduling

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent / "c"
KERNELS = ["spmm", "depthwise", "im2col", "gemv", "mean", "add", "quantise", "spmm_int8"]  # as c/kernels.c tests them

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
