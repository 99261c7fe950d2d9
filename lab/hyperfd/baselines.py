"""Who else recommends: baselines that see the same records and choose from the same configurations."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..core.spaces import tpe as estimator
from .client import sampled
from .learning import Record
from .portfolio import averages

BASELINES = ("random", "default", "best average", "nearest", "tpe")


def random(pool: Sequence[int], k: int) -> list[int]:
    """Configurations drawn at random."""
    return sampled(pool, (), k)


def default(pool: Sequence[int], number: int) -> list[int]:
    """The one of who tunes nothing; where the table does not know it, the first that it knows."""
    return [number if number in set(pool) else pool[0]]


def best_average(past: Sequence[Record], pool: Sequence[int], n: int, k: int) -> list[int]:
    """The k of the best average so far, ties by chance."""
    average = averages(past, n)
    return sorted(sampled(pool, (), len(pool)), key=lambda row: -float(average[row]))[:k]


def nearest(
    past: Sequence[Record], past_features: Sequence[Tensor], features: Tensor, pool: Sequence[int], k: int
) -> list[int]:
    """The best of the earlier task of the nearest meta-features, then of the next; by chance where none is left.

    Meta-features (24,) are the handcrafted ones, scaled by their deviations over all tasks so far.
    """
    rows: list[int] = []
    if past:
        every = torch.stack([*past_features, features])  # (tasks, 24), the present one last
        scaled = (every - every.mean(0)) / (every.std(0, correction=0) + 1e-6)
        for number in (scaled[:-1] - scaled[-1]).norm(dim=1).argsort().tolist():
            trials = zip(past[number].results, past[number].rows, strict=True)
            ranked = sorted(trials, key=lambda pair: -pair[0])  # equal ones in the order they were tried
            rows += [row for _, row in ranked[:k] if row in set(pool) and row not in rows]
    return [*rows, *sampled(pool, rows, k)][:k]


def tpe(
    choices: Sequence[tuple], pool: Sequence[int], k: int, evaluate: Callable[[Sequence[int]], list[float]], seed: int
) -> list[int]:
    """Optuna's tree-structured Parzen estimator from scratch, k trials."""
    rows = {tuple(choices[row]): row for row in pool}
    values = estimator.decision_values(list(rows))
    startup = max(1, min(10, k // 2))  # its own default of ten would make five trials random

    def untried(scores: Mapping[int, float]) -> int:
        return sampled(pool, list(scores), 1)[0]

    return list(
        estimator.search(rows, values, min(k, len(pool)), evaluate, untried, seed=seed, startup=startup),
    )
