"""A pruning-rate slider for any network: what each rate keeps, what it costs, and what it does to the score."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..core import cost
from ..core.graph import surgery
from ..core.graph.channels import Channels
from ..core.graph.groups import KINDS, Group, groups
from ..core.graph.tracing import trace
from ..core.progress import tqdm
from ..core.task import Task, checked_task
from . import svg
from .explorer import Control, Explorer, Frame

RATES = tuple(round(0.05 * k, 2) for k in range(20))


@dataclass(frozen=True)
class Pruned:
    """What one rate leaves: channels, heads, hidden units kept and had by layer, blocks and branches dropped, costs."""

    layers: tuple[tuple[str, int, int], ...]
    dropped: tuple[str, ...]
    parameters: int
    macs: int


@dataclass
class RateCurve:
    """The states of a network over the pruning rate, and the scores measured so far."""

    task: Task
    scores: surgery.Scores
    groups: dict[str, Group] = field(default_factory=dict)  # by the layer that a plan knows them by
    states: dict[float, Pruned] = field(default_factory=dict)
    measured: dict[float, float] = field(default_factory=dict)

    def prune(self, rate: float) -> nn.Module:
        """A really smaller copy of the task's network."""
        return surgery.remove(self.task.model, surgery.plan_at(self.scores, rate), self.task.example)

    def note(self, rate: float) -> nn.Module:
        """Count what a rate leaves, and return it."""
        plan = surgery.plan_at(self.scores, rate)
        model = surgery.remove(self.task.model, plan, self.task.example)
        self.states[rate] = Pruned(
            layers=tuple(self._layers(dict(model.named_modules()))),
            dropped=(*plan.blocks, *plan.branches),
            parameters=cost.parameters(model),
            macs=cost.macs(model, self.task.example),
        )
        return model

    def _layers(self, modules: dict[str, nn.Module]) -> Iterator[tuple[str, int, int]]:
        """What the modules that are left write, or read: heads are counted whole."""
        for (unit, (name, *_)), score in self.scores.items():
            if unit in ("channel", "input"):
                size = self.groups[name].entries if self.kind(name) == "heads" else 1
                yield name, _width(modules.get(name), unit) // size, len(score) // size

    def kind(self, name: str) -> str:
        """What the channels that a layer writes are called."""
        return self.groups[name].kind if name in self.groups else "channels"

    def measure(self, rate: float, model: nn.Module) -> None:
        """Measure the score of what a rate leaves as it is, not fine-tuned."""
        self.measured[rate] = self.task.measure(model)


def curve(
    task: Task,
    outcome: Any = None,
    *,
    rates: Sequence[float] = RATES,
    progress: bool = True,
) -> RateCurve:
    """Count the network and measure its score at every rate; an outcome's masks rank in place of magnitude."""
    if outcome is not None and not hasattr(outcome, "scores"):
        raise TypeError(f"a {type(outcome).__name__} ranks no channels: give what GAL left, or no outcome")
    scores = surgery.magnitude(task.model, task.example) if outcome is None else outcome.scores()
    listed = groups(Channels(trace(task.model, task.example)))
    by_rate = RateCurve(task, scores, {group.name: group for group in listed})
    for rate in tqdm(rates, desc="pruning", disable=not progress, leave=False):
        by_rate.measure(rate, by_rate.note(rate))
    return by_rate


def _width(module: Any, unit: str) -> int:
    """How many channels a layer writes, or reads where its inputs are ranked; 0 for one that is gone."""
    if module is None:
        return 0
    end = "in" if unit == "input" else "out"
    return int(getattr(module, f"{end}_channels", 0) or getattr(module, f"{end}_features"))


def pruning_rate(
    task: Task,
    outcome: Any = None,
    *,
    rates: Sequence[float] = RATES,
    start: float = 0.5,
    progress: bool = True,
) -> Explorer:
    """An explorer with a slider `rate`: what each layer keeps, parameters, multiply-adds and the score of a network.

    Channels, heads and hidden units go by weight magnitude, or in the order in which an outcome's masks closed. The
    score is measured at each of `rates`, without fine-tuning: where one measurement takes long, give fewer. The button
    leaves the smaller network of the present rate in the explorer's `model`.
    """
    checked_task(task)
    rates = tuple(sorted({*rates}))
    by_rate = curve(task, outcome, rates=rates, progress=progress)
    points = svg.Series(task.metric, sorted(by_rate.measured.items()))
    unit = f"{task.metric} ({task.unit})"

    def draw(rate: float) -> Frame:
        state = by_rate.states[rate]
        by_kind = {kind: [row for row in state.layers if by_rate.kind(row[0]) == kind] for kind in KINDS}
        images = "".join(svg.bars(rows, title=f"{kind} kept") for kind, rows in by_kind.items() if rows)
        images += svg.lines([points], "pruning rate", unit, at=rate)
        facts: dict[str, str | int | float] = {
            "parameters": state.parameters,
            "macs": state.macs,
            task.metric: f"{by_rate.measured[rate]:.1f} {task.unit}, not fine-tuned",
        }
        return Frame(images, facts if not state.dropped else {**facts, "dropped": len(state.dropped)})

    def prune(explorer: Explorer) -> str:
        explorer.model = by_rate.prune(explorer.rate)
        return f"the explorer's model is a network of {cost.parameters(explorer.model):,} parameters"

    ranking = "magnitude" if outcome is None else type(outcome.recipe).__name__
    return Explorer(
        draw,
        {"rate": Control(rates, label="pruning rate", start=start if start in rates else rates[len(rates) // 2])},
        title=f"{task.name}, ranked by {ranking}",
        actions={"Prune for real": prune},
    )
