"""What every family is made of: convolution and norm, the mean over the picture, the first weights, checked counts."""

import math
from typing import Any

import torch
from torch import nn


def conv_bn(c_in: int, c_out: int, size: int, act: type[nn.Module] | None = nn.ReLU, **conv: Any) -> list[nn.Module]:
    """Convolution and norm, and `act` behind them unless it is None; the picture keeps its size at stride 1."""
    conv = {"padding": size // 2, "bias": False} | conv
    layers = [nn.Conv2d(c_in, c_out, size, **conv), nn.BatchNorm2d(c_out)]
    return [*layers, act()] if act else layers


class Mean(nn.Module):
    """The mean over the picture: (N, C, H, W) -> (N, C)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


def named(model: nn.Module, net: str, **arguments: int | float) -> nn.Module:
    """Give `model` its first weights, drawn from torch's generator, and its `config`."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):  # norms start at 1 and 0, linear layers as torch starts them
            fan_out = module.weight[:, 0].numel() // module.groups  # Kaiming; torch's own forgets the groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    model.config = {"net": net, **arguments}  # type: ignore[assignment]
    return model


def check_counts(**counts: int) -> None:
    """Refuse a count that is not an integer of at least 1."""
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}={value!r}: give an integer, 1 or more")


def check_width(width: float) -> None:
    """Refuse a channel multiplier outside (0, 8]."""
    if not isinstance(width, int | float) or isinstance(width, bool) or not 0 < width <= 8:
        raise ValueError(f"width={width!r}: give a number above 0 and up to 8, such as 0.5 or 1.0")
