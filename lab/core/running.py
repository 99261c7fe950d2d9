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

from . import imports, origins
from .batch import device_for, moved, tensors
from .errors import first_line
from .machine import machine
from .models import validate_model
from .stopping import held
from .task import Task
from .training import Stage, generators, seeded


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run begins with, for all of its stages.

    task, run_id: what it runs on, and its name on a checkpoint. model: a copy of the task's, in eval mode on the run's
    device. example: one input with its batch axis, there too. before: the model's score. checkpoint, progress, seed:
    as given to `run`. base: what builds the task's model again, None for a class of the user's own.
    """

    task: Task
    run_id: str
    model: nn.Module
    example: Any
    before: float
    checkpoint: str | Path | None
    progress: bool
    seed: int
    base: dict[str, Any] | None

    @property
    def device(self) -> torch.device:
        """Where the run computes."""
        return next(tensors(self.example)).device

    def stage(self, name: str, **state: Any) -> Stage:
        """A stage of this run, found again after a kill; `state` is all that it changes."""
        return Stage(self.checkpoint, name, self.run_id, **state)

    def provenance(self) -> dict[str, Any]:
        """What an outcome keeps of where it comes from: the outcome of the task's network, and how it was `made`."""
        task, network = self.task, origins.name_of(self.task.model, self.base)
        base = origins.hub_id(task.model) or getattr(task.origin, "made", {}).get("base_model")
        facts = {
            "base_model": base,
            "metric": task.metric,
            "unit": task.unit,
            "higher_is_better": task.higher_is_better,
        }
        return {"origin": task.origin, "made": made(self.seed, task.name, network=network, **facts)}


def made(seed: int, task: str, **facts: Any) -> dict[str, Any]:
    """How an outcome came about, for its model card: seed, task, machine, and further plain facts."""
    return {"seed": seed, "task": task, **facts, "machine": machine()}


@contextmanager
def running(
    recipe: Any, task: Any, seed: int, device: Any, checkpoint: str | Path | None, progress: bool,
    suits: Callable[[nn.Module, Any], object] = lambda model, example: None, several: bool = False,
    is_read: bool = False,
) -> Iterator[Run]:  # fmt: skip
    """Seed a run of the recipe on the task and hold its checkpoint folder, once task and device are known to fit.

    ValueError or TypeError in one line names what does not; `suits(model, example)` raises it for a network that the
    method cannot treat, and `several` lets models of several inputs pass. Where the model `is_read` alone, and never
    written to, no second set of its weights is held. The score is taken before anything is
    learned: one that fails costs nothing.
    """
    validate_kind(recipe, task, Task, "lab.Task(model=net, batches=loader, score=score)")
    imports.complete()
    validate_model(task.model)
    model = task.copy_for(device, is_read)
    with seeded(seed), held(checkpoint):
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
            progress=progress, seed=seed, base=origins.base_of(task),
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
