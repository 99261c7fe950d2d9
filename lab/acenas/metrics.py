"""How well scores rank a table: only the top matters, so that Kendall's tau alone misleads."""

from torch import Tensor

from ..core import ranking_metrics
from . import equations as eq

LOW = 0.2  # the quantile up to which an architecture is of no relevance


def ndcg(scores: Tensor, truth: Tensor, k: int | None = 10, scale: float = 20.0) -> float:
    """NDCG@k, relevance taken from the whole table: 0 up to its 20 % quantile, `scale` for its best."""
    r = eq.relevance(truth, float(truth.quantile(LOW)), float(truth.max()), scale)
    return ranking_metrics.ndcg(scores, r, k)


def best_of_top(scores: Tensor, valid: Tensor, truth: Tensor, k: int = 10) -> float:
    """Truth of the one that validates best among the k of the highest scores, of equal ones the worst.

    Where equal scores straddle the k-th place, the mean over all ways to choose among them.
    """
    least = scores.sort(descending=True).values[:k][-1]
    tied = int((scores == least).sum())
    free = min(k, len(scores)) - int((scores > least).sum())  # places that the tied ones share
    expected, left = 0.0, 1.0  # what is expected so far, and how likely nothing better was chosen
    for row in sorted((scores >= least).nonzero()[:, 0].tolist(), key=lambda row: (-valid[row], truth[row])):
        chosen = 1.0 if scores[row] > least else free / tied
        expected, left = expected + left * chosen * float(truth[row]), left * (1 - chosen)
        tied -= int(scores[row] == least)
    return expected
