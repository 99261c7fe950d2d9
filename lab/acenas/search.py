"""Which architectures are trained: rounds that half exploit a scorer's predictions, and baselines without a scorer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.spaces import tpe as estimator
from ..core.spaces.architectures import Space
from ..core.spaces.tpe import decision_values
from . import equations as eq

POPULATION, SAMPLE = 20, 5  # of regularised evolution: architectures alive, and how many meet for one child
PATIENCE = 50  # children in a row that were trained already or are not in the space, until one is drawn at random

Evaluate = Callable[[Sequence[int]], list[float]]
Choose = Callable[[Tensor, Sequence[int], int], list[int]]  # scores (n,), rows, how many of them


@dataclass(frozen=True)
class Round:
    """What is known after a round: rows trained so far in their order, their labels, and scores (n,) of the space.

    collapsed: whether the scorer told nothing apart, so that weak labels or a draw stand in for its scores.
    """

    rows: tuple[int, ...]
    labels: tuple[float, ...]
    scores: Tensor
    collapsed: bool = False


def half_exploit(
    scorer: Any,
    pool: Sequence[int],
    budget: int,
    rounds: int,
    evaluate: Evaluate,
    seed: int,
    choose: Choose | None = None,
) -> Iterator[Round]:
    """Card (15): up to the allowance architectures are drawn at random, the scorer learns and scores all; then
    half of a round's share goes to the best of those not trained yet, or to what `choose` takes of them.
    """
    choose = best if choose is None else choose
    labels: dict[int, float] = {}  # of the rows trained so far
    for t in range(1, rounds + 1):
        untrained = [row for row in _shuffled(pool) if row not in labels]
        explored = untrained[: max(0, eq.allowance(t, budget, rounds) - len(labels))]
        labels |= zip(explored, evaluate(explored), strict=True)
        scorer.fit(list(labels), list(labels.values()), seed)
        scores = scorer.scores()  # (n,)
        yield Round(tuple(labels), tuple(labels.values()), scores, scorer.collapsed)
        if t < rounds:
            promising = choose(scores, [row for row in pool if row not in labels], budget // rounds // 2)
            labels |= zip(promising, evaluate(promising), strict=True)


def best(scores: Tensor, rows: Sequence[int], k: int) -> list[int]:
    """The k rows of the highest scores, best first."""
    rows = list(rows)
    order = scores[rows].argsort(descending=True, stable=True)[:k]
    return [rows[i] for i in order.tolist()]


def random(space: Space, pool: Sequence[int], budget: int, evaluate: Evaluate, seed: int) -> dict[int, float]:
    """Architectures drawn at random, and their labels."""
    del space, seed  # torch's own generator draws, which the recipe has seeded
    rows = _shuffled(pool)[:budget]
    return dict(zip(rows, evaluate(rows), strict=True))


def evolution(space: Space, pool: Sequence[int], budget: int, evaluate: Evaluate, seed: int) -> dict[int, float]:
    """Regularised evolution (Real et al., 2019): the best of a few has a child, one choice changed; the oldest dies."""
    rows, values = rows_by_choice(space, pool), decision_values(space.choices)
    labels = random(space, pool, min(POPULATION, budget), evaluate, seed)
    alive = list(labels)
    while len(labels) < budget:
        few = [alive[i] for i in torch.randint(len(alive), (SAMPLE,)).tolist()]
        near = _child(space.choices[max(few, key=labels.__getitem__)], rows, values, labels)
        child = draw_untrained(pool, labels) if near is None else near
        labels[child] = evaluate([child])[0]
        alive = [*alive, child][-POPULATION:]
    return labels


def _child(
    parent: Sequence[Any], rows: Mapping[Any, int], values: Sequence[Sequence[Any]], labels: Mapping[int, float]
) -> int | None:
    """A neighbour of the parent's choice that has not been trained, or None where none is met."""
    for _ in range(PATIENCE):
        decision = int(torch.randint(len(values), ()))
        choice = list(parent)
        choice[decision] = values[decision][int(torch.randint(len(values[decision]), ()))]
        row = rows.get(tuple(choice))
        if row is not None and row not in labels:
            return row
    return None


def local_search(space: Space, pool: Sequence[int], budget: int, evaluate: Evaluate, seed: int) -> dict[int, float]:
    """Local search (White et al., 2021, arXiv 2005.02960): all neighbours of the best so far are trained, those with
    one choice changed, in an order by chance; where none is better it begins again elsewhere.
    """
    del seed  # torch's own generator draws, which the recipe has seeded
    rows, labels = rows_by_choice(space, pool), dict[int, float]()
    values = decision_values(space.choices)
    here: int | None
    while len(labels) < budget:
        here = draw_untrained(pool, labels)
        labels[here] = evaluate([here])[0]
        while here is not None and len(labels) < budget:
            near = _neighbours(space, rows, here, values)
            fresh = [row for row in near if row not in labels][: budget - len(labels)]
            labels |= zip(fresh, evaluate(fresh), strict=True)
            better = max((row for row in near if row in labels), key=labels.__getitem__, default=here)
            here = better if labels[better] > labels[here] else None
    return labels


def _neighbours(space: Space, rows: Mapping[Any, int], row: int, values: Sequence[Sequence[Any]]) -> list[int]:
    """The rows whose choices differ from this one's in one decision, in an order by chance."""
    choice = tuple(space.choices[row])
    near = [
        rows.get((*choice[:i], value, *choice[i + 1 :]))
        for i, kinds in enumerate(values)
        for value in kinds
        if value != choice[i]
    ]
    return _shuffled([neighbour for neighbour in near if neighbour is not None])


def tpe(space: Space, pool: Sequence[int], budget: int, evaluate: Evaluate, seed: int) -> dict[int, float]:
    """Optuna's tree-structured Parzen estimator on the choices; what it asks for again costs nothing."""

    def untrained(labels: Mapping[int, float]) -> int:
        return draw_untrained(pool, labels)

    values = decision_values(space.choices)
    return estimator.search(rows_by_choice(space, pool), values, budget, evaluate, untrained, seed=seed)


BASELINES = {"random": random, "evolution": evolution, "local search": local_search, "tpe": tpe}


def only_round(n: int, labels: Mapping[int, float]) -> Round:
    """A baseline's result as a round: it scores what it has trained, and nothing else."""
    scores = torch.full((n,), min(labels.values()) - 1, dtype=torch.float64)
    scores[list(labels)] = torch.tensor(list(labels.values()), dtype=torch.float64)
    return Round(tuple(labels), tuple(labels.values()), scores)


def rows_by_choice(space: Space, pool: Sequence[int]) -> dict[tuple[str, ...], int]:
    """The row of each choice that may be made; ValueError where the space gives no choices."""
    if not space.choices:
        raise ValueError("Space: this search changes one decision at a time: give choices, a tuple an architecture")
    return {tuple(space.choices[row]): row for row in pool}


def draw_untrained(pool: Sequence[int], labels: Mapping[int, float]) -> int:
    """A row at random that has no label yet."""
    return next(row for row in _shuffled(pool) if row not in labels)


def _shuffled(pool: Sequence[int]) -> list[int]:
    return [pool[i] for i in torch.randperm(len(pool)).tolist()]
