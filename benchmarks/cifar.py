"""CIFAR-10 where it is at hand (`../shared/data/cifar10`): 30,000 and 1,000 pictures, and trained ResNets."""

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

import lab
from lab.core.data.batches import LabelledImages, in_order, shuffled
from lab.core.task import Task


def cifar(folder: Path, depth: int, batch: int = 32) -> Task:
    """A ResNet with the weights at hand, on 30,000 training and 1,000 test pictures of CIFAR-10."""
    model = lab.nets.resnet_cifar(depth)
    model.load_state_dict(load_file(folder / "cifar10" / "weights" / f"resnet{depth}.safetensors"))
    statistics = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # those the weights were trained with
    train = LabelledImages(
        *tiles(folder / "cifar10" / "cifar10_train30k.zip"), **statistics, augment=("pad-crop", "flip")
    )
    test = LabelledImages(*tiles(folder / "cifar10" / "cifar10_test1k.zip"), **statistics)
    score = lab.tasks.accuracy(in_order(test))
    return Task(model=model, batches=shuffled(train, batch), score=score, name=f"ResNet-{depth}, CIFAR-10")


def tiles(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (n, 3, 32, 32) uint8 and labels (n,) of an archive of mosaics, each 40 rows of 25 tiles."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(archive.namelist())
        mosaics = [Image.open(io.BytesIO(archive.read(n))).convert("RGB") for n in names if n.endswith(".webp")]
        (labels,) = (archive.read(n).split() for n in names if n.startswith("labels"))
    parts = [np.asarray(m).reshape(40, 32, 25, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32) for m in mosaics]
    return torch.from_numpy(np.concatenate(parts)), torch.tensor([int(label) for label in labels])
