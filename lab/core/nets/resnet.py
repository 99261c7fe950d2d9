"""Residual networks: basic blocks for small pictures, bottlenecks for large ones."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from .parts import check_counts, conv_bn, named


class Subsample(nn.Module):
    """The shortcut without parameters (option A): every second pixel, and zeros for the new channels."""

    def __init__(self, new: int) -> None:
        super().__init__()
        self.new = new

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # (N, C, H, W) -> (N, C + new, H/2, W/2), half of the zeros before the old channels and half behind
        return F.pad(x[..., ::2, ::2], (0, 0, 0, 0, self.new // 2, self.new - self.new // 2))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = conv_bn(c_in, c_out, 3, stride=stride)
        self.conv2, self.bn2 = conv_bn(c_out, c_out, 3, act=None)
        self.shortcut = nn.Identity() if c_in == c_out else Subsample(c_out - c_in)
        self.relu2 = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.shortcut(x) + self.bn2(self.conv2(y)))


class CifarResNet(nn.Module):
    """A stem and three stages of n basic blocks with 16, 32 and 64 channels."""

    def __init__(self, n: int, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = conv_bn(channels, 16, 3)
        self.layer1 = self.stage(n, 16, 16, 1)
        self.layer2 = self.stage(n, 16, 32, 2)
        self.layer3 = self.stage(n, 32, 64, 2)
        self.linear = nn.Linear(64, classes)

    @staticmethod
    def stage(n: int, c_in: int, c_out: int, stride: int) -> nn.Sequential:
        return nn.Sequential(BasicBlock(c_in, c_out, stride), *(BasicBlock(c_out, c_out, 1) for _ in range(n - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(x)))  # (N, 16, H, W)
        x = self.layer3(self.layer2(self.layer1(x)))  # (N, 64, H/4, W/4)
        return self.linear(x.mean((2, 3)))


def resnet_cifar(depth: int, classes: int = 10, channels: int = 3) -> nn.Module:
    """ResNet for small pictures with shortcuts of option A: (N, channels, H, W) -> (N, classes), any H, W.

    `depth` is 6n + 2: 20, 56, 110 ... Raises ValueError for another depth and for a count below 1.
    """
    check_counts(depth=depth, classes=classes, channels=channels)
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth={depth}: give 6n + 2, such as 20, 56 or 110")
    net = CifarResNet((depth - 2) // 6, classes, channels)
    return named(net, "resnet_cifar", depth=depth, classes=classes, channels=channels)


class DownsamplingBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut with a convolution of its own where widths differ."""

    def __init__(self, c_in: int, c: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = conv_bn(c_in, c, 3, stride=stride)
        self.conv2, self.bn2 = conv_bn(c, c, 3, act=None)
        same = c_in == c
        self.downsample = nn.Identity() if same else nn.Sequential(*conv_bn(c_in, c, 1, act=None, stride=stride))
        self.relu2 = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(self.downsample(x) + y)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions beside a shortcut; the stride is in the 3 x 3 one."""

    def __init__(self, c_in: int, c: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = conv_bn(c_in, c, 1)
        self.conv2, self.bn2, self.relu2 = conv_bn(c, c, 3, stride=stride)
        self.conv3, self.bn3 = conv_bn(c, 4 * c, 1, act=None)
        same = c_in == 4 * c and stride == 1
        self.downsample = nn.Identity() if same else nn.Sequential(*conv_bn(c_in, 4 * c, 1, act=None, stride=stride))
        self.relu3 = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        return self.relu3(self.downsample(x) + self.bn3(self.conv3(y)))


Block = Callable[[int, int, int], nn.Module]  # channels that come in, channels inside, stride


class ImageNetResNet(nn.Module):
    """A stem and four stages of blocks with 64, 128, 256 and 512 channels, `widen` times as many behind each block.

    Parameters are named as in torchvision.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, block: Block, depths: tuple[int, ...], widen: int, classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = conv_bn(3, 64, 7, stride=2)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        width = 64
        for index, (n, c) in enumerate(zip(depths, (64, 128, 256, 512), strict=True)):
            blocks = [block(width, c, 1 if index == 0 else 2), *(block(widen * c, c, 1) for _ in range(n - 1))]
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
            width = widen * c
        self.fc = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))  # (N, 64, H/4, W/4)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # (N, widen 512, H/32, W/32)
        return self.fc(x.mean((2, 3)))


def resnet18(classes: int = 1000) -> nn.Module:
    """ResNet-18: (N, 3, H, W) -> (N, classes), H, W: 224 in the papers.

    Weights of torchvision's ResNet-18 load with `strict=True`. Raises ValueError for a count below 1.
    """
    check_counts(classes=classes)
    return named(ImageNetResNet(DownsamplingBlock, (2, 2, 2, 2), 1, classes), "resnet18", classes=classes)


def resnet50(classes: int = 1000) -> nn.Module:
    """ResNet-50, its stride in the 3 x 3 convolutions: (N, 3, H, W) -> (N, classes), H, W: 224 in the papers.

    Weights of torchvision's ResNet-50 load with `strict=True`. Raises ValueError for a count below 1.
    """
    check_counts(classes=classes)
    return named(ImageNetResNet(Bottleneck, (3, 4, 6, 3), 4, classes), "resnet50", classes=classes)
