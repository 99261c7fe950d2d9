"""What every run does before its first step: checks the task and the device, holds its checkpoint, knows it again."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import store
from .batch import device_for, moved, tensors
from .errors import first_line
from .models import validate_model
from .task import Task
from .training import Stage, generators, seeded


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run begins with, for all of its stages.

    task, run_id: what it runs on, and its name on a checkpoint. model: a copy of the task's, in eval mode on the run's
    device. example: one input with its batch axis, there too. before: the model's score. checkpoint, progress: as
    given to `run`.
    """

    task: Task
    run_id: str
    model: nn.Module
    example: Any
    before: float
    checkpoint: str | Path | None
    progress: bool

    @property
    def device(self) -> torch.device:
        """Where the run computes."""
        return next(tensors(self.example)).device

    def stage(self, name: str, **state: Any) -> Stage:
        """A stage of this run, found again after a kill; `state` is all that it changes."""
        return Stage(self.checkpoint, name, self.run_id, **state)


@contextmanager
def running(
    recipe: Any, task: Any, seed: int, device: Any, checkpoint: str | Path | None, progress: bool,
    suits: Callable[[nn.Module, Any], object] = lambda model, example: None, several: bool = False,
) -> Iterator[Run]:  # fmt: skip
    """Seed a run of the recipe on the task and hold its checkpoint folder, once task and device are known to fit.

    ValueError or TypeError in one line names what does not; `suits(model, example)` raises it for a network that the
    method cannot treat, and `several` lets models of several inputs pass. The score is taken before anything is
    learned: one that fails costs nothing.
    """
    validate_kind(recipe, task, Task, "lab.Task(model=net, batches=loader, score=score)")
    validate_model(task.model)
    model = task.copy_for(device)
    with seeded(seed), store.held(checkpoint):
        task.check()
        run_id = f"{recipe!r} with seed {seed} on {task.name}"
        if checkpoint is not None:
            run_id = f"{run_id} ({fingerprint(task)})"
        example = moved(task.example, device_for(model, task.example))
        if not several and not isinstance(example, Tensor):
            raise ValueError(
                f"Task.batches gives the model {len(example)} inputs, {type(recipe).__name__} takes networks of one: "
                "name it with Task(inputs=...)"
            )
        suits(model, example)
        before = _before(task, model)
        yield Run(
            task=task, run_id=run_id, model=model, example=example, before=before, checkpoint=checkpoint,
            progress=progress,
        )  # fmt: skip


def _before(task: Task, model: nn.Module) -> float:
    """The score of the network as it came; ValueError in one line where the score does not take its outputs."""
    try:
        return task.measure(model)
    except (AttributeError, IndexError, KeyError, RuntimeError) as error:
        reason = first_line(error)
        raise ValueError(
            f"Task.score fails on the network as it came ({reason}): match the score and the model"
        ) from error


def validate_kind(recipe: Any, task: Any, kind: type, form: str) -> None:
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
    given = generators(batches)
    states = [generator.get_state() for generator in given]
    try:
        for generator in given:
            generator.manual_seed(0)
        with seeded(0):
            return next(iter(batches))
    finally:
        for generator, state in zip(given, states, strict=True):
            generator.set_state(state)


def _shapes(tree: Any) -> Any:
    if isinstance(tree, (Tensor, np.ndarray)):
        return [str(tree.dtype), list(tree.shape)]
    if isinstance(tree, Mapping):
        return {str(key): _shapes(value) for key, value in tree.items()}
    return [_shapes(value) for value in tree] if isinstance(tree, (list, tuple)) else type(tree).__name__


def digest(tree: Any) -> str:
    """Twelve hex digits of a tree of tensors, arrays, numbers, strings, lists and dicts; of other things, the type."""
    hasher = hashlib.sha256()
    _feed(tree, hasher)
    return hasher.hexdigest()[:12]


def _feed(tree: Any, hasher: Any) -> None:
    if isinstance(tree, np.ndarray) and tree.dtype != object:
        hasher.update(f"{tree.dtype} {tree.shape}".encode())
        hasher.update(np.ascontiguousarray(tree))
    elif isinstance(tree, Tensor):
        hasher.update(f"{tree.dtype} {tuple(tree.shape)}".encode())
        if tree.layout == torch.strided and not tree.is_quantized and not tree.is_meta:
            hasher.update(tree.detach().resolve_conj().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            hasher.update(f"{key}:".encode())
            _feed(value, hasher)
    elif isinstance(tree, (list, tuple)):
        hasher.update(f"{len(tree)}[".encode())
        for value in tree:
            _feed(value, hasher)
    else:
        is_plain = tree is None or isinstance(tree, (bool, int, float, str))
        hasher.update((repr(tree) if is_plain else type(tree).__qualname__).encode() + b";")
