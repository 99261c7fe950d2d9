"""What decoupling's contests stand on: a trained network, pictures to learn from and held out, and where they lie."""

from dataclasses import dataclass, replace
from functools import cache

import torch
from cifar import cifar, tiles
from contest import SHARED, placed
from detectors import Pixels
from torch import Tensor, nn
from torch.nn import functional as F

import lab
from lab.core import store
from lab.core.batch import moved
from lab.core.data.batches import LabelledImages, shuffled
from lab.core.data.images import read
from lab.core.task import Task

KNOWN = 1_000  # training pictures that paths and detectors learn from
CIFAR = 18_000  # of CIFAR-10's training pictures, the first ones
ATTACKED = {"fashion": (0.1, 2), "cifar": (8 / 255, 5)}  # reach of attacks, bits of squeezing: seed 0, published


@dataclass(frozen=True)
class Ground:
    """The task, pictures with classes to learn from and held out, and what pixels are, all on one device."""

    task: Task
    known: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    pixels: Pixels
    device: str = "cpu"


@cache
def fashion(batch: int, device: str = "cpu") -> Ground:
    """ResNet-20 on Fashion-MNIST."""
    split = read(store.artefact("fashion/t10k-images-idx3-ubyte.xz").parent)
    return _ground(lab.tasks.fashion(batch_size=batch), (split.x_test, split.y_test), ATTACKED["fashion"], device)


@cache
def cifar56(batch: int, device: str = "cpu") -> Ground:
    """ResNet-56 on CIFAR-10."""
    task = cifar(SHARED, 56, batch)
    learn = task.batches.dataset  # type: ignore[attr-defined]
    learn.x, learn.y = learn.x[:CIFAR], learn.y[:CIFAR]
    task = replace(task, batches=shuffled(learn, batch))
    return _ground(task, tiles(SHARED / "cifar10" / "cifar10_test1k.zip"), ATTACKED["cifar"], device)


def _ground(task: Task, held_out: tuple[Tensor, Tensor], attacked: tuple[float, int], device: str) -> Ground:
    """The ground of a task whose batches are normalised pictures; x (N, C, H, W) uint8 and y (N,) are held out."""
    learn = task.batches.dataset  # type: ignore[attr-defined]
    mean, std = learn.mean.flatten().tolist(), learn.std.flatten().tolist()
    known, held_out = (
        moved(LabelledImages(x, y, mean, std)[torch.arange(len(y))], device)
        for x, y in ((learn.x[:KNOWN], learn.y[:KNOWN]), held_out)
    )
    low, high = (((value - learn.mean[0]) / learn.std[0]).to(device) for value in (0.0, 1.0))  # (C, 1, 1)
    return Ground(placed(task, device), known, held_out, Pixels(low, high, *attacked), device)


def enlarged_fashion(model: nn.Module, batch: int, size: int, device: str) -> Task:
    """Fashion-MNIST for a network of larger colour pictures."""
    on = fashion(batch, device)
    parts = zip(*(part.split(50) for part in on.held_out), strict=True)
    score = lab.tasks.accuracy([(enlarged(x, size), y) for x, y in parts])
    inputs = lambda batch: enlarged(batch[0], size)  # noqa: E731
    example = enlarged(on.task.example, size)
    return replace(on.task, model=model.to(device), score=score, inputs=inputs, example=example)


def enlarged(x: Tensor, size: int) -> Tensor:
    """Grey pictures (N, 1, H, W) as colour ones of another size."""
    return F.interpolate(x, size=(size, size), mode="bilinear").expand(-1, 3, -1, -1)
