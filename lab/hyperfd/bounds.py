"""What every honest client keeps to, and a platform demands of an upload, so that none can spoil it for all others.

Two are laws of how a round learns: a step of AdamW moves a weight by at most some four times its rate, and the map of
Card (9) between unit vectors has no singular value above 1 / √ridge. The others lie above the most that the twelve
embedded domains sent in one order: synapses grew by 25 (allowed: 1000), maps had norms up to 0.85, which cannot turn a
vector by more than 0.47 (0.5), and what earlier clients tried was ordered worse by 0.035 of NDCG (0.25).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..core import ranking_metrics
from . import equations as eq
from .layers import Ranker
from .learning import COMMON_LR, EXTRACTOR_LR, RIDGE, Record, RoundConfig

MOVE = 4.0  # times its rate that a step of AdamW moves a weight at most, decay and all
MOST_GAIN = 1000.0  # of synaptic importance, in one round
MOST_TURN = 0.5  # of a stored vector by the map: 1 - cos, the mean over a record
MOST_LOSS = 0.25  # of NDCG on what was tried so far, the mean over all records


class Rejected(ValueError):
    """A message that does not fit its schema or its bounds, or comes too late, in one line."""


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


def validate_grown(old: Sequence[Tensor], new: Sequence[Tensor]) -> None:
    """Rejected where importances fall, which Card (7) never lets them, or grow by more than MOST_GAIN."""
    for k, (before, after) in enumerate(zip(old, new, strict=True)):
        low, high = (float(value) for value in (after - before).aminmax())
        if low < 0 or high > MOST_GAIN:
            raise Rejected(f"upload: synapses 'o.{k}' change by {low:.3g} to {high:.3g}: allowed is 0 to {MOST_GAIN:g}")


def validate_mapped(memory: Sequence[Record], D: Tensor) -> None:
    """Rejected where the map stretches more than Card (9) can, or turns a record's vectors into others."""
    if (norm := float(torch.linalg.matrix_norm(D, 2))) > (most := RIDGE**-0.5):
        raise Rejected(f"upload: the map 'D' stretches by {norm:.3g}: Card (9) gives {most:g} at most")
    for record in memory:
        mapped = eq.transformed(record.vectors, D)  # (R, d)
        if (turn := float((1 - torch.cosine_similarity(mapped, record.vectors, dim=-1)).mean())) > MOST_TURN:
            raise Rejected(f"upload: the map 'D' turns {record.name!r} by {turn:.2f}: {MOST_TURN} is the most")


def validate_ordering(
    before: tuple[Ranker, Sequence[Record]], after: tuple[Ranker, Sequence[Record]], codes: Tensor
) -> None:
    """Rejected where the new model tells no configurations apart, or orders what was tried worse than the old one."""
    ranker, records = after
    with torch.no_grad():
        scores = ranker.scores(records[-1].vectors, codes)  # (R, n)
    if float(scores.std(1).max()) == 0:  # a constant cannot be compared by order: ties count as their mean
        raise Rejected("upload: its model gives all configurations one score")
    was, now = (
        sum(ordered(model, record, codes) for record in memory) / len(memory) for model, memory in (before, after)
    )
    if was - now > MOST_LOSS:
        raise Rejected(
            f"upload: its model orders what clients tried with NDCG {now:.2f}, the one before with {was:.2f}"
        )


def ordered(ranker: Ranker, record: Record, codes: Tensor) -> float:
    """NDCG of a model's order of what a record's client tried."""
    rows = list(record.rows)
    with torch.no_grad():
        scores, _ = eq.subset_scores(ranker.scores(record.vectors, codes[rows]))
    return ranking_metrics.ndcg(scores, eq.relevance(torch.tensor(record.results)))
