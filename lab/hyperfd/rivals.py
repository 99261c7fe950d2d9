"""Who else recommends: rivals that see the same records and choose from the same configurations."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .client import drawn
from .learning import Record

RIVALS = ("random", "default", "best average", "nearest", "tpe")
PATIENCE = 50  # proposals in a row that cannot be tried, before one is drawn at random


def random(pool: Sequence[int], k: int) -> list[int]:
    """Configurations drawn at random."""
    return drawn(pool, (), k)


def default(pool: Sequence[int], number: int) -> list[int]:
    """The one of who tunes nothing; where the table does not know it, the first that it knows."""
    return [number if number in set(pool) else pool[0]]


def best_average(past: Sequence[Record], pool: Sequence[int], n: int, k: int) -> list[int]:
    """The k of the best average so far: results z-scored within each task, means drawn towards 0 by one unseen task."""
    total, count = torch.zeros(n), torch.ones(n)
    for one in past:
        y = torch.tensor(one.results)
        rows = list(one.rows)
        total[rows] += (y - y.mean()) / (y.std(correction=0) + 1e-9)
        count[rows] += 1
    order = drawn(pool, (), len(pool))  # ties fall by chance
    return sorted(order, key=lambda row: -float(total[row] / count[row]))[:k]


def nearest(past: Sequence[Record], looks: Sequence[Tensor], here: Tensor, pool: Sequence[int], k: int) -> list[int]:
    """The best of the earlier task of the nearest hand-made numbers, then of the next; by chance where none is."""
    found: list[int] = []
    if past:
        every = torch.stack([*looks, here])
        scaled = (every - every.mean(0)) / (every.std(0, correction=0) + 1e-6)
        for number in (scaled[:-1] - scaled[-1]).norm(dim=1).argsort().tolist():
            one = past[number]
            ranked = sorted(zip(one.results, one.rows, strict=True), key=lambda pair: -pair[0])  # equal ones as tried
            found += [row for _, row in ranked[:k] if row in set(pool) and row not in found]
    return [*found, *drawn(pool, found, k)][:k]


def tpe(
    choices: Sequence[tuple], pool: Sequence[int], k: int, evaluate: Callable[[Sequence[int]], list[float]], seed: int
) -> list[int]:
    """Optuna's tree-structured Parzen estimator from scratch, k trials; what it asks for again costs nothing."""
    try:
        import optuna
    except ModuleNotFoundError:
        raise ModuleNotFoundError("by='tpe' needs Optuna: pip install 'lab[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rows = {tuple(choices[row]): row for row in pool}
    kinds = [_kinds(values) for values in zip(*rows, strict=True)]
    startup = max(1, min(10, k // 2))  # its own default of ten would make five trials random
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    known: dict[int, float] = {}
    wasted = 0
    while len(known) < min(k, len(pool)):
        trial = study.ask()
        row = rows.get(tuple(_proposed(trial, str(i), values) for i, values in enumerate(kinds)))
        if row is None or row in known:
            wasted += 1
            if wasted < PATIENCE:
                told = known[row] if row is not None else None
                study.tell(trial, told, None if told is not None else optuna.trial.TrialState.PRUNED)
                continue
            row = drawn(pool, list(known), 1)[0]
        wasted = 0
        known[row] = evaluate([row])[0]
        study.tell(trial, known[row])
    return list(known)


def _kinds(values: Sequence[Any]) -> list[Any]:
    """What a decision may be: numbers by size, all else by name."""
    kinds = set(values)
    return sorted(kinds, key=None if _ordered(kinds) else str)


def _ordered(kinds: Iterable[Any]) -> bool:
    return all(isinstance(kind, (int, float)) and not isinstance(kind, bool) for kind in kinds)


def _proposed(trial: Any, name: str, kinds: list[Any]) -> Any:
    """One of the kinds: where numbers lie near each other the estimator knows it, names have no order."""
    places = range(len(kinds))
    return kinds[trial.suggest_int(name, 0, places[-1]) if _ordered(kinds) else trial.suggest_categorical(name, places)]
