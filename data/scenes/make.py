"""Train the network that `lab.tasks.scenes()` starts from: `python data/scenes/make.py`, two minutes on one core."""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from lab.core import nets, store
from lab.core.data.batches import in_order, shifted, shuffled
from lab.core.scores import accuracy
from lab.core.tasks import scenes_data
from lab.core.training import Stage, descend, seeded

SEED, EPOCHS, BATCH, LR, MOMENTUM, DECAY, REACH = 0, 12, 64, 0.05, 0.9, 5e-4, 2
FILE = Path(__file__).parent / "resnet8.safetensors"


def train() -> nn.Module:
    """The network on the 1,920 training scenes, each moved at random; SGD, a cosine down to zero."""
    x, y, *_ = scenes_data("shape")
    net = nets.resnet_cifar(8, classes=4)
    batches = shuffled(TensorDataset(x, y), BATCH)
    steps = EPOCHS * len(batches)
    sgd = torch.optim.SGD(net.parameters(), LR, momentum=MOMENTUM, weight_decay=DECAY, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, steps)
    stage = Stage(None, "scenes", "maker", net=net, sgd=sgd, schedule=schedule)

    def terms(batch):
        return {"cross-entropy": F.cross_entropy(net(shifted(batch[0], REACH)), batch[1])}

    for _ in descend(terms, batches, sgd, stage, steps=steps, schedule=schedule):
        pass
    return net


def main() -> None:
    torch.set_num_threads(1)
    with seeded(SEED):
        net = train()
    half = {name: value.half() if value.is_floating_point() else value for name, value in net.state_dict().items()}
    net.load_state_dict(half)  # what is measured is what is kept
    *_, x, y = scenes_data("shape")
    print(f"held-out accuracy {accuracy(in_order(TensorDataset(x, y)))(net):.2f} % of {len(y)}")
    store.write(FILE, save(half))
    digest = hashlib.sha256(FILE.read_bytes()).hexdigest()
    store.write(FILE.with_name("SHA256SUMS"), f"{digest}  {FILE.name}\n".encode())


if __name__ == "__main__":
    main()
