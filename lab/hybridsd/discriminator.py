"""What judges a decoder's pictures: heads over a frozen network's features, and pictures changed at random before.

The release reads DINO ViT-S/16 in five layers; any network will do that is given with the names of its modules.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

GROUP = 8  # pictures that a virtual batch norm averages over


class FrozenFeatures(nn.Module):
    """Outputs of the named modules of a frozen network, (N, F, h, w) or (N, tokens, F) each; pictures in [0, 1]."""

    def __init__(self, net: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.net, self.names = deepcopy(net).eval().requires_grad_(False), tuple(names)
        modules = dict(net.named_modules())
        missing = [name for name in names if name not in modules]
        if missing or not names:
            raise ValueError(f"names={tuple(names)!r}: the network has no {', '.join(missing) or 'module of no name'}")

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        outputs: dict[str, torch.Tensor] = {}

        def take(name: str) -> Any:
            return lambda module, inputs, output: outputs.__setitem__(name, output)

        hooks = [self.net.get_submodule(name).register_forward_hook(take(name)) for name in self.names]
        try:
            self.net(images)
        finally:
            for hook in hooks:
                hook.remove()
        return [outputs[name] for name in self.names]


class FeatureDiscriminator(nn.Module):
    """One logit a position of every feature map: pictures (N, 3, H, W) in [0, 1] -> (N, logits).

    `features` stays frozen: it is not among this module's parameters. Pictures larger than `side` are cropped to it at
    random half of the time, and made smaller otherwise.
    """

    def __init__(self, features: FrozenFeatures, widths: Sequence[int], side: int = 224) -> None:
        super().__init__()
        self._features, self.side = [features], side  # in a list: not a submodule
        self.heads = nn.ModuleList([_Head(width) for width in widths])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self._features[0](self._fitted(augmented(images)))
        if len(maps) != len(self.heads):
            raise ValueError(f"{len(maps)} feature maps for {len(self.heads)} widths: give one width for each")
        return torch.cat([head(_sequence(x)) for head, x in zip(self.heads, maps, strict=True)], 1)

    def _fitted(self, x: torch.Tensor) -> torch.Tensor:
        if min(x.shape[-2:]) <= self.side:
            return x
        if torch.rand(()) < 0.5:
            top, left = (int(torch.randint(size - self.side + 1, ())) for size in x.shape[-2:])
            return x[..., top : top + self.side, left : left + self.side]
        return F.interpolate(x, size=(self.side, self.side), mode="area")


def augmented(x: torch.Tensor) -> torch.Tensor:
    """DiffAugment of pictures (N, 3, H, W): brightness, saturation, contrast, shift and one cut-out, drawn for each."""
    return _cut_out(_moved(_coloured(x)))


def _coloured(x: torch.Tensor) -> torch.Tensor:
    light, saturation, contrast = torch.rand(3, len(x), 1, 1, 1, device=x.device)
    x = x + light - 0.5
    x = torch.lerp(x.mean(1, keepdim=True), x, 2 * saturation)
    return torch.lerp(x.mean((1, 2, 3), keepdim=True), x, contrast + 0.5)


def _moved(x: torch.Tensor, share: float = 0.125) -> torch.Tensor:
    n, _, h, w = x.shape
    dy, dx = (torch.randint(-int(s * share), int(s * share) + 1, (n, 1), device=x.device) for s in (h, w))
    rows, columns = torch.arange(h, device=x.device) - dy, torch.arange(w, device=x.device) - dx  # (n, h), (n, w)
    inside = _within(rows, h)[:, None, :, None] & _within(columns, w)[:, None, None, :]
    picks = torch.arange(n, device=x.device).view(n, 1, 1)
    moved = x.permute(0, 2, 3, 1)[picks, rows.clamp(0, h - 1)[:, :, None], columns.clamp(0, w - 1)[:, None, :]]
    return moved.permute(0, 3, 1, 2) * inside


def _cut_out(x: torch.Tensor, share: float = 0.5) -> torch.Tensor:
    n, _, h, w = x.shape
    outside = []
    for size in (h, w):
        middle = torch.randint(size, (n, 1), device=x.device)
        outside.append((torch.arange(size, device=x.device) - middle).abs() >= size * share / 2)
    return x * (outside[0][:, None, :, None] | outside[1][:, None, None, :])


def _within(i: torch.Tensor, size: int) -> torch.Tensor:
    return (i >= 0) & (i < size)


def _sequence(x: torch.Tensor) -> torch.Tensor:
    """Maps (N, F, h, w) or tokens (N, L, F) as (N, F, L)."""
    return x.flatten(2) if x.ndim == 4 else x.transpose(1, 2)


class _VirtualBatchNorm(nn.Module):
    """Batch norm over groups of up to GROUP pictures, the same in training and evaluation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = x.split(GROUP)
        normal = [(p - p.mean((0, 2), True)) / (p.var((0, 2), False, True) + 1e-5).sqrt() for p in parts]
        return torch.cat(normal) * self.weight[:, None] + self.bias[:, None]


def _block(width: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv1d(width, width, kernel, padding=kernel // 2, padding_mode="circular")
    return nn.Sequential(spectral_norm(convolution), _VirtualBatchNorm(width), nn.LeakyReLU(0.2))


class _Head(nn.Module):
    def __init__(self, width: int, kernel: int = 9) -> None:
        super().__init__()
        self.first, self.second = _block(width, 1), _block(width, kernel)
        self.last = spectral_norm(nn.Conv1d(width, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (N, F, L) -> (N, L)
        x = self.first(x)
        return self.last((x + self.second(x)) / 2**0.5).squeeze(1)
