"""The networks that the engine takes whole, by name, on small pictures, with weights as the registry draws.

Of torchvision the architectures alone: its compiled operators, which none of these networks calls, may not load.
"""

import sys
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lab.core import nets

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
try:
    from zoo import networks, small, superres
    from zoo.weights import calm, lively, pictures
finally:
    sys.path.remove(str(Path(__file__).parents[2] / "benchmarks"))


class Enlarged(nn.Module):
    """A U-Net that goes up by bilinear resizing and a convolution instead of a transposed one."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        w = width
        self.down1, self.down2 = small.normed(3, w), small.normed(w, 2 * w, stride=2)
        self.middle = small.normed(2 * w, 4 * w, stride=2)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.join2, self.join1 = small.normed(6 * w, 2 * w), small.normed(3 * w, w)
        self.out = nn.Conv2d(w, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(a)
        y = self.join2(torch.cat([b, self.up(self.middle(b))], 1))
        y = F.interpolate(y, size=a.shape[2:], mode="bilinear", align_corners=False)
        return torch.sigmoid(self.out(self.join1(torch.cat([a, y], 1))))


class VDSR(nn.Module):
    """VDSR (Kim et al., CVPR 2016, 1511.04587): convolutions that predict what an enlarged picture lacks."""

    def __init__(self, layers: int = 20, width: int = 64) -> None:
        super().__init__()
        widths = [3, *[width] * (layers - 1), 3]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for conv in self.convs[:-1]:
            y = F.relu(conv(y), inplace=True)
        return x + self.convs[-1](y)


class Focus(nn.Module):
    """Four pixels side by side as channels, as YOLOv5's first layer has them."""

    def __init__(self, outside: int) -> None:
        super().__init__()
        self.conv = small.normed(12, outside, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]
        return self.conv(torch.cat(corners, 1))


class Split(nn.Module):
    """YOLOv8's C2f: half of the channels pass residual blocks, and all that came of them is joined."""

    def __init__(self, inside: int, outside: int, blocks: int = 2) -> None:
        super().__init__()
        half = outside // 2
        unit = partial(small.normed, half, half, act=nn.SiLU)
        self.first = small.normed(inside, outside, 1, act=nn.SiLU)
        self.blocks = nn.ModuleList(nn.Sequential(unit(), unit()) for _ in range(blocks))
        self.last = small.normed((2 + blocks) * half, outside, 1, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.first(x).chunk(2, 1))
        for block in self.blocks:
            y.append(y[-1] + block(y[-1]))
        return self.last(torch.cat(y, 1))


class Spatial(nn.Module):
    """SPPF: a map beside three of its max-pools."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = small.normed(width, width // 2, 1, act=nn.SiLU)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.last = small.normed(2 * width, width, 1, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        a = self.pool(x)
        b = self.pool(a)
        return self.last(torch.cat((x, a, b, self.pool(b)), 1))


class YOLO(nn.Module):
    """A detector with three heads, each (N, places, 4 + classes): boxes and scores, by the name of its level."""

    def __init__(self, width: int = 8, classes: int = 3) -> None:
        super().__init__()
        w, down = width, partial(small.normed, stride=2, act=nn.SiLU)
        self.body = nn.Sequential(Focus(w), down(w, 2 * w), Split(2 * w, 2 * w))
        self.middle = nn.Sequential(down(2 * w, 4 * w), Split(4 * w, 4 * w))
        self.deep = nn.Sequential(down(4 * w, 8 * w), Spatial(8 * w))
        self.up = nn.Upsample(scale_factor=2)
        self.join = Split(12 * w, 4 * w)
        self.join_fine = Split(6 * w, 2 * w)
        sizes = {"fine": 2 * w, "middle": 4 * w, "coarse": 8 * w}
        self.heads = nn.ModuleDict({name: nn.Conv2d(size, 4 + classes, 1) for name, size in sizes.items()})
        self.stride = {"fine": 4, "middle": 8, "coarse": 16}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.body(x)
        middle = self.middle(fine)
        coarse = self.deep(middle)
        middle = self.join(torch.cat([self.up(coarse), middle], 1))
        fine = self.join_fine(torch.cat([self.up(middle), fine], 1))
        levels = {"fine": fine, "middle": middle, "coarse": coarse}
        return {name: self._decoded(name, level) for name, level in levels.items()}

    def _decoded(self, name: str, x: Tensor) -> Tensor:
        y = self.heads[name](x).flatten(2).permute(0, 2, 1)  # (N, places, 4 + classes)
        sizes, scores = y.split([4, y.shape[-1] - 4], dim=-1)
        return torch.cat([sizes.sigmoid() * 2 * self.stride[name], scores.softmax(-1)], -1)


class Named(nn.Module):
    """A body with a class score and a map, given as a tuple in an ordered dictionary: outputs within outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = small.normed(3, 16, stride=2), small.head(16)
        self.norm, self.act = nn.GroupNorm(4, 16), nn.PReLU(16)

    def forward(self, x: Tensor) -> dict:
        y = self.act(self.norm(self.body(x)))
        return OrderedDict(scores=self.head(y), maps=(y, torch.tanh(y)), input=x)


