"""Networks that at least two methods use, with the papers' parameter and multiply-add counts to the digit.

Every forward can be traced by `torch.fx`, and every ReLU is a module of its own, not in place, so that a mask can
stand behind it. A network carries `config`, a dict of plain values, and `build(config)` makes it again.
Shapes in the comments: N pictures, C channels, H x W pixels.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..errors import first_line, shown
from .chain import lenet, vgg16, vgg16_cifar, vgg19_cifar
from .densenet import densenet40
from .googlenet import googlenet_cifar
from .mobilenet import mobilenet_v1, mobilenet_v2
from .rdn import rdn
from .resnet import resnet18, resnet50, resnet_cifar
from .superres import edsr
from .unet import unet
from .vit import vit

__all__ = [
    "build",
    "densenet40",
    "edsr",
    "googlenet_cifar",
    "lenet",
    "mobilenet_v1",
    "mobilenet_v2",
    "rdn",
    "resnet18",
    "resnet50",
    "resnet_cifar",
    "unet",
    "vgg16",
    "vgg16_cifar",
    "vgg19_cifar",
    "vit",
]


def build(config: Mapping[str, Any]) -> nn.Module:
    """Make the network that a `module.config` describes, with fresh weights.

    Raises ValueError for a network this module does not have, and for arguments that the network does not take.
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"config is a {type(config).__name__}: give a dict such as {{'net': 'lenet', 'classes': 10}}")
    nets = [name for name in __all__ if name != "build"]
    arguments = dict(config)
    net = arguments.pop("net", None)
    if net not in nets:
        raise ValueError(f"config['net'] is {shown(net)}: choose one of {', '.join(nets)}")
    try:
        return globals()[net](**arguments)
    except TypeError as error:
        raise ValueError(f"config does not fit nets.{net}: {first_line(error)}") from error
