"""Recipes one after another: each runs on the network that the one before it left."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core import store
from ..core.batch import device_for, shapes_of
from ..core.errors import first_line
from ..core.machine import device_of
from ..core.outcome import Outcome
from ..core.report import reported
from ..core.running import fingerprint, validate_kind
from ..core.stopping import held
from ..core.task import Task
from ..core.training import generators, rehearsal, seeded
from . import rules
from .functions import Function, restored_stage
from .outcome import OUTCOME, ChainError, ChainOutcome, folders, steps
from .table import staged

STATE = "chain"  # what a checkpoint says of the chain itself


@dataclass(frozen=True, init=False)
class Chain:
    """Recipes, and functions `model -> model`, one after another: each takes the network that the one before left.

    >>> lab.Chain(lab.GAL(), lab.SparseByteNN(block=(4, 4)), lab.DQSS(weight_bits=8, placement="full")).run(task)

    stages: recipes or functions; a chain among them is taken apart. ValueError in one line for recipes that cannot
    follow one another, with the order that works: `lab.chains()` shows all. In integers the engine leaves out blocks of
    4 rows and 4 inputs alone, and computes as integers what `placement='full'` quantises.
    """

    stages: tuple[Any, ...]

    def __init__(self, *stages: Any) -> None:
        flat = [part for stage in stages for part in (stage.stages if isinstance(stage, Chain) else (stage,))]
        if not flat:
            raise ValueError("a chain needs a stage: give recipes in order, such as lab.Chain(lab.GAL(), lab.DQSS())")
        object.__setattr__(self, "stages", tuple(_stage(position, part) for position, part in enumerate(flat, 1)))
        rules.validate(self.stages)

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(_changed, self.stages))})"

    def names(self) -> list[str]:
        """The name of each stage's recipe or function."""
        return [rules.named(stage) for stage in self.stages]

    def run(
        self,
        task: Task | None = None,
        *,
        seed: int = 0,
        device: str | torch.device | None = None,
        progress: bool = True,
        checkpoint: str | Path | None = None,
    ) -> ChainOutcome:
        """Run all stages, each with this seed; the network passed in is not changed.

        Before anything is trained, every recipe up to the first function begins once on the task's own network, as far
        as its first loss: what it refuses then costs nothing. A stage that is done is stored in its folder of the
        checkpoint, and not run again. ChainError, which holds the outcome of the stages before, names the stage that
        fails.
        """
        task = rules.default_task(self.stages) if task is None else task
        validate_kind(self, task, Task, "lab.Task(model=net, batches=loader, score=score)")
        if device is not None:
            device_of(device)
        for stage in self.stages:
            if isinstance(stage, Function):
                stage.validate()
        states = [generator.get_state() for generator in generators(task.batches)]
        with seeded(seed):
            task.check()
        outcomes: list[Outcome] = []
        options = {"seed": seed, "device": device, "progress": progress}
        with held(checkpoint):
            states = _begun(self, task, seed, checkpoint, states)
            parts = [None if checkpoint is None else Path(checkpoint) / name for name in folders(self.stages)]
            if not _is_done(parts[0]):
                _rehearse(self, task, states, options)
            for position, (stage, folder) in enumerate(zip(self.stages, parts, strict=True)):
                with _named(self, task, outcomes, position):
                    _rewind(task, states)
                    outcomes.append(_finished(stage, _following(task, outcomes), {**options, "checkpoint": folder}))
                    if folder is not None and not _is_done(folder):
                        outcomes[-1].save(folder / OUTCOME)
        return _joined(self, task, outcomes)


def _stage(position: int, stage: Any) -> Any:
    """A stage as a chain keeps it; TypeError in one line for what is none."""
    if isinstance(stage, type):
        raise TypeError(f"stage {position} is the class {stage.__name__}: give {stage.__name__}(), with its settings")
    if isinstance(stage, Function) or type(stage).__name__ in (*rules.METHODS, *rules.ALONE):
        return stage
    if not callable(stage) or isinstance(stage, nn.Module):
        raise TypeError(
            f"stage {position} is a {type(stage).__name__}: give a recipe, such as lab.GAL(), or a function of a "
            "network that returns one"
        )
    named = inspect.unwrap(getattr(stage, "func", stage))  # of a functools.partial, its function
    return Function(getattr(named, "__name__", type(named).__name__), stage)


