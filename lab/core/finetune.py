"""Training with labels: what a compressed network gets before it is judged, and what its rivals must get too."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR

from .descent import Stage, Step, descend
from .task import Task


def finetune(
    task: Task,
    model: nn.Module,
    *,
    steps: int,
    lr: float,
    penalty: Callable[[nn.Module], None] | None = None,
    checkpoint: str | Path | None = None,
    owner: str = "",
    progress: bool = True,
) -> list[Step]:
    """Train the model in place on the task's own loss: SGD with momentum 0.9, the rate a tenth after each 30 %.

    Batches are (x, y). `penalty(model)` may add to the gradients before each update. The model is left in eval mode.
    """
    place = next(model.parameters()).device
    optimiser, schedule = sgd(model.parameters(), lr, steps)
    if penalty is not None:
        optimiser.register_step_pre_hook(lambda *_: penalty(model))
    stage = Stage(checkpoint, "finetune", owner, model=model, optimiser=optimiser, schedule=schedule)
    model.train()

    def fit(batch: Any) -> dict[str, Tensor]:
        x, y = batch[0].to(place), batch[1].to(place)
        return {"task": task.loss(model(x), y)}

    for _ in descend(fit, task.batches, optimiser, stage, steps=steps, schedule=schedule, progress=progress):
        pass
    model.eval()
    return list(stage.trace)


def sgd(parameters: Iterable[nn.Parameter], lr: float, steps: int) -> tuple[SGD, StepLR]:
    """SGD with momentum 0.9 and weight decay 2e-4, and a schedule that takes the rate to a tenth each 30 % of steps."""
    optimiser = SGD(parameters, lr=lr, momentum=0.9, weight_decay=2e-4)
    return optimiser, StepLR(optimiser, max(1, round(0.3 * steps)), 0.1)


def has_labels(task: Task) -> bool:
    """Whether the task's batches are (x, y)."""
    batch = task.first_batch()
    return isinstance(batch, (tuple, list)) and len(batch) > 1 and isinstance(batch[1], torch.Tensor)
