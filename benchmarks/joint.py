"""Networks of several kinds of structures for GAL's contest of units, and VGG-16 on CIFAR-10: trained where they lack.

A start is trained once with seed 0 and kept in half precision, which all rivals and seeds read: the two small networks
are in `data/gal`, the VGG-16, which is larger, is left in `runs/starts`. What is there is not made again.

    python benchmarks/joint.py googlenet|densenet [DEVICE]
"""

import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import contest
import torch
from cifar import cifar
from safetensors.torch import load_file, save
from torch import nn

import lab
from lab.core import nets, store
from lab.core.nets.densenet import DenseLayer
from lab.core.nets.googlenet import Inception
from lab.core.nets.parts import Mean, conv_bn
from lab.core.task import Task
from lab.core.training import Stage, descend, seeded

KEPT, LARGE = contest.ROOT / "data" / "gal", contest.ROOT / "runs" / "starts"
BATCH, STEPS, LR, MOMENTUM, DECAY = 128, 3_000, 0.1, 0.9, 5e-4  # as `data/fashion` was trained, 38 passes


def googlenet() -> nn.Module:
    """Four Inception modules, 14 and 7 pixels: (N, 1, 28, 28) -> (N, 10); 9 million multiply-adds."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["stem"] = nn.Sequential(*conv_bn(1, 32, 3, bias=True), nn.MaxPool2d(2))
    width = 32
    for name, c in (("a", (16, 16, 32, 8, 16, 16)), ("b", (16, 16, 32, 8, 16, 16)), ("c", (32, 32, 64, 16, 32, 32)),
                    ("d", (32, 32, 64, 16, 32, 32))):  # fmt: skip
        if name == "c":
            layers["pool"] = nn.MaxPool2d(2)
        module = layers[name] = Inception(width, c)
        width = module.width
    layers |= OrderedDict(mean=Mean(), linear=nn.Linear(width, 10))
    return nn.Sequential(layers)


def densenet() -> nn.Module:
    """Three dense blocks of four layers, growth 12: (N, 1, 28, 28) -> (N, 10); 27 million multiply-adds."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=nn.Conv2d(1, 16, 3, padding=1, bias=False))
    width = 16
    for block in (1, 2, 3):
        layers[f"dense{block}"] = nn.Sequential(*(DenseLayer(width + 12 * i, 12) for i in range(4)))
        width += 48
        if block < 3:
            layers[f"transition{block}"] = nn.Sequential(
                nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 1, bias=False), nn.AvgPool2d(2)
            )
    layers |= OrderedDict(bn=nn.BatchNorm2d(width), relu=nn.ReLU(), mean=Mean(), linear=nn.Linear(width, 10))
    return nn.Sequential(layers)


SMALL: dict[str, Callable[[], nn.Module]] = {"googlenet": googlenet, "densenet": densenet}


def ground(net: str, batch: int, device: str, is_quick: bool) -> Task:
    """Fashion-MNIST with a trained network of `SMALL`, or with the ResNet-20 of `data/fashion`."""
    if net not in SMALL:
        return contest.placed(lab.tasks.fashion(batch_size=batch, net=net), device)
    task = lab.tasks.fashion(fresh(SMALL[net]), batch)
    return started(KEPT / f"{net}.safetensors", task, device, is_quick)


def vgg16(batch: int, device: str, is_quick: bool) -> Task:
    """CIFAR-10 with a VGG-16 of half the channels."""
    model = fresh(partial(nets.vgg16_cifar, width=0.5))
    task = replace(cifar(contest.SHARED, 20, batch), model=model, name="VGG-16, CIFAR-10")
    return started(LARGE / "vgg16.safetensors", task, device, is_quick)


def fresh(make: Callable[[], nn.Module]) -> nn.Module:
    """A network with weights drawn from seed 0."""
    with seeded(0):
        return make().eval()


def started(path: Path, task: Task, device: str, is_quick: bool) -> Task:
    """The task with its network trained: read where it is kept, or trained now and kept unless that was quick."""
    task = contest.placed(task, device)
    if path.exists():
        task.model.load_state_dict(load_file(path))
        return task
    with seeded(0):
        trained(task, STEPS // 50 if is_quick else STEPS)
    rounded = {key: t.half() if t.is_floating_point() else t for key, t in task.model.state_dict().items()}
    task.model.load_state_dict(rounded)
    if not is_quick:
        store.write(path, save({key: t.cpu().contiguous() for key, t in rounded.items()}))
    return task


def trained(task: Task, steps: int) -> None:
    """Train the task's network in place: SGD, a cosine down to zero."""
    model = task.model
    optimiser = torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM, weight_decay=DECAY, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    stage = Stage(None, "start", "contest", model=model, optimiser=optimiser, schedule=schedule)
    terms = lambda batch: {"loss": task.fit(model, batch)[0]}  # noqa: E731
    model.train()
    for _ in descend(terms, task.batches, optimiser, stage, steps=steps, schedule=schedule, progress=False):
        pass
    model.eval()


if __name__ == "__main__":
    for name in sys.argv[1:2]:
        made = ground(name, BATCH, (sys.argv[2:] or ["cpu"])[0], is_quick=False)
        print(f"{name}: held-out accuracy {made.measure(made.model):.2f} %")
