"""Train the EDSRs that `lab.tasks.photos()` starts from: `python data/photos/make.py`, some ten minutes."""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import save
from torch.nn import functional as F

from lab.core import nets, store, tasks
from lab.core.descent import Stage, descend, seeded
from lab.core.task import Task

SEED, STEPS, BATCH, LR = 0, 6000, 16, 2e-3
PATCH = {2: 64, 3: 96, 4: 96}  # high-resolution pixels
HERE = Path(__file__).parent


def train(task: Task) -> None:
    """Train the task's network in place: Adam on L1, a cosine down to zero."""
    adam = torch.optim.Adam(task.model.parameters(), LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, STEPS)
    stage = Stage(None, task.name, "maker", net=task.model, adam=adam, schedule=schedule)

    def terms(batch):
        return {"l1": F.l1_loss(task.model(batch[0]), batch[1])}

    for _ in descend(terms, task.batches, adam, stage, steps=STEPS, schedule=schedule):
        pass


def main() -> None:
    torch.set_num_threads(1)
    sums = []
    for scale, patch in PATCH.items():
        with seeded(SEED):
            task = tasks.photos(scale, nets.edsr(scale=scale), patch=patch, batch_size=BATCH)
            train(task)
        print(f"x{scale}: held-out PSNR {task.measure(task.model):.2f} dB", flush=True)
        file, content = HERE / f"edsr_x{scale}.safetensors", save(task.model.state_dict())
        store.write(file, content)
        sums.append(f"{hashlib.sha256(content).hexdigest()}  {file.name}\n")
    store.write(HERE / "SHA256SUMS", "".join(sums).encode())


if __name__ == "__main__":
    main()
