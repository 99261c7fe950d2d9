"""U-Net (Ronneberger et al., MICCAI 2015, 1505.04597), small and padded: a class for each pixel."""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from .parts import check_counts, named


def _twice(inside: int, outside: int) -> nn.Sequential:
    """Two convolutions of 3 x 3, each with batch norm and ReLU."""
    layers: list[nn.Module] = []
    for width in (inside, outside):
        layers += [nn.Conv2d(width, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Levels down, each half as large and twice as wide, and up again, each joined to its counterpart."""

    def __init__(self, width: int, depth: int, classes: int, channels: int) -> None:
        super().__init__()
        widths = [width << level for level in range(depth + 1)]
        pairs = list(pairwise(widths))
        self.first = _twice(channels, width)
        self.down = nn.ModuleList(_twice(a, b) for a, b in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in reversed(pairs))
        self.join = nn.ModuleList(_twice(2 * a, a) for a, _ in reversed(pairs))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        levels = [self.first(x)]  # (N, width, H, W)
        for stage in self.down:
            levels.append(stage(F.max_pool2d(levels[-1], 2)))  # half as large, twice as wide
        x = levels.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([levels.pop(), up(x)], 1))
        return self.head(x)  # (N, classes, H, W)


def unet(width: int = 8, depth: int = 2, classes: int = 5, channels: int = 3) -> nn.Module:
    """A small U-Net: (N, channels, H, W) -> (N, classes, H, W); H and W are multiples of 2^depth.

    The paper's is width=64, depth=4, without batch norms or padding. Raises ValueError for a count below 1.
    """
    check_counts(width=width, depth=depth, classes=classes, channels=channels)
    net = UNet(width, depth, classes, channels)
    return named(net, "unet", width=width, depth=depth, classes=classes, channels=channels)
