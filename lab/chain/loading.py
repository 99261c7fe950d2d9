"""A chain from its folder: each stage is restored on the network that the one before it left."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..core import hub, store
from ..core.batch import shapes_of, zeros_of
from ..core.errors import kind_and_line, shown
from ..core.outcome import Outcome, origin_of
from ..core.program import Program
from ..core.report import Report
from ..core.training import Step
from .functions import Function, restored_stage
from .outcome import OUTCOME, ChainOutcome, folders
from .stages import Chain
from .table import START, ChainReport

PARTS = ("fields", "report", "trace", "found")


def report_of(folder: str | Path) -> Report:
    """The report of an outcome in a folder or on the hub, whatever its network: nothing else of it is built."""
    saved = store.load(hub.fetched(folder), OUTCOME)
    try:
        report = saved["report"]
        return ChainReport.from_dict(report) if "columns" in report else Report.from_dict(report)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder} is damaged ({kind_and_line(error)}): save the outcome again") from error


def restored_chain(saved: dict[str, Any], folder: Path, base: Any, load: Callable[..., Outcome]) -> ChainOutcome:
    """The outcome of a chain from what was stored; `load(folder, base=net)` reads a recipe's stage.

    base: the user's own network that the chain began with, or a dictionary of it, under 'start', and of functions, by
    their names, where these made another structure. ValueError in one line for a folder that is damaged.
    """
    missing = [part for part in PARTS if part not in saved]
    if missing:
        raise ValueError(f"{folder} is damaged (no {', '.join(missing)}): save the outcome again")
    given = dict(base) if isinstance(base, Mapping) else {START: base}
    try:
        names = saved["fields"]["stages"]
        if not names:
            raise ValueError(f"{folder} is damaged (it has no stages): save the outcome again")
        if outside := [name for name in names if Path(name).name != name]:
            raise ValueError(
                f"{folder} is damaged (stage {shown(outside[0])} lies outside of it): save the outcome again"
            )
        outcomes: list[Outcome] = []
        for name in names:
            model = outcomes[-1].model if outcomes else given.get(START)  # type: ignore[attr-defined]
            outcomes.append(_stage(folder / name, model, given, load))
        chain = Chain(*(outcome.recipe for outcome in outcomes))
        if names != folders(chain.stages):
            raise ValueError(f"{folder} is damaged (its stages are {', '.join(names)}): save the outcome again")
        return ChainOutcome(
            recipe=chain,
            report=ChainReport.from_dict(saved["report"]),
            trace=tuple(Step(**step) for step in saved["trace"]),
            outcomes=tuple(outcomes),
            example=shapes_of(zeros_of(saved["found"]["example"])),
            origin=outcomes[0].origin,
            made=dict(saved.get("made", {})),
        )
    except (KeyError, IndexError, AttributeError, TypeError, RuntimeError) as error:
        raise ValueError(f"{folder} is damaged ({kind_and_line(error)}): save the outcome again") from error


def _stage(folder: Path, model: nn.Module | None, given: Mapping[str, Any], load: Callable[..., Outcome]) -> Outcome:
    """The outcome of a stage from its folder, on the network that the one before it left."""
    saved = store.load(folder, OUTCOME)
    if saved.get("recipe") != Function.__name__:
        return load(folder, base=None if isinstance(model, Program) else model)
    name = saved["fields"]["name"]
    return restored_stage(Function(name, given.get(name)), folder, model, origin_of(saved, folder, model, load))
