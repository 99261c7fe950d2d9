"""What is compressed and how well it does: a model, its data, and the score that counts."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .batch import Example, call, device_for, each, inputs, labels, logits_of, moved, tensors, validated
from .errors import first_line
from .machine import device_of
from .models import (
    checked,
    original,
    same_numbers,
    uncompiled,
    unmasked,
    validate_inputs,
    validate_model,
    validate_weights,
)
from .training import unmoved


@dataclass(frozen=True, kw_only=True, eq=False)  # two tasks are equal when they are the same one
class Task:
    """A model, the batches it learns from and the score that says how well it does.

    `batches` is anything that can be iterated again and again: a DataLoader, a list. A batch is `(x, y)`, `x` alone for
    methods that need no labels, or a dictionary, in which all but 'labels' is the model's input. Where it is none of
    these, `inputs` and `labels` say what of it is which: a key ('pixel_values', 2), or a function of the batch; inputs
    are a tensor, a tuple of them or a dictionary of keywords, labels whatever the loss takes. `loss(output, labels)` is
    learned from, or, where it is given, `batch_loss(model, batch)`. `score(model)` gives one number in `unit`.
    `example` is one input with its batch axis, (1, C, H, W) for pictures; left out, it is the first picture of the
    first batch. A loader with a `generator` of its own goes on where it stood: two runs in one process then see other
    orders.
    """

    model: nn.Module = field(repr=False)
    batches: Iterable = field(repr=False)
    score: Callable[[nn.Module], float] = field(repr=False)
    example: Any = field(default=None, repr=False)  # of the kind of inputs; filled in below
    metric: str = "accuracy"
    unit: str = "%"
    higher_is_better: bool = True
    loss: Callable[..., torch.Tensor] = field(default=F.cross_entropy, repr=False)
    name: str = "own task"
    inputs: str | int | Callable[[Any], Example] | None = field(default=None, repr=False)
    labels: str | int | Callable[[Any], Any] | None = field(default=None, repr=False)
    batch_loss: Callable[[nn.Module, Any], torch.Tensor] | None = field(default=None, repr=False)
    origin: Any = field(default=None, repr=False)  # the outcome whose network the model is, as `outcome.task` gives it

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise TypeError(f"Task.model is a {type(self.model).__name__}: give a torch.nn.Module")
        object.__setattr__(self, "model", unmasked(original(self.model)))
        if getattr(self.origin, "model", None) is not self.model:
            object.__setattr__(self, "origin", None)  # another network was put in its stead
        if isinstance(self.batches, Iterator):
            kind = type(self.batches).__name__
            raise TypeError(f"Task.batches is a {kind}, which ends after one pass: give a DataLoader or a list")
        if not callable(self.score):
            kind = type(self.score).__name__
            raise TypeError(f"Task.score is a {kind}: give a function of the model, e.g. tasks.accuracy")
        if self.batch_loss is not None and self.loss is not F.cross_entropy:
            raise TypeError("Task has a loss and a batch_loss: give the one that is to be learned from")
        if self.example is None:
            x = self.inputs_of(self.first_batch())
            validate_inputs(x)
            object.__setattr__(self, "example", each(x, lambda tensor: tensor[:1].detach().clone()))

    def inputs_of(self, batch: Any) -> Example:
        """What the model takes of a batch: a tensor (N, ...), a tuple of them, or a dictionary of keywords."""
        return inputs(batch) if self.inputs is None else validated(_chosen("inputs", self.inputs, batch))

    def labels_of(self, batch: Any) -> Any:
        """The labels of a batch, whatever the loss takes; None where there are none."""
        return labels(batch) if self.labels is None else _chosen("labels", self.labels, batch)

    def loss_of(self, output: Any, labels: Any) -> torch.Tensor:
        """The loss of an output, a scalar; cross entropy, the default, takes the logits of one that names them."""
        return self.loss(logits_of(output) if self.loss is F.cross_entropy else output, labels)

    def fit(self, model: nn.Module, batch: Any) -> tuple[torch.Tensor, Any]:
        """What a model is trained on for a batch with labels: its loss, a scalar, and its output."""
        batch = moved(batch, device_for(model))
        if self.batch_loss is None:
            output = call(model, self.inputs_of(batch))
            return self.loss_of(output, self.labels_of(batch)), output
        outputs: list[Any] = []
        with model.register_forward_hook(lambda _module, _inputs, output: outputs.append(output)):
            loss = self.batch_loss(model, batch)
        if not outputs:
            raise ValueError("it does not call the model that it is given")
        return loss, outputs[0]

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
        x = self.inputs_of(self.first_batch())
        validate_model(self.model)
        validate_weights(self.model)
        if not all(map(_is_finite, tensors(x))):
            raise ValueError("Task.batches holds NaN or infinite values in its first batch: clean the data first")
        try:
            with torch.no_grad(), evaluating(self.model):
                output = call(self.model, moved(x, device_for(self.model, x)))
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            reason, shapes = first_line(error), ", ".join(str(tuple(tensor.shape)) for tensor in tensors(x))
            raise ValueError(
                f"Task.batches gives inputs of shape {shapes}, which the model does not take ({reason}): "
                "match the loader and the model's first layer"
            ) from error
        if next(tensors(output), None) is None:
            raise ValueError(f"the model returns a {type(output).__name__} that holds no tensor: return one")
        if not all(map(_is_finite, tensors(output))):
            raise ValueError("the model answers NaN on finite data: its weights are broken, load them again")

    def copy_for(self, device: str | torch.device | None, is_read: bool = False) -> nn.Module:
        """A copy of the model in eval mode on a device, where the model is for None; ValueError for no such device.

        A copy that `is_read` alone shares the numbers of its parameters with the model: nothing may write into them.
        """
        model = uncompiled(deepcopy(self.model, same_numbers(self.model) if is_read else None)).eval()
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


def _chosen(name: str, how: Any, batch: Any) -> Any:
    """What a key or a function takes of a batch."""
    if callable(how):
        return how(batch)
    try:
        return batch[how]
    except (KeyError, IndexError, TypeError) as error:
        holds = f"the keys {', '.join(map(repr, batch))}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise ValueError(f"Task.{name}={how!r}: a batch is {holds}: give a key of it, or a function of it") from error


def _is_finite(x: torch.Tensor) -> bool:
    return not x.is_floating_point() or bool(torch.isfinite(x).all())


def checked_task(task: Any) -> Task:
    """The task itself; TypeError in one line for what is none."""
    if not isinstance(task, Task):
        raise TypeError(f"task is a {type(task).__name__}: give lab.Task(model=net, batches=loader, score=score)")
    return task


class evaluating:
    """Put a model in eval mode for a `with` block, then give every module its own mode back."""

    def __init__(self, model: nn.Module) -> None:
        self.model = checked(model)

    def __enter__(self) -> nn.Module:
        self.modes = {module: module.training for module in self.model.modules()}
        return self.model.eval()

    def __exit__(self, *_: object) -> None:
        for module, mode in self.modes.items():
            module.training = mode
