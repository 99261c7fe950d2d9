"""Train the ResNet-20 that the digits task starts from: `python data/digits/make.py`, about 15 seconds on one core."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from lab.core import nets, tasks
from lab.core.descent import Stage, descend, seeded

STEPS, LR, SEED = 600, 0.1, 0


def train() -> torch.nn.Module:
    """SGD on pictures that are shifted by up to one pixel, one-cycle schedule."""
    (x, y), _ = tasks.digits_data()
    with seeded(SEED):
        model = nets.resnet_cifar(20, channels=1).train()
        optimiser = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4, nesterov=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LR, total_steps=STEPS + 1)

        def fit(batch):
            shift = torch.randint(-1, 2, (2,)).tolist()
            return {"task": F.cross_entropy(model(torch.roll(batch[0], shift, (2, 3))), batch[1])}

        stage = Stage(None, "digits", "make")
        for _ in descend(fit, tasks.shuffled(x, y), optimiser, stage, steps=STEPS, schedule=schedule):
            pass
    return model.eval()


if __name__ == "__main__":
    torch.set_num_threads(1)
    model = train()
    save_file(model.state_dict(), Path(__file__).parent / "resnet20.safetensors")
    _, test = tasks.digits_data()
    with torch.no_grad():
        print(f"accuracy {tasks.accuracy([test])(model):.1f} % on 500 held-out pictures")
