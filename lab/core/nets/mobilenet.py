"""MobileNets: depthwise 3 x 3 and pointwise 1 x 1 convolutions instead of full ones."""

from collections import OrderedDict

import torch
from torch import nn

from .parts import Mean, check_counts, check_width, conv_bn, named

_V1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))  # c, stride
_V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet_v1(width: float = 1.0, classes: int = 1000, channels: int = 3, size: int = 224) -> nn.Module:
    """MobileNet-v1 with all channels times `width`: (N, channels, H, W) -> (N, classes), H, W: 224 in the paper.

    `size` is the side of the pictures it is made for: below 64 the first and the last stride are 1, so that 28 x 28
    ends in 4 x 4 maps, where the paper's five strides would leave a single pixel. Raises ValueError for a width outside
    (0, 8] and for a count below 1.
    """
    check_width(width)
    check_counts(classes=classes, channels=channels, size=size)
    c_in = max(8, int(32 * width))
    strides = [stride for _, stride in _V1]
    if small := size < 64:
        strides[-2] = 1
    features: list[nn.Module] = [nn.Sequential(*conv_bn(channels, c_in, 3, stride=1 if small else 2))]
    for (c, _), stride in zip(_V1, strides, strict=True):
        c_out = max(8, int(c * width))
        depthwise = conv_bn(c_in, c_in, 3, stride=stride, groups=c_in)
        features.append(nn.Sequential(*depthwise, *conv_bn(c_in, c_out, 1)))
        c_in = c_out
    layers = OrderedDict(features=nn.Sequential(*features), mean=Mean(), classifier=nn.Linear(c_in, classes))
    given = {name: value for name, value, usual in (("channels", channels, 3), ("size", size, 224)) if value != usual}
    return named(nn.Sequential(layers), "mobilenet_v1", width=width, classes=classes, **given)


def _by_eight(c: float) -> int:
    """`c` rounded to a multiple of 8, never down by more than a tenth."""
    rounded = max(8, int(c + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * c else rounded + 8


class InvertedResidual(nn.Module):
    """Widen, depthwise 3 x 3, narrow without an activation; added to its input where the shapes allow it."""

    def __init__(self, c_in: int, c_out: int, stride: int, expand: int) -> None:
        super().__init__()
        c = c_in * expand
        widen = [nn.Sequential(*conv_bn(c_in, c, 1, act=nn.ReLU6))] if expand > 1 else []
        depthwise = nn.Sequential(*conv_bn(c, c, 3, act=nn.ReLU6, stride=stride, groups=c))
        self.conv = nn.Sequential(*widen, depthwise, *conv_bn(c, c_out, 1, act=None))
        self.adds = stride == 1 and c_in == c_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.adds else self.conv(x)


def mobilenet_v2(width: float = 1.0, classes: int = 1000) -> nn.Module:
    """MobileNet-v2 with all channels times `width`: (N, 3, H, W) -> (N, classes), H, W: 224 in the paper.

    Weights of torchvision's MobileNet-v2 load with `strict=True`. Raises ValueError for a width outside (0, 8] and
    for a count below 1.
    """
    check_width(width)
    check_counts(classes=classes)
    c_in, last = _by_eight(32 * width), _by_eight(1280 * max(1.0, width))
    features: list[nn.Module] = [nn.Sequential(*conv_bn(3, c_in, 3, act=nn.ReLU6, stride=2))]
    for expand, c, n, stride in _V2:
        for i in range(n):
            c_out = _by_eight(c * width)
            features.append(InvertedResidual(c_in, c_out, stride if i == 0 else 1, expand))
            c_in = c_out
    features.append(nn.Sequential(*conv_bn(c_in, last, 1, act=nn.ReLU6)))
    classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))
    layers = OrderedDict(features=nn.Sequential(*features), mean=Mean(), classifier=classifier)
    return named(nn.Sequential(layers), "mobilenet_v2", width=width, classes=classes)
