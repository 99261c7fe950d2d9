"""Train the ResNet-20 that `lab.tasks.digits()` starts from: `python data/digits/make.py`, half a minute."""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import save
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from lab.core import nets, store
from lab.core.batches import in_order, shifted, shuffled
from lab.core.descent import Stage, descend, seeded
from lab.core.scores import accuracy
from lab.core.task import evaluating
from lab.core.tasks import digits_data

SEED, EPOCHS, BATCH, LR, MOMENTUM, DECAY = 0, 40, 64, 0.05, 0.9, 5e-4
FILE = Path(__file__).with_name("resnet20.safetensors")


def train() -> torch.nn.Module:
    """ResNet-20 on the 1,297 training digits, each moved by up to one pixel; SGD, a cosine down to zero."""
    x, y, *_ = digits_data()
    net = nets.resnet_cifar(20, classes=10, channels=1)
    batches = shuffled(TensorDataset(x, y), BATCH)
    steps = EPOCHS * len(batches)
    sgd = torch.optim.SGD(net.parameters(), LR, momentum=MOMENTUM, weight_decay=DECAY, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, steps)
    stage = Stage(None, "digits", "maker", net=net, sgd=sgd, schedule=schedule)

    def terms(batch):
        moved = shifted(batch[0] + 0.5, 1) - 0.5  # the paper is at -0.5, so that zeros are padded at 0
        return {"cross-entropy": F.cross_entropy(net(moved), batch[1])}

    for _ in descend(terms, batches, sgd, stage, steps=steps, schedule=schedule):
        pass
    return net


def main() -> None:
    torch.set_num_threads(1)
    with seeded(SEED):
        net = train()
    *_, x, y = digits_data()
    score = accuracy(in_order(TensorDataset(x, y)))
    with evaluating(net):
        print(f"held-out accuracy {score(net):.1f} %")
    content = save(net.state_dict())
    store.write(FILE, content)
    store.write(FILE.with_name("SHA256SUMS"), f"{hashlib.sha256(content).hexdigest()}  {FILE.name}\n".encode())


if __name__ == "__main__":
    main()
