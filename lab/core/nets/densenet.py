"""DenseNet: every layer reads what all the layers of its block before it have made."""

from collections import OrderedDict

import torch
from torch import nn

from .parts import Mean, check_counts, named


class DenseLayer(nn.Module):
    """Norm, ReLU, 3 x 3 convolution; what it makes is put behind what it read."""

    def __init__(self, c_in: int, growth: int) -> None:
        super().__init__()
        self.bn, self.relu = nn.BatchNorm2d(c_in), nn.ReLU()
        self.conv = nn.Conv2d(c_in, growth, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.conv(self.relu(self.bn(x)))], 1)  # (N, C, H, W) -> (N, C + growth, H, W)


def _transition(c: int) -> nn.Sequential:
    """Norm, ReLU, 1 x 1 convolution that keeps all channels, and half the size."""
    conv = nn.Conv2d(c, c, 1, bias=False)
    return nn.Sequential(OrderedDict(bn=nn.BatchNorm2d(c), relu=nn.ReLU(), conv=conv, pool=nn.AvgPool2d(2)))


def densenet40(classes: int = 10, channels: int = 3) -> nn.Module:
    """DenseNet-40 of growth 12 with a stem of 24 channels and no compression: (N, channels, H, W) -> (N, classes).

    H, W: 32 in the papers, any size from 4 up. Raises ValueError for a count below 1.
    """
    check_counts(classes=classes, channels=channels)
    growth, width = 12, 24
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    for i in (1, 2, 3):
        layers[f"dense{i}"] = nn.Sequential(*(DenseLayer(width + growth * j, growth) for j in range(12)))
        width += 12 * growth  # 168, 312, 456
        if i < 3:
            layers[f"transition{i}"] = _transition(width)
    layers |= OrderedDict(bn=nn.BatchNorm2d(width), relu=nn.ReLU(), mean=Mean(), linear=nn.Linear(width, classes))
    return named(nn.Sequential(layers), "densenet40", classes=classes, channels=channels)