def _of(build: Callable[..., nn.Module], *shape: int, **options: object) -> tuple[Callable[[], nn.Module], tuple]:
    return partial(build, **options), shape


def _built(name: str, **options: object) -> nn.Module:
    """A network of torchvision by its name, or by that of its class with sizes of its own."""
    models = networks.architectures()
    if models is None:
        pytest.skip("torchvision is not installed: make test brings it")
    build = getattr(models, name) if name[0].isupper() else partial(models.get_model, name)
    return build(num_classes=10, **options)


def _of_torchvision(name: str, side: int = 64, **options: object) -> tuple[Callable[[], nn.Module], tuple]:
    return partial(_built, name, **options), (3, side, side)


# As ViT-B/32 and Swin-T, which have tens of millions of weights and no other layer.
VIT = {"image_size": 64, "patch_size": 16, "num_layers": 3, "num_heads": 4, "hidden_dim": 48, "mlp_dim": 96}
SWIN = {
    "patch_size": [4, 4], "embed_dim": 24, "depths": [2, 2, 2, 2], "num_heads": [3, 3, 6, 6], "window_size": [7, 7],
}  # fmt: skip
OURS = {
    "lenet": _of(nets.lenet, 1, 28, 28),
    "vgg16_cifar": _of(nets.vgg16_cifar, 3, 32, 32, width=0.25),
    "vgg19_cifar": _of(nets.vgg19_cifar, 3, 32, 32),
    "vgg16": _of(nets.vgg16, 3, 32, 32, classes=10),
    "resnet_cifar": _of(nets.resnet_cifar, 3, 32, 32, depth=20),
    "resnet18": _of(nets.resnet18, 3, 64, 64, classes=10),
    "resnet50": _of(nets.resnet50, 3, 64, 64, classes=10),
    "densenet40": _of(nets.densenet40, 3, 32, 32),
    "googlenet_cifar": _of(nets.googlenet_cifar, 3, 16, 16),
    "mobilenet_v1": _of(nets.mobilenet_v1, 3, 64, 64, width=0.5, classes=10, size=64),
    "mobilenet_v2": _of(nets.mobilenet_v2, 3, 64, 64, width=0.5, classes=10),
    "edsr": _of(nets.edsr, 3, 20, 24),
    "edsr x 3": _of(nets.edsr, 3, 20, 24, scale=3, scaling=0.1),
    "rdn": _of(nets.rdn, 3, 20, 24),
    "unet": _of(nets.unet, 3, 24, 32),
    "vit": _of(nets.vit, 1, 28, 28),
}
TORCHVISION = {
    "torchvision resnet18": _of_torchvision("resnet18"),
    "torchvision resnet50": _of_torchvision("resnet50"),
    "torchvision vgg16_bn": _of_torchvision("vgg16_bn"),
    "torchvision squeezenet1_0": _of_torchvision("squeezenet1_0"),
    "torchvision squeezenet1_1": _of_torchvision("squeezenet1_1"),
    "torchvision densenet121": _of_torchvision("densenet121"),
    "torchvision googlenet": _of_torchvision("googlenet", init_weights=False),
    "torchvision inception_v3": _of_torchvision("inception_v3", 128, init_weights=False),
    "torchvision mobilenet_v2": _of_torchvision("mobilenet_v2"),
    "torchvision mobilenet_v3_small": _of_torchvision("mobilenet_v3_small"),
    "torchvision mobilenet_v3_large": _of_torchvision("mobilenet_v3_large"),
    "torchvision mnasnet1_0": _of_torchvision("mnasnet1_0"),
    "torchvision shufflenet_v2_x1_0": _of_torchvision("shufflenet_v2_x1_0"),
    "torchvision efficientnet_b0": _of_torchvision("efficientnet_b0"),
    "torchvision regnet_x_400mf": _of_torchvision("regnet_x_400mf"),
    "torchvision regnet_y_400mf": _of_torchvision("regnet_y_400mf"),
    "torchvision convnext_tiny": _of_torchvision("convnext_tiny"),
    "torchvision VisionTransformer": _of_torchvision("VisionTransformer", **VIT),
    "torchvision SwinTransformer": _of_torchvision("SwinTransformer", **SWIN),
}
BY_HAND = {
    "VDSR": _of(VDSR, 3, 24, 20),
    "RLFN": _of(superres.RLFN, 3, 32, 40),
    "U-Net, transposed": _of(small.UNet, 3, 24, 32),
    "U-Net, bilinear": _of(Enlarged, 3, 24, 32),
    "YOLO": _of(YOLO, 3, 64, 96),
    "outputs within outputs": _of(Named, 3, 18, 18),
    **{n.name: (n.build, (3, n.side, n.side)) for n in networks.small_networks() if n.name not in ("U-Net", "EDSR")},
}
NETWORKS = {**OURS, **TORCHVISION, **BY_HAND}


def made(name: str) -> tuple[nn.Module, Tensor]:
    """The network in eval mode, under whose weights every layer matters, and one picture (1, C, H, W)."""
    build, shape = NETWORKS[name]
    images = pictures(8, *shape)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return calm(lively(build(), images)), images[:1]
