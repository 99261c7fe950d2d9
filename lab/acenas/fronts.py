"""Two objectives at once: which architectures none beats in both, how much of the plane they cover, and NSGA-II."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.distribution import install
from ..core.spaces.architectures import Space
from ..core.spaces.tpe import PATIENCE, decision_values, proposed
from . import equations as eq
from .metrics import LOW
from .search import POPULATION, Evaluate, draw_untrained, rows_by_choice

CHANCE_DRAWS = 100  # of as many architectures at random, whose mean hypervolume is what chance finds


@dataclass(frozen=True)
class CostObjective:
    """The cost that counts beside the label: its name, (n,) of all architectures, and the plane it is judged in.

    worst_label and worst_cost are the corner from which areas are counted, area (label x cost) what 100 % are: what the
    front of the whole table covers, or without a table the corner's box up to the best label that was trained.
    """

    name: str
    costs: Tensor
    worst_label: float
    worst_cost: float
    area: float

    @classmethod
    def of(cls, space: Space, pool: Sequence[int], name: str, labels: Sequence[float]) -> "CostObjective":
        """By the table's truth where there is one, else by the labels of what was trained."""
        costs = space.costs[name]
        y = torch.tensor(labels, dtype=torch.float64) if space.truth is None else space.truth[pool]
        low, dearest = float(y.quantile(LOW)), float(costs[pool].max())
        box = (float(y.max()) - low) * (dearest - float(costs[pool].min()))
        area = box if space.truth is None else eq.hypervolume(y, costs[pool], low, dearest)
        return cls(name, costs, low, dearest, area)

    def share(self, rows: Sequence[int], labels: Sequence[float], truth: Tensor | None) -> float:
        """What the front of these rows covers, in percent; by truth (n,) where it is known: labels only choose."""
        y, c = torch.tensor(labels, dtype=torch.float64), self.costs[list(rows)]
        front = (eq.layers(y, c) == 0).nonzero()[:, 0]
        chosen = [rows[i] for i in front.tolist()]
        judged = y[front] if truth is None else truth[chosen]
        area = eq.hypervolume(judged, self.costs[chosen], self.worst_label, self.worst_cost)
        return 100 * area / self.area if self.area > 0 else 100.0

    def by_chance(self, pool: Sequence[int], count: int, truth: Tensor) -> float:
        """What the fronts of so many random architectures cover on average, from one fixed generator."""
        random = torch.Generator().manual_seed(0)
        draws = [torch.randperm(len(pool), generator=random)[:count].tolist() for _ in range(CHANCE_DRAWS)]
        rows = [[pool[i] for i in some] for some in draws]
        return sum(self.share(some, truth[some].tolist(), truth) for some in rows) / len(rows)


def best_spread(costs: Tensor, scores: Tensor, rows: Sequence[int], k: int) -> list[int]:
    """The k rows in the first layers by score and cost; of a layer that has more, those that lie farthest apart."""
    at = list(rows)
    y, c = _places(scores[at]), _places(costs[at])  # places in the order: scores have no unit
    layer, apart = eq.layers(y, c), torch.zeros(len(at), dtype=torch.float64)
    for number in range(int(layer.max()) + 1):
        members = (layer == number).nonzero()[:, 0]
        apart[members] = eq.crowding(y[members], c[members])
        if int((layer <= number).sum()) >= k:
            break
    order = sorted(range(len(at)), key=lambda i: (int(layer[i]), -float(apart[i])))
    return [at[i] for i in order[:k]]


def _places(values: Tensor) -> Tensor:
    """How many are smaller; equal ones have one place."""
    return torch.searchsorted(values.sort().values, values).double()


def nsga2(
    space: Space, pool: Sequence[int], budget: int, evaluate: Evaluate, seed: int, *, costs: Tensor
) -> dict[int, float]:
    """Optuna's NSGA-II (Deb et al., 2002) on the choices, a generation at a time: its members are trained together.

    What it asks for again, or what is no row, costs nothing; after PATIENCE of these a row is drawn at random.
    ModuleNotFoundError without Optuna.
    """
    try:
        import optuna
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"scorer='nsga2' needs Optuna: {install('search')}") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rows, values = rows_by_choice(space, pool), decision_values(space.choices)
    sampler = optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=seed)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    labels: dict[int, float] = {}
    wasted = 0
    while len(labels) < budget:
        trials = [study.ask() for _ in range(POPULATION)]
        asked = [rows.get(tuple(proposed(t, str(i), kinds) for i, kinds in enumerate(values))) for t in trials]
        fresh = list(dict.fromkeys(row for row in asked if row is not None and row not in labels))
        wasted = 0 if fresh else wasted + len(trials)
        if wasted >= PATIENCE:
            fresh, wasted = [draw_untrained(pool, labels)], 0
        fresh = fresh[: budget - len(labels)]
        labels |= zip(fresh, evaluate(fresh), strict=True)
        for trial, row in zip(trials, asked, strict=True):
            if row in labels:
                study.tell(trial, (labels[row], float(costs[row])))
            else:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    return labels
