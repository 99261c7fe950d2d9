"""EDSR (Lim et al., CVPR Workshops 2017, 1707.02921): residual super-resolution without norms."""

import torch
from torch import nn

from .parts import check_counts

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)  # RGB mean of the training pictures of the paper, pixels in [0, 1]


class ResidualBlock(nn.Module):
    """Convolution, ReLU, convolution, scaled and added to the input; no norm."""

    def __init__(self, width: int, scaling: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.scaling = scaling

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.scaling * self.conv2(self.relu(self.conv1(x)))


class EDSR(nn.Module):
    """A head, residual blocks under one global skip, a pixel-shuffle upsampler and a tail."""

    mean: torch.Tensor

    def __init__(self, blocks: int, width: int, scale: int, channels: int, scaling: float) -> None:
        super().__init__()
        self.head = nn.Conv2d(channels, width, 3, padding=1)
        mean = torch.tensor(DIV2K_MEAN) if channels == 3 else torch.full((channels,), sum(DIV2K_MEAN) / 3)
        self.register_buffer("mean", mean.view(1, channels, 1, 1), persistent=False)
        self.blocks = nn.Sequential(*(ResidualBlock(width, scaling) for _ in range(blocks)))
        self.fuse = nn.Conv2d(width, width, 3, padding=1)
        self.upsampler = nn.Sequential(*upsampler(width, scale))
        self.tail = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.head(x - self.mean)  # (N, width, H, W)
        x = x + self.fuse(self.blocks(x))
        return self.tail(self.upsampler(x)) + self.mean  # (N, channels, scale H, scale W)


def upsampler(width: int, scale: int) -> list[nn.Module]:
    """Convolutions and pixel shuffles, (N, C, H, W) -> (N, C, scale H, scale W); scale 4 is made in two steps of 2."""
    layers: list[nn.Module] = []
    for factor in (2, 2) if scale == 4 else (scale,):
        layers += [nn.Conv2d(width, width * factor**2, 3, padding=1), nn.PixelShuffle(factor)]
    return layers


def edsr(blocks: int = 4, width: int = 16, scale: int = 2, channels: int = 3, scaling: float = 1.0) -> nn.Module:
    """EDSR: (N, channels, H, W) -> (N, channels, scale H, scale W), pixels in [0, 1], any H, W.

    The paper's baseline is blocks=16, width=64, scaling=1.0; its large network blocks=32, width=256, scaling=0.1.
    Raises ValueError for a count below 1, for a scale other than 2, 3 or 4, and for a scaling outside (0, 1].
    """
    check_counts(blocks=blocks, width=width, channels=channels)
    if scale not in (2, 3, 4):
        raise ValueError(f"scale={scale!r}: give 2, 3 or 4")
    if isinstance(scaling, bool) or not isinstance(scaling, int | float) or not 0 < scaling <= 1:
        raise ValueError(f"scaling={scaling!r}: give a number above 0 and up to 1, such as 0.1")
    net = EDSR(blocks, width, scale, channels, scaling)
    sizes = {"blocks": blocks, "width": width, "scale": scale, "channels": channels}
    net.config = {"net": "edsr", **sizes, "scaling": scaling}  # type: ignore[assignment]
    return net
