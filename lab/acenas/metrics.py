"""How well scores rank a table: only the top matters, so that Kendall's tau alone misleads."""

from torch import Tensor

from ..core.judging import Interval, expected_best, interval, kendall_tau, rank
from . import equations as eq

__all__ = ["LOW", "Interval", "best_of_top", "expected_best", "interval", "kendall_tau", "ndcg", "rank"]

LOW = 0.2  # the quantile up to which an architecture is of no relevance


def ndcg(scores: Tensor, truth: Tensor, k: int | None = 10, scale: float = 20.0) -> float:
    """NDCG@k, relevance taken from the whole table: 0 up to its 20 % quantile, `scale` for its best."""
    r = eq.relevance(truth, float(truth.quantile(LOW)), float(truth.max()), scale)
    return float(eq.ndcg(scores, r, k))


def best_of_top(scores: Tensor, valid: Tensor, truth: Tensor, k: int = 10) -> float:
    """Truth of the one that validates best among the k of the highest scores."""
    top = scores.argsort(descending=True, stable=True)[:k]
    return float(truth[top[valid[top].argmax()]])