def _changed(stage: Any) -> str:
    """A stage with the fields that are not at their defaults."""
    if isinstance(stage, Function):
        return stage.name
    pairs = [(part.name, getattr(stage, part.name), part.default) for part in fields(stage)]
    shown = [f"{name}={value!r}" for name, value, default in pairs if default is MISSING or value != default]
    return f"{type(stage).__name__}({', '.join(shown)})"


def _begun(
    chain: Chain, task: Task, seed: int, checkpoint: str | Path | None, states: list[torch.Tensor]
) -> list[torch.Tensor]:
    """The states of the loader's own generators as the chain began: these, or those of its checkpoint.

    ValueError in one line for a checkpoint of another chain, seed or task.
    """
    if checkpoint is None:
        return states
    run_id = f"{chain!r} with seed {seed} on {task.name} ({fingerprint(task)})"
    if not store.exists(checkpoint, STATE):
        store.save(checkpoint, STATE, {"owner": run_id, "loader": states})
        return states
    saved = store.load(checkpoint, STATE)
    if saved["owner"] != run_id:
        raise ValueError(
            f"checkpoint={str(checkpoint)!r} belongs to {saved['owner']}, this run is {run_id}: "
            "give another folder, or delete that one"
        )
    return saved["loader"]


def _rewind(task: Task, states: list[torch.Tensor]) -> None:
    """Give a loader's own generators their states back: each stage then sees what it would see alone."""
    for generator, state in zip(generators(task.batches), states, strict=False):
        generator.set_state(state)


def _following(task: Task, outcomes: list[Outcome]) -> Task:
    """The task with the network that the last stage left."""
    return replace(task, model=outcomes[-1].model) if outcomes else task  # type: ignore[attr-defined]


def _is_done(folder: Path | None) -> bool:
    """Whether the outcome of a stage is in its folder of a checkpoint."""
    return folder is not None and store.exists(folder / OUTCOME, OUTCOME)


def _rehearse(chain: Chain, task: Task, states: list[torch.Tensor], options: dict[str, Any]) -> None:
    """Begin each recipe behind the first on the task's own network, up to the first function, which may change it."""
    unscored = replace(task, score=lambda model: 0.0)
    for position, stage in enumerate(chain.stages):
        if isinstance(stage, Function):
            return
        if position:
            _rewind(task, states)
            with _named(chain, task, [], position), rehearsal():
                stage.run(unscored, **{**options, "progress": False})


def _finished(stage: Any, task: Task, options: dict[str, Any]) -> Outcome:
    """The outcome of a stage: of its checkpoint where it has ended before, else of its run."""
    folder = options["checkpoint"]
    if not _is_done(folder):
        return stage.run(task, **options)
    outcome = restored_stage(stage, folder / OUTCOME, task.model, task.origin)
    outcome.model.to(options["device"] or device_for(task.model))  # type: ignore[attr-defined]
    return outcome


@contextmanager
def _named(chain: Chain, task: Task, outcomes: list[Outcome], position: int) -> Iterator[None]:
    """Whatever fails within names the stage, and carries what the stages before it did."""
    try:
        yield
    except Exception as error:
        name, count = chain.names()[position], len(chain.stages)
        nothing = "; nothing was trained" if position else ""
        kept = "; the stages before it are kept in `error.outcome`" if outcomes else nothing
        raise ChainError(
            f"stage {position + 1} of {count}, {name}: {first_line(error)}{kept}",
            _joined(chain, task, outcomes) if outcomes else None,
        ) from error


def _joined(chain: Chain, task: Task, outcomes: list[Outcome]) -> ChainOutcome:
    """One outcome of the stages that are done."""
    done = Chain(*chain.stages[: len(outcomes)])
    report = reported(repr(done), staged, repr(done), done.names(), task, outcomes)
    return ChainOutcome(
        recipe=done,
        report=report,
        trace=steps(tuple(outcomes), folders(done.stages)),
        outcomes=tuple(outcomes),
        example=shapes_of(task.example),
        origin=task.origin,
        made=next((outcome.made for outcome in outcomes if outcome.made), {}),
    )
