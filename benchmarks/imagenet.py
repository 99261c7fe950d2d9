"""A trained MobileNet-v1 in 8 bits and a thousand pictures of ImageNet's classes, one of each, where they are at hand.

They are read of the folder `imagenet` of SHARED (`../shared/data`): mobilenet_v1_100_224.npz (Apache-2.0, norms folded)
and imagenet_sample_224.zip. The pictures are most likely among those that the weights were trained with, so accuracy is
a measure of what a change loses and not of the network. They may not be passed on, and are not.
"""

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from contest import SHARED
from torch import nn

import lab
from lab.core.data.batches import LabelledImages, in_order, shuffled
from lab.core.task import Task

FOLDER = SHARED / "imagenet"
EPSILON = 1e-3  # of the norms
LEARNED, HELD_OUT = range(500), range(500, 1000)  # in the order of the classes: no held-out one is learned from


def mobilenet(folder: Path = FOLDER) -> nn.Sequential:
    """The trained network turned by 180 degrees, for pictures turned as well.

    It was trained with padding behind the last pixel where a stride of 2 has only one to pad. Turned, that is the
    padding before the first pixel that the engine, as torch, gives to maps of even sides: the same function.
    """
    saved = np.load(folder / "mobilenet_v1_100_224.npz")
    layers: list[nn.Module] = []
    for layer in json.loads(str(saved["spec"])):
        if "pool" in layer:
            layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
            continue
        i, k, c_in, c_out = map(layer.get, ("i", "k", "cin", "cout"))
        weight = torch.from_numpy(saved[f"{i}.q"].astype(np.float32) * saved[f"{i}.s"].reshape(-1, 1, 1, 1))
        last = layer["act"] == 0
        made = nn.Linear(c_in, c_out) if last else nn.Conv2d(c_in, c_out, k, layer["s"], k // 2, groups=layer["g"])
        made.weight.data = weight.flatten(1) if last else weight.flip(2, 3)
        made.bias.data = torch.from_numpy(saved[f"{i}.b"])
        layers += [made] if last else [made, nn.ReLU6()]
    return nn.Sequential(*layers).eval()


@torch.no_grad()
def normed(model: nn.Sequential, x: torch.Tensor) -> nn.Sequential:
    """The network with a batch norm again behind each convolution, which gives it the statistics that it has on x.

    It computes the same as before; without norms hardly a weight can go, and nothing brings back what was lost.
    """
    layers: list[nn.Module] = []
    for layer in model:
        y = layer(x)
        if isinstance(layer, nn.Conv2d):
            mean, std = y.mean((0, 2, 3)), y.std((0, 2, 3)).clamp(min=1e-2)
            norm = nn.BatchNorm2d(layer.out_channels, eps=EPSILON)
            norm.running_mean = (mean - layer.bias) / std
            norm.weight.data, norm.bias.data = std * (1 + EPSILON) ** 0.5, mean
            bare = nn.Conv2d(
                layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
                groups=layer.groups, bias=False,
            )  # fmt: skip
            bare.weight.data = layer.weight / std.view(-1, 1, 1, 1)
            layers += [bare, norm]
        else:
            layers.append(layer)
        x = y
    return nn.Sequential(*layers).eval()


def pictures(which: Sequence[int], folder: Path = FOLDER) -> LabelledImages:
    """Pictures (N, 3, 224, 224) turned by 180 degrees, -1 to 1, and their classes, of which 0 is none."""
    from PIL import Image

    with zipfile.ZipFile(folder / "imagenet_sample_224.zip") as file:
        names = sorted(file.namelist())
        images = [np.asarray(Image.open(io.BytesIO(file.read(names[i]))).convert("RGB")) for i in which]
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).flip(2, 3).contiguous()
    return LabelledImages(x, torch.tensor([i + 1 for i in which]), mean=(0.5,) * 3, std=(0.5,) * 3)


def imagenet(batch: int) -> Task:
    """The network with norms, 500 pictures to learn from without their labels, and the other 500 for the score."""
    learned, held_out = pictures(LEARNED), pictures(HELD_OUT)
    return Task(
        model=normed(mobilenet(), learned[torch.arange(0, len(learned), 10)][0]),
        batches=shuffled(learned, batch),
        labels=lambda _: None,
        score=lab.tasks.accuracy(in_order(held_out, 25)),
        name="MobileNet-v1, ImageNet's sample",
    )
