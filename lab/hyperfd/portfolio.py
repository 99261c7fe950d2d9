"""Which k of the scored configurations are recommended: diverse ones, the best average while little is known."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .learning import Record

# Chosen on orders 100 to 105 of the detectors, six numbers a picture (`benchmarks/hyperfd_claim.py`): regret of tasks 6
# to 12 was 4.1 with the five of the highest scores, 3.3 with these, 3.9 where they differed in two decisions.
FIRST, APART = 2, 3  # the best so many are taken as they come, the others differ from all before in so many decisions
THIN = 1  # records in the memory, up to which the best average is trusted more than the ranker


def averages(records: Sequence[Record], n: int) -> Tensor:
    """(n,) how well each configuration did so far: results z-scored within each task, their mean drawn towards 0 by one
    unseen task; 0 for what nobody has tried.
    """
    total, count = torch.zeros(n), torch.ones(n)
    for record in records:
        y, rows = torch.tensor(record.results), list(record.rows)
        total[rows] += (y - y.mean()) / (y.std(correction=0) + 1e-9)
        count[rows] += 1
    return total / count


def decisions_apart(codes: Tensor) -> Tensor:
    """(n, n) in how many decisions two configurations differ, by the one-hot columns of their codes (n, F)."""
    one_hot = codes[:, ((codes == 0) | (codes == 1)).all(0)]
    return torch.cdist(one_hot, one_hot, p=1) / 2  # a decision that differs differs in two columns


def diverse(order: Sequence[int], apart: Tensor, k: int, first: int = FIRST, least: int = APART) -> list[int]:
    """k of an order of configurations, best first: the `first` as they come, then those that differ from all that were
    taken in `least` decisions; where too few do, the best of those left out.
    """
    taken = list(order[: min(first, k)])
    for row in order[len(taken) :]:
        if len(taken) < k and bool((apart[row, taken] >= least).all()):
            taken.append(row)
    left = [row for row in order if row not in set(taken)]
    return [*taken, *left[: k - len(taken)]]


def farthest(order: Sequence[int], apart: Tensor, k: int) -> list[int]:
    """k of an order of configurations: its first, then each time the one that differs most from all that were taken."""
    taken = list(order[:1])
    left = list(order[1:])
    while left and len(taken) < k:
        nearest = apart[left][:, taken].amin(1)
        taken.append(left.pop(int(nearest.argmax())))
    return taken


def recommended(order: Sequence[int], records: Sequence[Record], codes: Tensor, k: int) -> list[int]:
    """k of an order by scores, best first, for a client whom the platform offers these records; codes (n, F).

    While there are none, configurations far apart, since scores say nothing yet; up to THIN of them the best average,
    of equal ones those of higher scores; then diverse ones of the order.
    """
    apart = decisions_apart(codes)
    if not records:
        return farthest(order, apart, k)
    if len(records) <= THIN:
        average = averages(records, len(codes))
        return sorted(order, key=lambda row: -float(average[row]))[:k]
    return diverse(order, apart, k)
