"""Training with labels: what a compressed network gets before it is judged, and what its rivals must get too."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR

from .batch import IGNORED, call, device_for, each, logits_of, moved, size, tensors
from .errors import first_line
from .running import Run, fingerprint
from .stopping import held
from .task import Task, checked_task, evaluating
from .training import SINGLE, Stage, Step, descend, unmoved


def finetune(
    task: Task,
    model: nn.Module,
    *,
    steps: int,
    lr: float,
    penalty: Callable[[nn.Module], None] | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> list[Step]:
    """Train the model in place on the task's own loss: SGD with momentum 0.9, the rate a tenth after each 30 %.

    `penalty(model)` may add to the gradients before each update. The model is left in eval mode. What is pruned stays
    so: weights that are exactly 0, in a tensor of two or more axes that holds others too, are 0 afterwards.
    If it is broken off, the model has its old weights back and the checkpoint the new. Labels that the loss does not
    take are a one-line ValueError before the first step.
    """
    if not isinstance(steps, int) or steps < 0:
        raise ValueError(f"finetune: steps={steps!r}: give an integer number of updates, 0 or more")
    if not isinstance(lr, (int, float)) or not 0 < lr < math.inf:
        raise ValueError(f"finetune: lr={lr!r}: give a finite learning rate above 0")
    validate_labels(checked_task(task))
    validate_batches(task)
    if checkpoint is None:
        return _fit(task, model, partial(Stage, None, "finetune", ""), steps, lr, progress, penalty)
    run_id = f"finetune(steps={steps}, lr={lr}) on {task.name} ({fingerprint(replace(task, model=model))})"
    with held(checkpoint), _given_back(model):
        return _fit(task, model, partial(Stage, checkpoint, "finetune", run_id), steps, lr, progress, penalty)


def finetune_stage(run: Run, model: nn.Module, steps: int, lr: float) -> list[Step]:
    """`finetune` as the stage of a run, which holds the checkpoint and has validated its labels."""
    return _fit(run.task, model, partial(run.stage, "finetune"), steps, lr, run.progress)


def _fit(
    task: Task, model: nn.Module, stage_of: Callable[..., Stage], steps: int, lr: float, progress: bool,
    penalty: Callable[[nn.Module], None] | None = None,
) -> list[Step]:  # fmt: skip
    """Train in place; `stage_of` makes the stage of all that changes."""
    optimiser, schedule = sgd(model.parameters(), lr, steps)
    if penalty is not None:
        optimiser.register_step_pre_hook(lambda *_: penalty(model))
    stage = stage_of(model=model, optimiser=optimiser, schedule=schedule)
    model.train()

    def fit(batch: Any) -> dict[str, Tensor]:
        return {"task": task.fit(model, batch)[0]}

    for _ in descend(fit, task.batches, optimiser, stage, steps=steps, schedule=schedule, progress=progress):
        pass
    model.eval()
    return list(stage.trace)


@contextmanager
def _given_back(model: nn.Module) -> Iterator[None]:
    """Give a model whose training is broken off its weights back: by them the next call knows its checkpoint again."""
    start = deepcopy(model.state_dict())
    try:
        yield
    except BaseException:
        model.load_state_dict(start)
        raise


def sgd(parameters: Iterable[nn.Parameter], lr: float, steps: int) -> tuple[SGD, StepLR]:
    """SGD with momentum 0.9 and weight decay 2e-4, and a schedule that takes the rate to a tenth each 30 % of steps."""
    optimiser = SGD(parameters, lr=lr, momentum=0.9, weight_decay=2e-4)
    return optimiser, StepLR(optimiser, max(1, round(0.3 * steps)), 0.1)


def has_labels(task: Task) -> bool:
    """Whether a model can learn from more than the inputs; a TypeError for class numbers that are no tensor.

    Cross entropy, the default loss, needs labels that are a tensor; another loss may take lists and dictionaries.
    """
    if task.batch_loss is not None:
        return True
    y = task.labels_of(task.first_batch())
    if isinstance(y, np.ndarray) or (isinstance(y, (list, tuple)) and y and isinstance(y[0], (int, float))):
        raise TypeError(f"the labels of Task.batches are a {type(y).__name__}: give a tensor, torch.tensor(labels)")
    if isinstance(y, Tensor) or task.loss is F.cross_entropy:
        return isinstance(y, Tensor)
    return y is not None and (task.labels is not None or next(tensors(y), None) is not None)


def validate_labels(task: Task) -> None:
    """Raise a one-line ValueError unless the task's loss takes the labels of the first batch, where it has some."""
    if not has_labels(task):
        return
    batch, device = task.first_batch(), device_for(task.model)
    with torch.no_grad(), unmoved(), evaluating(task.model):
        if task.batch_loss is not None:
            if reason := _misfit(lambda: task.fit(task.model, batch)[0]):
                raise ValueError(f"Task.batch_loss fails on the first batch ({reason}): let it give one number")
            return
        y = task.labels_of(batch)
        output = call(task.model, moved(task.inputs_of(batch), device))
        validate_classes(task, output, y)
        reason = _misfit(lambda: task.loss_of(output, moved(y, device)))
    if reason:
        named = isinstance(y, Tensor)
        takes = f"{str(y.dtype).removeprefix('torch.')} of shape {tuple(y.shape)}" if named else type(y).__name__
        gives = f"outputs of {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise ValueError(
            f"Task.loss does not take the labels, {takes}, for {gives} ({reason}): for cross_entropy give integers "
            "(N,) as int64, or another Task.loss"
        )


def _misfit(compute: Callable[[], Tensor]) -> str:
    """Why a loss is none to learn from, '' for one number."""
    try:
        loss = compute()
        if loss.numel() != 1:
            return "it is not one number"
        return "it is NaN" if loss.isnan() else ""
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AssertionError, AttributeError) as error:
        return first_line(error)


def validate_classes(task: Task, output: Any, y: Any) -> None:
    """Raise a one-line ValueError if cross entropy would meet a label that is not one of the model's classes."""
    output = logits_of(output)
    if task.loss is not F.cross_entropy or not isinstance(output, Tensor) or output.dim() < 2 or y.is_floating_point():
        return
    classes, labels = output.shape[1], y[y != IGNORED]
    low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
    if y.shape != output.shape and not 0 <= low <= high < classes:
        raise ValueError(
            f"the labels of Task.batches reach from {low} to {high}, the model has {classes} classes: give labels in "
            f"0..{classes - 1}, or a model of more classes"
        )


def validate_batches(task: Task) -> None:
    """Raise a one-line ValueError if the loader is known to end in one picture alone, and batch norm cannot take it."""
    if not _leaves_one(task):
        return
    model = deepcopy(task.model).train()
    x = each(task.inputs_of(task.first_batch()), lambda tensor: tensor[:1].to(device_for(model)))
    with torch.no_grad(), unmoved():
        try:
            call(model, x)
        except ValueError as error:
            if "more than 1 value per channel" in str(error):
                raise ValueError(f"Task.batches: {SINGLE}") from error


def _leaves_one(task: Task) -> bool:
    batches = task.batches
    if isinstance(batches, (list, tuple)):
        return any(size(task.inputs_of(batch)) == 1 for batch in batches)
    count = getattr(batches, "batch_size", None)
    sampler: Any = getattr(batches, "sampler", None)
    if not isinstance(count, int) or getattr(batches, "drop_last", True) or not hasattr(sampler, "__len__"):
        return False
    return len(sampler) % count == 1 % count
