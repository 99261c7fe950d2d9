"""GoogLeNet: modules of four branches."""

from collections import OrderedDict
from functools import partial

import torch
from torch import nn

from .parts import Mean, check_counts, conv_bn, named

_INCEPTIONS = {  # 1 x 1 | 1 x 1 -> 3 x 3 | 1 x 1 -> 5 x 5 (two 3 x 3) | pool -> 1 x 1
    "a3": (64, 96, 128, 16, 32, 32),
    "b3": (128, 128, 192, 32, 96, 64),
    "a4": (192, 96, 208, 16, 48, 64),
    "b4": (160, 112, 224, 24, 64, 64),
    "c4": (128, 128, 256, 24, 64, 64),
    "d4": (112, 144, 288, 32, 64, 64),
    "e4": (256, 160, 320, 32, 128, 128),
    "a5": (256, 160, 320, 32, 128, 128),
    "b5": (384, 192, 384, 48, 128, 128),
}


class Inception(nn.Module):
    """Four branches side by side, their channels put one behind the other."""

    def __init__(self, c_in: int, c: tuple[int, ...]) -> None:
        super().__init__()
        wide1, narrow3, wide3, narrow5, wide5, pool = c  # as in _INCEPTIONS
        conv = partial(conv_bn, bias=True)
        self.branch1 = nn.Sequential(*conv(c_in, wide1, 1))
        self.branch2 = nn.Sequential(*conv(c_in, narrow3, 1), *conv(narrow3, wide3, 3))
        self.branch3 = nn.Sequential(*conv(c_in, narrow5, 1), *conv(narrow5, wide5, 3), *conv(wide5, wide5, 3))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), *conv(c_in, pool, 1))
        self.width = wide1 + wide3 + wide5 + pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


def googlenet_cifar(classes: int = 10, channels: int = 3) -> nn.Module:
    """GoogLeNet for small pictures: nine Inception modules behind a 3 x 3 stem: (N, channels, H, W) -> (N, classes).

    H, W: 32 in the papers; any size works, the last map is averaged. Raises ValueError for a count below 1.
    """
    check_counts(classes=classes, channels=channels)
    width = 192
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["stem"] = nn.Sequential(*conv_bn(channels, width, 3, bias=True))
    for name, c in _INCEPTIONS.items():
        if name in ("a4", "a5"):  # half the size: 32 -> 16 -> 8
            layers[f"pool{name[1]}"] = nn.MaxPool2d(3, stride=2, padding=1)
        module = layers[name] = Inception(width, c)
        width = module.width
    layers |= OrderedDict(mean=Mean(), linear=nn.Linear(width, classes))
    return named(nn.Sequential(layers), "googlenet_cifar", classes=classes, channels=channels)
