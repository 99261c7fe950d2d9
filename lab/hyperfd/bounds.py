"""What every honest client keeps to, and a platform demands of an upload, so that none can spoil it for all others.

Laws of how a round learns: a step of AdamW moves a weight by at most some four times its rate; the map of Card (9)
between unit vectors has no singular value above 1 / √ridge; importances are a loss that was taken off, so that all of a
round's together, times what Card (7) divides by, are no more than there was to take off. The platform measures the
map's error itself, on pictures that are nobody's. The other bounds lie above the most that honest clients sent, seven
of the embedded domains, and 80 whose results have an error, in `benchmarks/hyperfd_trust.py`: a weight's importance
grew by 268 (allowed: 1000), all of a round's were worth 12 (100), maps turned a record by 0.24 (0.5), their errors on
the platform's pictures were 0.05 (0.2), what was tried was ordered worse by 0.06 of NDCG where eight had taught (0.09).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import ranking_metrics
from ..core.training import seeded
from . import equations as eq
from .layers import Ranker
from .learning import COMMON_LR, EXTRACTOR_LR, RIDGE, Record, RoundConfig, map_error

MOVE = 4.0  # times its rate that a step of AdamW moves a weight at most, decay and all
MOST_GAIN = 1000.0  # of a weight's synaptic importance, in one round
MOST_PATH = 100.0  # of the loss that importances say was taken off, in one round, over all weights
MOST_OMEGA = 500.0  # of a weight's importance, in all: more would freeze it for ever
MOST_TURN = 0.5  # of a stored vector by the map: 1 - cos, the mean over a record
MOST_ERROR = 0.2  # of one map, by the platform's own pictures
MOST_LOSS, FEW = 0.02, 0.2  # of NDCG on n records, since each was ordered best: the mean, and more / √n for few
TRIALS = 20  # of a record, with which this was measured: of fewer the order hangs on chance, and they count as less
# Kendall's tau of the model before on an upload's trials, in deviations of an order by chance, once so many clients
# have taught it
CONTRADICTED, ENOUGH = -2.8, 5
PROBES = 64  # pictures of the platform's own
DAMPING = 1e-3  # of Card (7)


class Rejected(ValueError):
    """A message that does not fit its schema or its bounds, or comes too late, in one line."""


class Stale(Rejected):
    """An upload that comes too late to be merged: learn again from a new offer, with the trials that are paid."""


def reach(name: str, config: RoundConfig) -> float:
    """How far a round can move a weight of this name: each of its steps by MOVE times its rate."""
    if name.startswith("extractor."):
        rate = EXTRACTOR_LR * config.lr if config.learns_extractor() else 0.0
    else:
        rate = COMMON_LR * config.lr if name.startswith("common.") else config.lr
    return MOVE * config.steps * rate + 1e-6  # the last for rounding: a frozen weight passes


def validate_moved(old: Mapping[str, Tensor], new: Mapping[str, Tensor], config: RoundConfig) -> None:
    """Rejected where a weight went farther than a round of learning can take it."""
    for name, value in old.items():
        if (away := float((new[name] - value).abs().max())) > (most := reach(name, config)):
            raise Rejected(
                f"upload: '{name}' moved by {away:.3g}: a round of {config.steps} steps moves it by {most:.3g}"
            )


def validate_grown(
    old: Sequence[Tensor], new: Sequence[Tensor], before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> None:
    """Rejected where importances fall, which Card (7) never lets them, or grow by more than a round can teach."""
    path = 0.0
    for k, (a, b, v, w) in enumerate(zip(old, new, before.values(), after.values(), strict=True)):
        low, high = (float(value) for value in (b - a).aminmax())
        if low < 0 or high > MOST_GAIN:
            raise Rejected(f"upload: synapses 'o.{k}' change by {low:.3g} to {high:.3g}: allowed is 0 to {MOST_GAIN:g}")
        path += float(((b - a) * ((w - v).square() + DAMPING)).sum())  # ω of Card (6), summed
    if path > MOST_PATH:
        raise Rejected(f"upload: synapses say that a loss of {path:.3g} was taken off: {MOST_PATH:g} is the most")


def validate_mapped(memory: Sequence[Record], D: Tensor) -> None:
    """Rejected where the map stretches more than Card (9) can, or turns a record's vectors into others."""
    if (norm := float(torch.linalg.matrix_norm(D, 2))) > (most := RIDGE**-0.5):
        raise Rejected(f"upload: the map 'D' stretches by {norm:.3g}: Card (9) gives {most:g} at most")
    for record in memory:
        mapped = eq.transformed(record.vectors, D)  # (R, d)
        if (turn := float((1 - torch.cosine_similarity(mapped, record.vectors, dim=-1)).mean())) > MOST_TURN:
            raise Rejected(f"upload: the map 'D' turns {record.name!r} by {turn:.2f}: {MOST_TURN} is the most")


