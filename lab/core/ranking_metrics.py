"""How well scores order a table, what chance would find in it, and means with their intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import scipy
import torch
from torch import Tensor


def kendall_tau(scores: Tensor, truth: Tensor) -> float:
    """Kendall's tau-b; -1 where scores are all the same, for such a scorer has collapsed."""
    tau = scipy.stats.kendalltau(scores.numpy(), truth.numpy()).statistic
    return -1.0 if tau != tau else float(tau)


def ndcg(scores: Tensor, relevance: Tensor, k: int | None = None) -> float:
    """NDCG@k: the gains 2^r - 1 in the order of the scores (n,), discounted by 1 / log2(1 + place), over the ideal.

    Equal scores give no order: each counts as the mean of their gains, which is what all their orders give on average.
    Not-a-number comes last. 1 where nothing is relevant.
    """
    _, groups = scores.nan_to_num(-torch.inf, torch.inf, -torch.inf).unique(return_inverse=True)
    gain = 2.0 ** relevance.double() - 1  # (n,)
    sums = torch.zeros(int(groups.max()) + 1, dtype=gain.dtype).index_add(0, groups, gain)
    # (k,): the mean gain of the group at each place, the group of the highest score first
    expected = (sums / groups.bincount())[groups.sort(descending=True).values][:k]
    discount = 1 / torch.log2(2 + torch.arange(len(expected), dtype=gain.dtype))
    ideal = float((gain.sort(descending=True).values[:k] * discount).sum())
    return float((expected * discount).sum()) / ideal if ideal > 0 else 1.0


def rank(row: int, truth: Tensor) -> int:
    """1 for the best of the table."""
    return 1 + int((truth > truth[row]).sum())


def expected_best(truth: Tensor, draws: int) -> float:
    """The best of so many rows drawn at random without repeats, on average over all draws: exact, nothing is drawn."""
    ordered = truth.sort().values
    n, places = len(truth), torch.arange(1, len(truth) + 1, dtype=torch.float64)
    inside = places - torch.arange(draws, dtype=torch.float64)[:, None]  # (draws, n)
    below = (inside.clamp_min(0) / (n - torch.arange(draws, dtype=torch.float64))[:, None]).prod(0)  # P(best <= place)
    return float((ordered * torch.diff(below, prepend=below.new_zeros(1))).sum())


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f}..{self.high:.3f})"

    def shown(self, digits: int, sign: str = "") -> str:
        """As tables have it, 'mean (low to high)' with so many digits; `sign="+"` marks what is above 0 as well."""
        ends = (round(value, digits) + 0.0 for value in (self.mean, self.low, self.high))  # no -0.0
        mean, low, high = (f"{value:{sign}.{digits}f}" for value in ends)
        return f"{mean} ({low} to {high})"


def interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean of runs with different seeds, and Student's interval around it; no width for a single run."""
    sample = torch.tensor(list(values), dtype=torch.float64)
    mean = float(sample.mean())
    if len(sample) < 2:
        return Interval(mean, mean, mean)
    half = float(scipy.stats.t.ppf((1 + confidence) / 2, len(sample) - 1) * sample.std() / len(sample) ** 0.5)
    return Interval(mean, mean - half, mean + half)
