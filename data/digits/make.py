"""Train the networks that `lab.tasks.digits()` starts from: `python data/digits/make.py [name]`, a minute each."""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from lab.core import nets, store
from lab.core.data.batches import in_order, shifted, shuffled
from lab.core.scores import accuracy
from lab.core.task import evaluating
from lab.core.tasks import digits_data
from lab.core.training import Stage, descend, seeded

SEED, BATCH, LR, MOMENTUM, DECAY = 0, 64, 0.05, 0.9, 5e-4
FOLDER = Path(__file__).parent


class Setting(NamedTuple):
    """A network, the pictures it takes, how many passes it learns, and how far each picture is moved in pixels."""

    make: Callable[[], nn.Module]
    size: int
    channels: int
    epochs: int
    reach: int


SETTINGS = {
    "resnet20": Setting(lambda: nets.resnet_cifar(20, classes=10, channels=1), 8, 1, 40, 1),
    "mobilenet_v1": Setting(lambda: nets.mobilenet_v1(0.25, classes=10), 32, 3, 80, 3),
}
HALVED = {"mobilenet_v1"}  # kept in half precision, half as large


def train(setting: Setting) -> nn.Module:
    """The network on the 1,297 training digits, each moved at random; SGD, a cosine down to zero."""
    x, y, *_ = digits_data(setting.size, setting.channels)
    net = setting.make()
    batches = shuffled(TensorDataset(x, y), BATCH)
    steps = setting.epochs * len(batches)
    sgd = torch.optim.SGD(net.parameters(), LR, momentum=MOMENTUM, weight_decay=DECAY, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, steps)
    stage = Stage(None, "digits", "maker", net=net, sgd=sgd, schedule=schedule)

    def terms(batch):
        moved = shifted(batch[0] + 0.5, setting.reach) - 0.5  # the paper is at -0.5, so that zeros are padded at 0
        return {"cross-entropy": F.cross_entropy(net(moved), batch[1])}

    for _ in descend(terms, batches, sgd, stage, steps=steps, schedule=schedule):
        pass
    return net


def make(name: str) -> None:
    """Train one of the networks, say how well it does, and keep it."""
    setting = SETTINGS[name]
    with seeded(SEED):
        net = train(setting)
    if name in HALVED:
        net = net.half().float()
    *_, x, y = digits_data(setting.size, setting.channels)
    score = accuracy(in_order(TensorDataset(x, y)))
    with evaluating(net):
        print(f"{name}: held-out accuracy {score(net):.1f} %")
    state = (net.half() if name in HALVED else net).state_dict()
    store.write(FOLDER / f"{name}.safetensors", save(state))


def main() -> None:
    torch.set_num_threads(1)
    for name in sys.argv[1:] or SETTINGS:
        make(name)
    files = sorted(FOLDER.glob("*.safetensors"))
    sums = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)
    store.write(FOLDER / "SHA256SUMS", sums.encode())


if __name__ == "__main__":
    main()