def measured_error(before: Ranker, after: Ranker, D: Tensor, config: RoundConfig) -> float:
    """The error of the map between two models, Card (11), on the platform's own pictures; Rejected above MOST_ERROR."""
    if not config.learns_extractor():
        return 0.0
    first = next(iter(before.extractor.parameters()))
    with seeded(0):
        error = map_error(before, after, probes(first.shape[1], first.dim() == 4), D, config)
    if error > MOST_ERROR:
        raise Rejected(f"upload: the map 'D' misses its model by {error:.2f}: {MOST_ERROR} is the most")
    return error


def probes(channels: int, is_image: bool) -> Tensor:
    """Pictures that are nobody's (k, 4, 64, 64): smooth colours, noise and boxes by chance; or (k, F) numbers."""
    if not is_image:
        return torch.randn(PROBES, channels)
    side = 64
    colours = F.interpolate(2 * torch.rand(PROBES, 3, 6, 6) - 1, side, mode="bilinear")
    colours = colours + 0.2 * torch.randn(PROBES, 3, side, side)
    filled = -torch.ones(PROBES, 1, side, side)
    for image in filled:
        for size in torch.randint(5, 24, (int(torch.randint(1, 6, ())),)).tolist():
            top, left = torch.randint(0, side - size, (2,)).tolist()
            image[0, top : top + size, left : left + size] = 1
    return torch.cat([colours.clamp(-1, 1), filled], 1)


def validate_ordering(ranker: Ranker, memory: Sequence[Record], codes: Tensor) -> None:
    """Rejected where a model tells no configurations apart, or orders what was tried worse than it was ordered best.

    Compared with the best of all versions, not with the last one: many small losses are one large one.
    """
    with torch.no_grad():
        scores = ranker.scores(memory[-1].vectors, codes)  # (R, n)
    if float(scores.std(1).max()) == 0:  # a constant cannot be compared by order: ties count as their mean
        raise Rejected("upload: its model gives all configurations one score")
    best = sum(record.best for record in memory) / len(memory)
    now = sum(ordered(ranker, record, codes) for record in memory) / len(memory)
    n = min(len(memory), sum(len(record.rows) for record in memory) / TRIALS)
    if best - now > MOST_LOSS + FEW * n**-0.5:
        raise Rejected(f"upload: its model orders what clients tried with NDCG {now:.2f}, where it was {best:.2f}")


def validate_trials(ranker: Ranker, upload: Record, memory: Sequence[Record], codes: Tensor) -> None:
    """Rejected where results are the contrary of what the model expects, once ENOUGH clients have taught it."""
    n = len(upload.rows)
    if len(memory) < ENOUGH or n < 2:
        return
    with torch.no_grad():
        scores, _ = eq.subset_scores(ranker.scores(upload.vectors, codes[list(upload.rows)]))
    deviation = (2 * (2 * n + 5) / (9 * n * (n - 1))) ** 0.5  # of tau over n trials (Kendall, 1938)
    if (tau := ranking_metrics.kendall_tau(scores, torch.tensor(upload.results))) < CONTRADICTED * deviation:
        raise Rejected(f"upload: its results contradict those of {len(memory)} others (tau {tau:.2f}): try them again")


def ordered(ranker: Ranker, record: Record, codes: Tensor) -> float:
    """NDCG of a model's order of what a record's client tried."""
    rows = list(record.rows)
    with torch.no_grad():
        scores, _ = eq.subset_scores(ranker.scores(record.vectors, codes[rows]))
    return ranking_metrics.ndcg(scores, eq.relevance(torch.tensor(record.results)))
