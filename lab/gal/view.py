"""GAL seen: the masks closing step by step, the network shrinking with them."""

from itertools import takewhile
from typing import Any

from torch import Tensor

from ..ui import Control, Explorer, Frame, svg, view
from .outcome import GALOutcome
from .structures import KINDS


def numbers(outcome: GALOutcome, snapshot: int) -> dict[str, list[tuple[str, int, int]]]:
    """For each unit, (name, entries open, entries) of its structures at one snapshot of the history."""
    by_unit: dict[str, list[tuple[str, int, int]]] = {}
    for structure, part in zip(outcome.structures, _parts(outcome, snapshot), strict=True):
        by_unit.setdefault(structure.unit, []).append((structure.name, int((part > 0).sum()), structure.entries))
    return {unit: by_unit[unit] for unit in KINDS if unit in by_unit}


def closing(outcome: GALOutcome) -> list[list[float]]:
    """For each structure the share of its entries that is open, over the snapshots."""
    sizes = [s.entries for s in outcome.structures]
    return [(part > 0).float().mean(1).tolist() for part in outcome.history.split(sizes, dim=1)]


def steps(outcome: GALOutcome) -> list[int]:
    """The step of each snapshot: 0 before the first, then evenly on to the last."""
    last = len(outcome.history) - 1
    return [round(k * outcome.recipe.steps / last) for k in range(last + 1)]


@view.register
def explore(outcome: GALOutcome) -> Explorer:
    """The run replayed: a slider over the pruning stage, the open entries by structure, and the losses."""
    shown_at, rows, names = steps(outcome), closing(outcome), [s.name for s in outcome.structures]
    losses, ends = _losses(outcome), (shown_at[0], shown_at[-1])

    def draw(step: int) -> Frame:
        snapshot = shown_at.index(step)
        by_unit = numbers(outcome, snapshot)
        parts = [_blocks(unit, entries) for unit, entries in by_unit.items()]
        parts.append(svg.heat(rows, names, title="share of open entries over the run", at=snapshot, span=ends))
        parts.append(svg.lines(losses, "step", "loss", at=step))
        facts: dict[str, Any] = {f"{unit} entries open": sum(k for _, k, _ in part) for unit, part in by_unit.items()}
        return Frame("".join(parts), facts)

    control = Control(shown_at, label="step of the pruning stage", start=shown_at[-1])
    return Explorer(draw, {"step": control}, title=f"GAL(lam={outcome.recipe.lam:g}): masks closing")


def _blocks(unit: str, parts: list[tuple[str, int, int]]) -> str:
    """The structures of a unit as a row of blocks, their names without what they all share."""
    names = [name for name, _, _ in parts]
    head = _shared_start(names)
    tail = _shared_start([name[len(head) :][::-1] for name in names])[::-1]
    brief = [(name[len(head) : len(name) - len(tail)] or name, kept, total) for name, kept, total in parts]
    return svg.blocks(brief, title=f"{unit} masks open ({head}*{tail})" if len(names) > 1 else f"{unit} masks open")


def _shared_start(names: list[str]) -> str:
    return "".join(
        letters[0] for letters in takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    )


def _losses(outcome: GALOutcome) -> list[svg.Series]:
    """The terms of the pruning stage, each thinned to about 50 points."""
    pruning = [step for step in outcome.trace if step.stage == "prune"]
    thinned = pruning[:: max(1, len(pruning) // 50)]
    return [svg.Series(name, [(step.index, step.terms[name]) for step in thinned]) for name in thinned[0].terms]


def _parts(outcome: GALOutcome, snapshot: int) -> tuple[Tensor, ...]:
    return outcome.history[snapshot].split([s.entries for s in outcome.structures])
