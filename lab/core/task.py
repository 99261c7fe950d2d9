"""What is compressed and how well it does: a model, its data, and the score that counts."""

import math
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .errors import first_line
from .machine import device_of
from .training import unmoved


@dataclass(frozen=True, kw_only=True, eq=False)  # two tasks are equal when they are the same one
class Task:
    """A model, the batches it learns from and the score that says how well it does.

    `batches` is anything that can be iterated again and again: a DataLoader, a list; a batch is `(x, y)` or `x` alone
    for methods that need no labels. `score(model)` gives one number in `unit`. `example` is one input with its batch
    axis, (1, C, H, W) for pictures; left out, it is the first picture of the first batch. A loader with a
    `generator` of its own goes on where it stood: two runs in one process then see other orders.
    """

    model: nn.Module = field(repr=False)
    batches: Iterable = field(repr=False)
    score: Callable[[nn.Module], float] = field(repr=False)
    example: torch.Tensor = field(default=None, repr=False)  # type: ignore[assignment]  # filled in below
    metric: str = "accuracy"
    unit: str = "%"
    higher_is_better: bool = True
    loss: Callable[..., torch.Tensor] = field(default=F.cross_entropy, repr=False)
    name: str = "own task"

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise TypeError(f"Task.model is a {type(self.model).__name__}: give a torch.nn.Module")
        if isinstance(self.batches, Iterator):
            kind = type(self.batches).__name__
            raise TypeError(f"Task.batches is a {kind}, which ends after one pass: give a DataLoader or a list")
        if not callable(self.score):
            kind = type(self.score).__name__
            raise TypeError(f"Task.score is a {kind}: give a function of the model, e.g. tasks.accuracy")
        if self.example is None:
            object.__setattr__(self, "example", inputs(self.first_batch())[:1].detach().clone())

    def first_batch(self) -> Any:
        """The first batch, or an error that says the loader is empty."""
        if not hasattr(self.batches, "__iter__") and not hasattr(self.batches, "__getitem__"):
            raise TypeError(f"Task.batches is a {type(self.batches).__name__}: give a DataLoader or a list of batches")
        with unmoved():  # a DataLoader draws from torch's generator when it starts
            for batch in self.batches:
                return batch
        raise ValueError("Task.batches is empty: give at least one batch")

    def check(self) -> None:
        """Raise a one-line ValueError unless the model takes the first batch and answers with finite numbers."""
        x = inputs(self.first_batch())
        if x.is_floating_point() and not torch.isfinite(x).all():
            raise ValueError("Task.batches holds NaN or infinite values in its first batch: clean the data first")
        device = next(self.model.parameters(), x).device
        try:
            with torch.no_grad(), evaluating(self.model):
                y = self.model(x.to(device))
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            reason = first_line(error)
            raise ValueError(
                f"Task.batches gives inputs of shape {tuple(x.shape)}, which the model does not take ({reason}): "
                "match the loader and the model's first layer"
            ) from error
        if isinstance(y, torch.Tensor) and not torch.isfinite(y).all():
            raise ValueError("the model answers NaN on finite data: its weights are broken, load them again")

    def copy_for(self, device: str | torch.device | None) -> nn.Module:
        """A copy of the model in eval mode on a device, where the model is for None; ValueError for no such device."""
        model = deepcopy(self.model).eval()
        return model if device is None else model.to(device_of(device))

    def measure(self, model: nn.Module) -> float:
        """The score of `model` in the task's unit, taken in eval mode and without gradients.

        What the score draws at random moves no generator: a run learns alike, however often it is measured.
        """
        with torch.no_grad(), evaluating(model), unmoved():
            score = self.score(model)
        try:
            value = float(score)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"Task.score gave a {type(score).__name__}: give one number") from error
        if math.isnan(value):
            raise ValueError(f"Task.score gave NaN for {self.metric}: check the score function and its data")
        return value


def inputs(batch: Any) -> torch.Tensor:
    """The x of a batch, which is `(x, y)` or x alone."""
    x = batch[0] if isinstance(batch, (tuple, list)) else batch
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"a batch of Task.batches holds a {type(x).__name__}: give tensors, (x, y) or x alone")
    return x


class evaluating:
    """Put a model in eval mode for a `with` block, then give every module its own mode back."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __enter__(self) -> nn.Module:
        self.modes = {module: module.training for module in self.model.modules()}
        return self.model.eval()

    def __exit__(self, *_: object) -> None:
        for module, mode in self.modes.items():
            module.training = mode
