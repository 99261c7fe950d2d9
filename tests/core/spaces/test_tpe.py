"""The estimator that searches with a baseline's means: what it knows of decisions, and what it wastes nothing on."""

import pytest

from lab.core.spaces import tpe

optuna = pytest.importorskip("optuna")


def test_the_estimator_knows_sizes_by_size_and_names_by_name():
    assert tpe.decision_values([(192, "b"), (96, "a"), (128, "a")]) == [[96, 128, 192], ["a", "b"]]
    trial = optuna.create_study().ask()
    assert tpe.proposed(trial, "side", [96, 128, 192]) in (96, 128, 192)
    assert tpe.proposed(trial, "kind", ["a", "b"]) in ("a", "b")
    kinds = {name: type(distribution).__name__ for name, distribution in trial.distributions.items()}
    assert kinds == {"side": "IntDistribution", "kind": "CategoricalDistribution"}


def test_a_row_is_tried_once_and_patience_ends_in_a_draw():
    rows, tried, draws = {(1,): 0, (2,): 1, (4,): 2}, [], []

    def evaluate(some):
        tried.extend(some)
        return [float(row) for row in some]

    def untried(scores):
        draws.append(len(scores))
        return next(row for row in (7, 8) if row not in scores)  # rows that no proposal reaches

    scores = tpe.search(rows, [[1, 2, 4]], 5, evaluate, untried, seed=0)
    assert tried == list(scores) and sorted(scores) == [0, 1, 2, 7, 8] and draws == [3, 4]
