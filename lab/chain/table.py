"""The report of a chain: its columns are the start and every stage, counted and timed in one way for all."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from ..core import cost, kernels
from ..core.batch import Example
from ..core.distribution import needed
from ..core.onnx.outcome import IntegerOutcome
from ..core.outcome import Outcome
from ..core.report import SECONDS, Attempts, Kind, Report, Row
from ..core.task import Task
from ..core.zeros import pruned
from ..sparsebytenn import engine

START = "start"
Values = tuple[float | None, ...]


@dataclass(frozen=True)
class ChainRow(Row):
    """One quantity at the start and after each stage; None where a stage cannot know it."""

    values: Values = ()

    @classmethod
    def of(
        cls, name: str, values: Sequence[float | None], unit: str = "", kind: Kind = "exact", digits: int = 1
    ) -> "ChainRow":
        """The row of these values: the first is before, the last after."""
        return cls(name, values[0], values[-1], unit, kind, digits, tuple(values))


@dataclass(frozen=True, repr=False, eq=False)
class ChainReport(Report):
    """A table over all stages: `report["macs"].values`, `to_frame()`; `before` and `after` are its ends."""

    columns: tuple[str, ...] = ()

    def _repeatable(self) -> tuple:
        return (*super()._repeatable(), self.columns)

    def lines(self) -> list[tuple[str, ...]]:
        """The cells as they are shown, the head first: a name, a number of each column, a unit."""
        rows = [(row.name, *map(row.shown, _values(row)), row.unit) for row in self.rows]
        return [("", *self.columns, "unit"), *rows]

    def to_frame(self) -> Any:
        """A pandas DataFrame in full precision: a row for each quantity, a column for the start and each stage."""
        with needed():
            import pandas

        cells = [(row.name, *_values(row), row.unit, row.kind) for row in self.rows]
        return pandas.DataFrame(cells, columns=["name", *self.columns, "unit", "kind"]).set_index("name")

    def to_dict(self) -> dict:
        """The report as plain JSON values."""
        rows = [{**asdict(row), "values": list(_values(row))} for row in self.rows]
        return {"title": self.title, "columns": list(self.columns), "rows": rows, "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, values: dict) -> "ChainReport":
        """The report that `to_dict` wrote."""
        rows = tuple(ChainRow(**{**row, "values": tuple(row["values"])}) for row in values["rows"])
        return cls(values["title"], rows, tuple(values["notes"]), tuple(values["columns"]))


def _values(row: Row) -> Values:
    return row.values if isinstance(row, ChainRow) else (row.before, row.after)


def columns(names: Sequence[str]) -> tuple[str, ...]:
    """The columns of stages of these names."""
    return START, *(f"{i} {name}" for i, name in enumerate(names, 1))


def staged(title: str, names: Sequence[str], task: Task, outcomes: Sequence[Outcome]) -> ChainReport:
    """The report of stages of these names that ran one after another, from the task's own network on."""
    attempts, example = Attempts(), task.example
    models = [task.model, *(outcome.model for outcome in outcomes)]  # type: ignore[attr-defined]
    counted = _unrounded(models, outcomes)
    latencies, way = _latencies(attempts, models, outcomes, example)
    rows = (
        ChainRow.of("parameters", [attempts("parameters", parameters, model) for model in counted]),
        ChainRow.of("macs", _macs(attempts, counted, outcomes, example)),
        ChainRow.of("bytes", [attempts("bytes", cost.bytes_stored, model) for model in models], "B"),
        ChainRow.of("latency", latencies, "ms", "timed", 2),
        _score(task, outcomes),
    )
    notes = [f"parameters, macs: without weights that were pruned; {way}", *dict.fromkeys(attempts.notes)]
    for i, (name, outcome) in enumerate(zip(names, outcomes, strict=True), 1):
        notes += [f"{i} {name}: {note}" for note in outcome.report.notes]
    return ChainReport(title, rows, tuple(notes), columns(names))


def parameters(model: nn.Module) -> int:
    """The parameters of a network that are not pruned: shared ones counted once."""
    return cost.parameters(model) - sum(zeros(model).values())


def macs(model: nn.Module, example: Example) -> int:
    """The multiply-adds of a network for an example, without those of pruned weights; errors as of `cost.macs`."""
    return cost.macs_without(model, example, zeros(model))


def zeros(model: nn.Module) -> dict[str, int]:
    """How many weights of each tensor are pruned, as `core.zeros.pruned` says, by the parameter's name."""
    masks = {name: pruned(parameter) for name, parameter in model.named_parameters()}
    return {name: int(gone.sum()) for name, gone in masks.items() if gone is not None}


def is_quantised(outcome: Outcome) -> bool:
    """Whether a stage left codes: its rounding makes zeros that nobody pruned."""
    return isinstance(outcome, IntegerOutcome)


def _unrounded(models: Sequence[nn.Module], outcomes: Sequence[Outcome]) -> list[nn.Module]:
    """The networks in which weights are counted: for a quantised one, which has as many, the one that was rounded."""
    counted = [models[0]]
    for model, outcome in zip(models[1:], outcomes, strict=True):
        counted.append(counted[-1] if is_quantised(outcome) else model)
    return counted


def _macs(
    attempts: Attempts, counted: Sequence[nn.Module], outcomes: Sequence[Outcome], example: Example
) -> list[float | None]:
    """The multiply-adds after each stage; where they differ from input to input, the mean that the stage measured."""
    values: list[float | None] = [attempts("macs", macs, model, example) for model in counted]
    for i, outcome in enumerate(outcomes, 1):
        if "macs" in outcome.report and outcome.report["macs"].kind == "learned":
            values[i] = outcome.report["macs"].after
    return values


def _after(outcomes: Sequence[Outcome], name: str) -> list[float | None]:
    """What the stages' own reports say of a row."""
    return [outcome.report[name].after if name in outcome.report else None for outcome in outcomes]


def _score(task: Task, outcomes: Sequence[Outcome]) -> ChainRow:
    """The score of each stage, as it measured it."""
    name, unit = task.metric, task.unit
    rows = [outcome.report[name] for outcome in outcomes if name in outcome.report]
    before = outcomes[0].report[name].before if name in outcomes[0].report else None
    digits = max((row.digits for row in rows), default=1)
    return ChainRow.of(name, [before, *_after(outcomes, name)], unit, "learned", digits)


def _latencies(
    attempts: Attempts, models: Sequence[nn.Module], outcomes: Sequence[Outcome], example: Example
) -> tuple[list[float | None], str]:
    """ms of one input in each network, taken in turns, and how: in the engine, or in torch where it lacks the start."""
    is_compiled = attempts("latency", kernels.backend) == "c"
    engines = [attempts("latency", _compiled, model, example) for model in models if is_compiled]
    ready = [made for made in engines if made is not None]
    if engines and engines[0] is not None:
        times = iter(attempts("latency", engine.race, *ready) or ())
        raced = [None if made is None else next(times, None) for made in engines]
        return raced, "latency: of the sparse engine, one thread"
    floats = [0, *(i for i, outcome in enumerate(outcomes, 1) if not is_quantised(outcome))]
    timed = attempts("latency", _timed, {str(i): models[i] for i in floats}, example) or {}
    way = "latency: of torch, one thread, which only simulates integers"
    return [timed.get(str(i)) for i in range(len(models))], way


def _compiled(model: nn.Module, example: Example) -> Any:
    return engine.compile(model, example, strict=True, measure=False)


def _timed(models: dict[str, nn.Module], example: Example) -> dict[str, float]:
    return {name: taken.median for name, taken in cost.latencies(models, example, seconds=SECONDS).items()}
