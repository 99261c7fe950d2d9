"""What is noted of each task that was served, and how good its recommendation was."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

from torch import Tensor

from ..core import ranking_metrics
from ..core.data.faces import FaceTask
from ..core.data.images import jpeg_size
from . import equations as eq
from .client import Recommendation

TOP = 10  # of NDCG


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A recommendation by a table of all results: None throughout where there is none.

    regret, random: the best of the table less the best recommended, and less what as many random choices would find on
    average. default, best_average: the regrets of these baselines. ndcg, tau: how the scores order the table. rank: of
    the best recommended, 1 for the best.
    """

    regret: float | None = None
    random: float | None = None
    default: float | None = None
    best_average: float | None = None
    ndcg: float | None = None
    tau: float | None = None
    rank: int | None = None


@dataclass(frozen=True, kw_only=True)
class TaskRecord(Judgement):
    """One task that was served.

    task, name: its number in the stream, and its name there. rows, results: the configurations recommended, best first,
    and how they did; tried, tried_results: these and the random ones. scores, spread (n,): of all configurations, by
    the recommender, and over subsets. sent, offered: bytes of the upload, 0 where nothing was learned, and of the
    offer. kept: NDCG right after it was learned.
    """

    task: int
    name: str
    rows: tuple[int, ...]
    results: tuple[float, ...]
    tried: tuple[int, ...]
    tried_results: tuple[float, ...]
    scores: Tensor
    spread: Tensor
    offered: int
    sent: int = 0
    kept: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The record as files hold it."""
        return {_saved_name(field.name): getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "TaskRecord":
        """The record that `to_dict` wrote."""
        values: dict[str, Any] = {field.name: saved.get(_saved_name(field.name)) for field in fields(cls)}
        lists = {name: tuple(values[name]) for name in ("rows", "results", "tried", "tried_results")}
        return cls(**{**values, **lists})


def _saved_name(name: str) -> str:
    return "best average" if name == "best_average" else name


def judged(
    recommendation: Recommendation, truth: Tensor, pool: Sequence[int], k: int, baselines: Mapping[str, Sequence[int]]
) -> Judgement:
    """A recommendation of k, and the rows of each baseline, by the scores (pool,) of all that may be chosen."""
    chosen = [pool.index(row) for row in recommendation.rows]
    scores = recommendation.scores[pool]
    return Judgement(
        regret=float(eq.regret(truth, chosen)),
        random=float(truth.max()) - ranking_metrics.expected_best(truth, min(k, len(truth))),
        ndcg=ndcg(scores, truth),
        tau=ranking_metrics.kendall_tau(scores, truth),
        rank=ranking_metrics.rank(max(chosen, key=lambda i: float(truth[i])), truth),
        **{name: float(eq.regret(truth, [pool.index(row) for row in rows])) for name, rows in baselines.items()},
    )


def ndcg(scores: Tensor, truth: Tensor, k: int = TOP) -> float:
    """NDCG@k of an order by scores, relevance 0 to 5 within the table; 1 is the ideal order."""
    return ranking_metrics.ndcg(scores, eq.relevance(truth), k)


def forgetting(served: Sequence[TaskRecord], now: Sequence[float | None]) -> float | None:
    """By how many percent NDCG of old tasks fell since they were learned; None for fewer than two."""
    both = zip(served, now, strict=False)
    pairs = [(record.kept, new) for record, new in both if record.kept is not None and new is not None]
    old = pairs[:-1]  # the last task had no time to be forgotten
    return 100 * sum(a - b for a, b in old) / sum(a for a, _ in old) if old else None


@lru_cache(maxsize=64)
def raw_bytes(data: Any) -> int:
    """What it would take to send the data set itself: pictures as JPEG of quality 85, 16 a box; 4 a number of a table.

    Size of headers and all; another release of the JPEG library may differ by some bytes.
    """
    if isinstance(data, FaceTask):
        return sum(map(jpeg_size, data.learn.images)) + 16 * sum(map(len, data.learn.boxes))
    return 4 * data.numel()
