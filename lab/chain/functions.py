"""A function of the user's own as a stage of a chain, and how a stage's outcome is read from its folder."""

import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import InitVar, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from ..core import cost, origins, store
from ..core.batch import shapes_of
from ..core.outcome import Outcome, base_network, load_weights, restored
from ..core.program import Program
from ..core.report import Attempts, Report, Row, reported
from ..core.running import digest, network
from ..core.task import Task
from ..core.training import seeded


@dataclass(frozen=True)
class Function:
    """A stage that is a function of the user's own: it takes a copy of the network and gives a network.

    name: the function's. function: left out in a chain that was loaded, which therefore cannot run again.
    """

    name: str
    function: InitVar[Callable[[nn.Module], nn.Module] | None] = None
    applied: ClassVar[Any]

    def __post_init__(self, function: Callable[[nn.Module], nn.Module] | None) -> None:
        object.__setattr__(self, "applied", function)  # no field: it is neither compared nor stored

    def __call__(self, model: nn.Module) -> nn.Module:
        """What the function makes of a network, in eval mode; TypeError for what is none."""
        self.validate()
        made = self.applied(model)
        if not isinstance(made, nn.Module):
            raise TypeError(f"{self.name} gave a {type(made).__name__}: let it return the network")
        return made.eval()

    def validate(self) -> None:
        """Raise a one-line ValueError where the function is not there."""
        if self.applied is None:
            raise ValueError(
                f"{self.name!r} is a function of your own, which no folder holds: call "
                f"lab.load(folder, base={{{self.name!r}: {self.name}}})"
            )

    def run(self, task: Task, *, seed: int, device: Any, progress: bool, checkpoint: Any) -> "FunctionOutcome":
        """Apply the function to a copy of the task's network; it has neither progress nor a checkpoint."""
        with seeded(seed):
            before = task.copy_for(device)
            model = self(deepcopy(before))
            replace(task, model=model).check()
            report = reported(self.name, self._report, task, before, model)
        return FunctionOutcome(
            recipe=self, report=report, trace=(), model=model, structure=structure(model),
            example=shapes_of(task.example), base=origins.base_of(task), origin=task.origin,
        )  # fmt: skip

    def _report(self, task: Task, before: nn.Module, model: nn.Module) -> Report:
        attempts = Attempts()
        rows = (
            Row("parameters", *attempts.pair("parameters", cost.parameters, before, model)),
            Row("bytes", *attempts.pair("bytes", cost.bytes_stored, before, model), "B"),
            Row(task.metric, *attempts.pair(task.metric, task.measure, before, model), task.unit, "learned", 2),
        )
        return Report(self.name, rows, tuple(attempts.notes))


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class FunctionOutcome(Outcome):
    """The network that a function gave. structure: its modules and shapes as a digest. example: shapes of one input."""

    model: nn.Module
    structure: str
    example: Any
    base: dict | None

    def found(self) -> dict[str, Any]:
        weights = dict(self.model.state_dict())
        return {"structure": self.structure, "weights": weights, "example": self.example, "base": self.base}

    @classmethod
    def restore(cls, saved: dict[str, Any], recipe: Any, base: nn.Module | None = None) -> "FunctionOutcome":
        """The stored weights in a copy of the base, or in what `saved["function"]` makes of it; a program as it is."""
        stored = saved["found"]
        model = dense = base_network(base, stored["base"])
        if not isinstance(dense, Program):
            model = deepcopy(dense).eval()
            if structure(model) != stored["structure"]:
                model = replace(recipe, function=saved.get("function"))(model)
            if structure(model) != stored["structure"]:
                raise ValueError(f"{recipe.name!r} made another network than it makes now: give it as it was")
            load_weights(model, stored["weights"], dense, f"left by {recipe.name}")
        rest = {name: stored[name] for name in ("structure", "example", "base")}
        return cls(recipe=recipe, **cls.records(saved), model=model, **rest)


def structure(model: nn.Module) -> str:
    """What tells two networks of other modules or shapes apart, whatever their weights."""
    modules, weights = network(model)
    return digest([modules, {name: list(value.shape) for name, value in weights.items()}])


def restored_stage(stage: Any, folder: Path, base: nn.Module | None, origin: Outcome | None = None) -> Outcome:
    """The outcome of a stage from the folder that it was saved in; `base` is the network that it ran on.

    origin: the outcome of that network, where the chain went on from one.
    """
    saved = store.load(folder, "outcome")
    base = None if isinstance(base, Program) else base  # its own program is beside it
    if not isinstance(stage, Function):
        kind = getattr(sys.modules[type(stage).__module__], f"{type(stage).__name__}Outcome")
        return restored(kind, type(stage), saved, folder, base, origin)
    outcome = restored(FunctionOutcome, Function, {**saved, "function": stage.applied}, folder, base, origin)
    return replace(outcome, recipe=stage)
