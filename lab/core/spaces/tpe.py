"""Optuna's tree-structured Parzen estimator (Bergstra et al., 2011) over the rows of a table, for baselines."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..distribution import install

PATIENCE = 50  # proposals in a row that are no row of the table, or were tried before, until one is drawn at random

Choice = tuple[Any, ...]


def search(
    rows: Mapping[Choice, int],
    values: Sequence[Sequence[Any]],
    count: int,
    evaluate: Callable[[Sequence[int]], list[float]],
    draw_untried: Callable[[Mapping[int, float]], int],
    *,
    seed: int,
    startup: int = 10,
) -> dict[int, float]:
    """`count` rows in the order in which they were tried, each with its score; what is proposed again costs nothing.

    rows: {choice: row}; values: what each decision may be. draw_untried gives a row that has no score yet, where the
    estimator has lost patience. startup: random trials before it models anything. ModuleNotFoundError without Optuna.
    """
    try:
        import optuna
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"'tpe' needs Optuna: {install('search')}") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    scores: dict[int, float] = {}
    wasted = 0
    while len(scores) < count:
        trial = study.ask()
        row = rows.get(tuple(proposed(trial, str(i), kinds) for i, kinds in enumerate(values)))
        if row is None or row in scores:
            wasted += 1
            if wasted < PATIENCE:
                value = scores[row] if row is not None else None  # without one, the estimator learns nothing of it
                study.tell(trial, value, None if value is not None else optuna.trial.TrialState.PRUNED)
                continue
            row = draw_untried(scores)
        wasted = 0
        scores[row] = evaluate([row])[0]
        study.tell(trial, scores[row])
    return scores


def decision_values(choices: Sequence[Choice]) -> list[list[Any]]:
    """What each decision of these choices may be: numbers by size, all else by name."""
    columns = (set(column) for column in zip(*choices, strict=True))
    return [sorted(kinds, key=None if _are_numbers(kinds) else str) for kinds in columns]


def proposed(trial: Any, name: str, kinds: Sequence[Any]) -> Any:
    """One of the kinds: of numbers the estimator knows which lie near each other, names have no order."""
    last = len(kinds) - 1
    index = (
        trial.suggest_int(name, 0, last) if _are_numbers(kinds) else trial.suggest_categorical(name, range(last + 1))
    )
    return kinds[index]


def _are_numbers(kinds: Any) -> bool:
    return all(isinstance(kind, (int, float)) and not isinstance(kind, bool) for kind in kinds)
