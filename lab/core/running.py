"""What every run does before its first step: checks the task and the device, holds its checkpoint, knows it again."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import store
from .errors import first_line
from .machine import device_of
from .task import Task
from .training import generators, seeded


@dataclass(frozen=True)
class Start:
    """What a run begins with: its name on a checkpoint, a copy of the model in eval mode, an example, the score."""

    owner: str
    model: nn.Module
    example: Tensor  # with its batch axis, on the model's device
    before: float


@contextmanager
def running(
    recipe: Any, task: Any, seed: int, device: Any, checkpoint: str | Path | None,
    suits: Callable[[nn.Module, Tensor], object] = lambda model, example: None,
) -> Iterator[Start]:  # fmt: skip
    """Seed a run of the recipe on the task and hold its checkpoint folder, once task and device are known to fit.

    ValueError or TypeError in one line names what does not; `suits(model, example)` raises it for a network that the
    method cannot treat. The score is taken before anything is learned: one that fails costs nothing.
    """
    demand_kind(recipe, task, Task, "lab.Task(model=net, batches=loader, score=score)")
    place = device_of(device)
    with seeded(seed), store.held(checkpoint):
        task.check()
        owner = f"{recipe!r} with seed {seed} on {task.name}"
        if checkpoint is not None:
            owner = f"{owner} ({fingerprint(task)})"
        model = deepcopy(task.model).to(place).eval() if place else deepcopy(task.model).eval()
        example = task.example.to(next(model.parameters(), task.example).device)
        suits(model, example)
        yield Start(owner, model, example, _before(task, model))


def _before(task: Task, model: nn.Module) -> float:
    """The score of the network as it came; ValueError in one line where the score does not take its outputs."""
    try:
        return task.measure(model)
    except (AttributeError, IndexError, KeyError, RuntimeError) as error:
        reason = first_line(error)
        raise ValueError(
            f"Task.score fails on the network as it came ({reason}): match the score and the model"
        ) from error


def demand_kind(recipe: Any, task: Any, kind: type, form: str) -> None:
    """Raise a one-line TypeError unless the task is of the kind that the recipe runs on; `form` is how to make one."""
    if not isinstance(task, kind):
        name, article = type(recipe).__name__, "an" if kind.__name__[0] in "AEIOU" else "a"
        raise TypeError(f"{name} runs on {article} {kind.__name__}, not on a {type(task).__name__}: give {form}")


def fingerprint(task: Task) -> str:
    """What tells a task from another of the same name, alike in every process: its network and its first batch."""
    return f"network {digest(network(task.model))}, data {digest(data(task.batches))}"


def network(model: nn.Module) -> list[Any]:
    """A model's modules with their settings and its weights by name, for a digest."""
    settings = [[name, type(module).__qualname__, module.extra_repr()] for name, module in model.named_modules()]
    plain = re.sub(r"0x[0-9a-fA-F]+", "", repr(settings))  # an address is another one in the next process
    return [plain, {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}]


def data(batches: Iterable) -> Any:
    """The first batch, for a digest; drawn twice, each time from the same state of all generators.

    Where the two differ, the data draw from a source of their own, and only their shapes are taken: such a run must
    find its checkpoint again all the same.
    """
    first, again = (_first(batches) for _ in range(2))
    return first if digest(first) == digest(again) else _shapes(first)


def _first(batches: Iterable) -> Any:
    """The first batch from a fixed state of all generators, which are then given back as they were."""
    own = generators(batches)
    states = [generator.get_state() for generator in own]
    try:
        for generator in own:
            generator.manual_seed(0)
        with seeded(0):
            return next(iter(batches))
    finally:
        for generator, state in zip(own, states, strict=True):
            generator.set_state(state)


def _shapes(tree: Any) -> Any:
    if isinstance(tree, (Tensor, np.ndarray)):
        return [str(tree.dtype), list(tree.shape)]
    if isinstance(tree, Mapping):
        return {str(key): _shapes(value) for key, value in tree.items()}
    return [_shapes(value) for value in tree] if isinstance(tree, (list, tuple)) else type(tree).__name__


def digest(tree: Any) -> str:
    """Twelve hex digits of a tree of tensors, arrays, numbers, strings, lists and dicts; of other things, the type."""
    told = hashlib.sha256()
    _tell(tree, told)
    return told.hexdigest()[:12]


def _tell(tree: Any, told: Any) -> None:
    if isinstance(tree, np.ndarray) and tree.dtype != object:
        told.update(f"{tree.dtype} {tree.shape}".encode())
        told.update(np.ascontiguousarray(tree))
    elif isinstance(tree, Tensor):
        told.update(f"{tree.dtype} {tuple(tree.shape)}".encode())
        if tree.layout == torch.strided and not tree.is_quantized and not tree.is_meta:
            told.update(tree.detach().resolve_conj().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            told.update(f"{key}:".encode())
            _tell(value, told)
    elif isinstance(tree, (list, tuple)):
        told.update(f"{len(tree)}[".encode())
        for value in tree:
            _tell(value, told)
    else:
        known = tree is None or isinstance(tree, (bool, int, float, str))
        told.update((repr(tree) if known else type(tree).__qualname__).encode() + b";")
