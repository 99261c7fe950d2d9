"""Train the EDSRs that `lab.tasks.photos()` starts from: `python data/photos/make.py`, some fifteen minutes.

`python data/photos/make.py 2` trains the one for scale 2 only.
"""

import hashlib
import sys
from pathlib import Path

import torch
from safetensors.torch import save
from torch.nn import functional as F

from lab.core import nets, store, tasks
from lab.core.task import Task
from lab.core.training import Stage, descend, seeded

SEED, BATCH, LR = 0, 16, 2e-3
STEPS = {2: 6000, 3: 3000, 4: 3000}
HALVED = (3, 4)  # in half precision, for the wheel's sake: the PSNR is the same to a ten-thousandth
PATCH = {2: 64, 3: 72, 4: 96}  # high-resolution pixels
HERE = Path(__file__).parent


def train(task: Task, steps: int) -> None:
    """Train the task's network in place: Adam on L1, a cosine down to zero."""
    adam = torch.optim.Adam(task.model.parameters(), LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    stage = Stage(None, task.name, "maker", net=task.model, adam=adam, schedule=schedule)

    def terms(batch):
        return {"l1": F.l1_loss(task.model(batch[0]), batch[1])}

    for _ in descend(terms, task.batches, adam, stage, steps=steps, schedule=schedule):
        pass


def main(scales: list[int]) -> None:
    torch.set_num_threads(1)
    for scale in scales:
        with seeded(SEED):
            task = tasks.photos(scale, nets.edsr(scale=scale), patch=PATCH[scale], batch_size=BATCH)
            train(task, STEPS[scale])
        print(f"x{scale}: held-out PSNR {task.measure(task.model):.2f} dB", flush=True)
        weights = task.model.state_dict()
        if scale in HALVED:
            weights = {name: weight.half() for name, weight in weights.items()}
        store.write(HERE / f"edsr_x{scale}.safetensors", save(weights))
    sums = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in sorted(HERE.glob("*.safetensors"))]
    store.write(HERE / "SHA256SUMS", "".join(sums).encode())


if __name__ == "__main__":
    main([int(scale) for scale in sys.argv[1:]] or list(PATCH))
