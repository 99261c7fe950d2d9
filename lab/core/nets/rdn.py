"""RDN (Zhang et al., CVPR 2018, 1802.08797): dense blocks inside residual blocks, for super-resolution."""

import torch
from torch import nn

from .parts import check_counts
from .superres import upsampler


class DenseBlock(nn.Module):
    """Convolutions that each read all before them, fused by a 1 x 1 convolution and added to the input."""

    def __init__(self, width: int, growth: int, layers: int) -> None:
        super().__init__()
        inputs = [width + k * growth for k in range(layers)]
        self.convs = nn.ModuleList(nn.Conv2d(c, growth, 3, padding=1) for c in inputs)
        self.relus = nn.ModuleList(nn.ReLU() for _ in inputs)
        self.fuse = nn.Conv2d(width + layers * growth, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = x  # (N, width, H, W), growth channels more after each convolution
        for conv, relu in zip(self.convs, self.relus, strict=True):
            features = torch.cat([features, relu(conv(features))], 1)
        return x + self.fuse(features)


class RDN(nn.Module):
    """Two first convolutions, dense blocks whose outputs are fused under a global skip, an upsampler and a tail."""

    def __init__(self, blocks: int, layers: int, growth: int, width: int, scale: int, channels: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(channels, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.blocks = nn.ModuleList(DenseBlock(width, growth, layers) for _ in range(blocks))
        self.fuse = nn.Sequential(nn.Conv2d(blocks * width, width, 1), nn.Conv2d(width, width, 3, padding=1))
        self.upsampler = nn.Sequential(*upsampler(width, scale))
        self.tail = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.head(x)  # (N, width, H, W)
        x = self.second(first)
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        x = first + self.fuse(torch.cat(outputs, 1))
        return self.tail(self.upsampler(x))  # (N, channels, scale H, scale W)


def rdn(
    blocks: int = 4, layers: int = 3, growth: int = 16, width: int = 16, scale: int = 2, channels: int = 3
) -> nn.Module:
    """RDN: (N, channels, H, W) -> (N, channels, scale H, scale W), any H, W.

    The paper's RDN-B is blocks=16, layers=8, growth=64, width=64. Raises ValueError for a count below 1 and for a
    scale other than 2, 3 or 4.
    """
    check_counts(blocks=blocks, layers=layers, growth=growth, width=width, channels=channels)
    if scale not in (2, 3, 4):
        raise ValueError(f"scale={scale!r}: give 2, 3 or 4")
    net = RDN(blocks, layers, growth, width, scale, channels)
    sizes = {"blocks": blocks, "layers": layers, "growth": growth, "width": width}
    net.config = {"net": "rdn", **sizes, "scale": scale, "channels": channels}  # type: ignore[assignment]
    return net
