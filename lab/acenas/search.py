"""Which architectures are trained: rounds that half exploit what a scorer says, and the rivals that have no scorer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.spaces.architectures import Space
from . import equations as eq

POPULATION, SAMPLE = 20, 5  # of regularised evolution: architectures alive, and how many meet for one child
PATIENCE = 50  # proposals in a row that are known already or not in the space, before one is drawn at random

Evaluate = Callable[[Sequence[int]], list[float]]


@dataclass(frozen=True)
class Round:
    """What is known after a round: rows trained so far in their order, their labels, and scores (n,) of the space."""

    rows: tuple[int, ...]
    labels: tuple[float, ...]
    scores: Tensor


def half_exploit(
    scorer: Any, pool: Sequence[int], budget: int, rounds: int, evaluate: Evaluate, seed: int
) -> Iterator[Round]:
    """Eq. (15) in rounds: up to the allowance architectures are drawn at random, the scorer learns and scores all; then
    half of a round's share goes to the best of those not trained yet.
    """
    known: dict[int, float] = {}
    for t in range(1, rounds + 1):
        unseen = [row for row in _shuffled(pool) if row not in known]
        drawn = unseen[: max(0, eq.allowance(t, budget, rounds) - len(known))]
        known |= zip(drawn, evaluate(drawn), strict=True)
        scorer.fit(list(known), list(known.values()), seed)
        scores = scorer.scores()
        yield Round(tuple(known), tuple(known.values()), scores)
        if t < rounds:
            promising = best(scores, [row for row in pool if row not in known], budget // rounds // 2)
            known |= zip(promising, evaluate(promising), strict=True)


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
    rows = _rows(space, pool)
    known = random(space, pool, min(POPULATION, budget), evaluate, seed)
    alive = list(known)
    while len(known) < budget:
        few = [alive[i] for i in torch.randint(len(alive), (SAMPLE,)).tolist()]
        child = _child(space, rows, max(few, key=known.__getitem__), known, pool)
        known[child] = evaluate([child])[0]
        alive = [*alive, child][-POPULATION:]
    return known


def _child(space: Space, rows: dict, parent: int, known: dict[int, float], pool: Sequence[int]) -> int:
    """A neighbour of the parent that has not been trained; any other architecture where none is found."""
    kinds = [sorted(set(values)) for values in zip(*space.choices, strict=True)]
    for _ in range(PATIENCE):
        place = int(torch.randint(len(kinds), ()))
        choice = list(space.choices[parent])
        choice[place] = kinds[place][int(torch.randint(len(kinds[place]), ()))]
        row = rows.get(tuple(choice))
        if row is not None and row not in known:
            return row
    return next(row for row in _shuffled(pool) if row not in known)


def tpe(space: Space, pool: Sequence[int], budget: int, evaluate: Evaluate, seed: int) -> dict[int, float]:
    """Optuna's tree-structured Parzen estimator on the choices; what it asks for again costs nothing."""
    try:
        import optuna
    except ModuleNotFoundError:
        raise ModuleNotFoundError("scorer='tpe' needs Optuna: pip install 'lab[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rows = _rows(space, pool)
    kinds = [sorted(set(values)) for values in zip(*space.choices, strict=True)]
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    known: dict[int, float] = {}
    wasted = 0
    while len(known) < budget:
        trial = study.ask()
        row = rows.get(tuple(trial.suggest_categorical(str(i), names) for i, names in enumerate(kinds)))
        if row is None or row in known:
            wasted += 1
            if wasted < PATIENCE:
                told = known[row] if row is not None else None
                study.tell(trial, told, None if told is not None else optuna.trial.TrialState.PRUNED)
                continue
            row = next(row for row in _shuffled(pool) if row not in known)
        wasted = 0
        known[row] = evaluate([row])[0]
        study.tell(trial, known[row])
    return known


RIVALS = {"random": random, "evolution": evolution, "tpe": tpe}


def found(n: int, known: dict[int, float]) -> Round:
    """A rival's result as a round: it scores what it has trained, and nothing else."""
    scores = torch.full((n,), min(known.values()) - 1, dtype=torch.float64)
    scores[list(known)] = torch.tensor(list(known.values()), dtype=torch.float64)
    return Round(tuple(known), tuple(known.values()), scores)


def _rows(space: Space, pool: Sequence[int]) -> dict[tuple[str, ...], int]:
    if not space.choices:
        raise ValueError("Space: this search changes one decision at a time: give choices, a tuple an architecture")
    return {tuple(space.choices[row]): row for row in pool}


def _shuffled(pool: Sequence[int]) -> list[int]:
    return [pool[i] for i in torch.randperm(len(pool)).tolist()]
