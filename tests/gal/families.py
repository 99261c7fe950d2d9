"""The networks that GAL's tests prune: one of each family, with weights and statistics that hide no error."""

import torch
from torch import nn

from lab.core import nets

FAMILIES = {
    "lenet channels": (lambda: nets.lenet(), (1, 28), ("channel",), 570),
    "vgg16 channels": (lambda: nets.vgg16_cifar(), (3, 32), ("channel",), 4_736),
    "resnet56 blocks": (lambda: nets.resnet_cifar(56), (3, 32), ("block",), 27),
    "resnet20 jointly": (lambda: nets.resnet_cifar(20), (3, 32), ("channel", "block"), 345),
    "googlenet branches": (lambda: nets.googlenet_cifar(), (3, 32), ("branch",), 36),
    "googlenet jointly": (lambda: nets.googlenet_cifar(), (3, 32), ("branch", "channel", "input"), 21_908),
    "densenet40 inputs": (lambda: nets.densenet40(), (3, 32), ("input",), 8_904),
    "resnet50 blocks": (lambda: nets.resnet50(), (3, 64), ("block",), 16),
    "resnet50 jointly": (lambda: nets.resnet50(), (3, 64), ("block", "channel", "input"), 20_688),
    "mobilenet_v1 channels": (lambda: nets.mobilenet_v1(), (3, 64), ("channel",), 5_984),
    "mobilenet_v2 jointly": (lambda: nets.mobilenet_v2(), (3, 64), ("channel", "block"), 8_762),
}


def family(name: str) -> tuple[nn.Module, torch.Tensor, tuple[str, ...], int]:
    """A network in eval mode with lively batch norms, two inputs for it, the units to mask and their entries."""
    make, (channels, side), units, entries = FAMILIES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, x = make(), torch.randn(2, channels, side, side)
        for module in network.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.2)
    return network.eval(), x, units, entries


def close_some(masked, share: float = 0.5, whole: int = 1) -> None:
    """Draw every mask from [0.3, 1.2] and close a share of it, `whole` layers wholly; joins keep a branch."""
    generator = torch.Generator().manual_seed(2)
    for mask in masked.masks():
        mask.data.uniform_(0.3, 1.2, generator=generator)
        mask.data[torch.rand(mask.shape, generator=generator) < share] = 0
    layers = [m for s, m in zip(masked.structures, masked.masks(), strict=True) if s.unit == "channel"]
    for mask in layers[:whole]:
        mask.data.zero_()
    first: dict[str, nn.Parameter] = {}
    for structure, mask in zip(masked.structures, masked.masks(), strict=True):
        if structure.unit == "branch":
            first.setdefault(structure.reader, mask)
    for mask in first.values():
        mask.data.fill_(0.7)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference of two outputs relative to the largest output, which must not be tiny itself."""
    assert b.abs().max() > 1e-3
    return float((a - b).abs().max() / b.abs().max())
