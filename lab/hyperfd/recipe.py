"""HyperFD's procedure: data sets come one after another; each is served, learned from behind its wall, and let go."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core import ranking_metrics, store
from ..core.data import faces
from ..core.fields import integer, one_of, real, validate
from ..core.machine import device_of
from ..core.report import Attempts, Report, Row, attempt, reported
from ..core.running import digest, validate_kind
from ..core.spaces import streams
from ..core.spaces.streams import Stream
from ..core.training import Step, seeded
from . import equations as eq
from . import rivals
from .client import LEAST, Client, Recommendation
from .learning import Learning, Record, vectors
from .looking import handmade
from .messages import ANY
from .outcome import HyperFDOutcome
from .platform import Platform

LEARNED = ("hyperfd", "offline")
OFFLINE = 5  # tasks that the offline ranker learns from before it stays as it is
TOP = 10  # of NDCG


@dataclass(frozen=True, kw_only=True)
class HyperFD:
    """Privacy-preserving recommendation of face detectors, task after task (Yan et al., 2022, arXiv 2203.08399).

    K: configurations recommended to each client, which trains them; trials: how many it trains in all, the others drawn
    at random to teach the platform. R random subsets of m pictures each make its meta-vectors. steps of learning at
    rate lr after each task. triplet and si weigh the two regularisers, 0 leaves one out. stale says what becomes of
    stored vectors when the extractor changes: 'transform', 'reuse' as they are, 'drop' them, or 'pooled', which breaks
    the wall: all tasks' pictures lie on one pile and are learned from together, an upper bound. features: 'learned',
    'mean' (without spread), 'frozen' (random), 'handmade' (24 numbers). noise blurs what is uploaded. by: 'hyperfd',
    'offline' (learns from the pictures of five tasks together, then stays as it is), or a rival: 'random', 'default'
    (one configuration, not K), 'best average' (of all trials so far), 'nearest', 'tpe'.
    """

    K: int = 5
    trials: int = 20
    R: int = 8
    m: int = 32
    steps: int = 300
    lr: float = 2e-3
    triplet: float = 0.1
    si: float = 0.1
    stale: str = "transform"
    features: str = "learned"
    noise: float = 0.0
    by: str = "hyperfd"

    def __post_init__(self) -> None:
        validate(
            self,
            K=integer(1),
            trials=integer(1),
            R=integer(1, 64),
            m=integer(LEAST),
            steps=integer(1),
            lr=real(above=0),
            triplet=real(0),
            si=real(0),
            stale=one_of("transform", "reuse", "drop", "pooled"),
            features=one_of("learned", "mean", "frozen", "handmade"),
            noise=real(0),
            by=one_of(*LEARNED, *rivals.RIVALS),
        )
        validate(self, trials=integer(max(2, self.K)))

    @classmethod
    def paper(cls, name: str) -> "HyperFD":
        """No setting of the paper could be read: ValueError, whatever the name."""
        raise ValueError(f"name={name!r}: the paper's settings could not be read, none are kept")

    def learning(self) -> Learning:
        """How a client learns, by this recipe."""
        stale = "pooled" if self.by == "offline" else self.stale
        return Learning(self.R, self.m, self.steps, self.lr, self.triplet, self.si, stale, self.features)

    def run(
        self,
        task: Stream | None = None,
        *,
        seed: int = 0,
        device: str | torch.device | None = None,
        progress: bool = True,
        checkpoint: str | Path | None = None,
    ) -> HyperFDOutcome:
        """Serve the stream's tasks in an order drawn by the seed; goes on at the task where a checkpoint stopped."""
        stream = streams.detectors() if task is None else task
        validate_kind(self, stream, Stream, "lab.Stream(names=..., choices=..., data=..., scores=...)")
        if device is not None and device_of(device).type != "cpu":
            raise ValueError(f"HyperFD: device={device!r}: its networks are small, it learns on the cpu only")
        with seeded(seed):
            order = torch.randperm(len(stream)).tolist()
        with store.held(checkpoint):
            folder = Path(checkpoint) if checkpoint is not None else None
            if folder is not None and stream.scores is None and stream.journal is None:
                stream = replace(stream, journal=folder / "trained")
            service = _Service(self, stream, order, seed, folder)
            service.serve(progress)
            return service.outcome()


class _Service:
    """One run: the platform, the clients in their order, and what was noted of each."""

    def __init__(self, recipe: HyperFD, stream: Stream, order: list[int], seed: int, folder: Path | None) -> None:
        self.recipe, self.stream, self.order, self.seed, self.folder = recipe, stream, order, seed, folder
        self.codes = stream.codes()
        self.how = recipe.learning()
        self.learns = recipe.by in LEARNED
        first = self.client(0)
        told = f"{fingerprint(stream)}, data {digest(first.x)}"
        self.owner = f"{recipe!r} on {stream.name}, {len(stream)} tasks {told}, seed {seed}"
        self.sent_as = "JPEG" if isinstance(first.data, faces.FaceTask) else "numbers"
        self.sample = tuple(first.x.shape[1:])
        self.platform = Platform(self.sample, self.codes, self.how, seed, results=ANY, guarded=False)
        self.served: list[dict[str, Any]] = []
        self.trace: list[Step] = []
        if folder is not None and store.exists(folder, "stream"):
            self._restore(store.load(folder, "stream"))

    def client(self, place: int) -> Client:
        """The owner of the data that comes at this place."""
        task = self.order[place]
        data = self.stream.data(self.stream.names[task])
        return Client(data, self.codes, lambda rows: self.stream.evaluate(task, rows), self.how, self.recipe.noise,
                      pool=self.stream.pool(task), seed=self._seed(place))  # fmt: skip

    def serve(self, progress: bool) -> None:
        for place in range(len(self.served), len(self.order)):
            with seeded(self._seed(place)):
                self.served.append(self._served(place, progress))
            self._save()

    def _served(self, place: int, progress: bool) -> dict[str, Any]:
        """Serve one task and note what there is to know of it."""
        client = self.client(place)
        offer = self.platform.offer()
        began = self._recommended(place, client, offer)
        rows = list(began.rows)
        extra = self._teaching(place, client.pool, rows)
        results = client.evaluate([*rows, *extra])
        note: dict[str, Any] = {
            "task": self.order[place], "name": self.stream.names[self.order[place]], "rows": rows,
            "results": results[: len(rows)], "tried": [*rows, *extra], "tried_results": results,
            "scores": began.scores, "spread": began.spread, "sent": 0, "offered": len(offer),
        } | self._judged(place, began) | self._rivals(place, client)  # fmt: skip
        if self.learns and (self.recipe.by == "hyperfd" or place < OFFLINE):
            seen = [self.client(i).x for i in range(place)] if self.how.stale == "pooled" else ()
            message, found = client.upload(offer, note["tried"], results, progress=progress, seen=seen)
            self.platform.accept(message)
            self._pool(place)
            note |= {"sent": len(message), "kept": attempt("order", self._ndcg, place)[0]}
            self.trace += [Step(f"learning {place}", step.index, step.terms) for step in found.trace]
        terms = {key: note[key] for key in ("regret", "ndcg", "sent") if note[key] is not None}
        self.trace.append(Step("served", place, {name: float(value) for name, value in terms.items()}))
        return note

    def _seed(self, place: int) -> int:
        """The seed of one task of one run; a hash, for sums of seed and place are soon another run's."""
        return int(np.random.SeedSequence([self.seed, place]).generate_state(1)[0])

    def _teaching(self, place: int, pool: Sequence[int], taken: Sequence[int]) -> list[int]:
        """Random trials, the same for all recommenders of an order, but where one has recommended one of them."""
        order = np.random.default_rng([self.seed, place]).permutation(pool).tolist()
        return [row for row in order if row not in set(taken)][: max(0, self.recipe.trials - len(taken))]

    def _recommended(self, place: int, client: Client, offer: bytes) -> Recommendation:
        """By the ranker, or by a rival, which scores only what it names."""
        by, k, pool = self.recipe.by, self.recipe.K, client.pool
        if self.learns:
            return client.recommend(offer, k)
        past = self._past(place)
        rows = {
            "random": lambda: rivals.random(pool, k),
            "default": lambda: rivals.default(pool, self.stream.default),
            "best average": lambda: rivals.best_average(past, pool, len(self.codes), k),
            "nearest": lambda: rivals.nearest(past, [handmade(self.client(i).data) for i in range(place)],
                                              handmade(client.data), pool, k),
            "tpe": lambda: rivals.tpe(self.stream.choices, pool, k, client.evaluate, self._seed(place)),
        }[by]()  # fmt: skip
        scores = torch.zeros(len(self.codes))
        scores[rows] = torch.arange(len(rows), 0, -1.0)
        return Recommendation(tuple(rows), scores, torch.zeros_like(scores))

    def _past(self, place: int) -> list[Record]:
        none = torch.zeros(0)
        return [
            Record(one["name"], none, tuple(one["tried"]), tuple(one["tried_results"])) for one in self.served[:place]
        ]

    def _judged(self, place: int, found: Recommendation) -> dict[str, Any]:
        """Regret, rank and order by the table, None where there is none; beside them what chance would find."""
        task = self.order[place]
        truth, pool = self.stream.truth(task), self.stream.pool(task)
        if truth is None:
            return {"regret": None, "random": None, "ndcg": None, "tau": None, "rank": None}
        chosen = [pool.index(row) for row in found.rows]
        return {
            "regret": float(eq.regret(truth, chosen)),
            "random": float(truth.max()) - ranking_metrics.expected_best(truth, min(self.recipe.K, len(truth))),
            "ndcg": ndcg(found.scores[pool], truth), "tau": ranking_metrics.kendall_tau(found.scores[pool], truth),
            "rank": ranking_metrics.rank(max(chosen, key=lambda i: float(truth[i])), truth),
        }  # fmt: skip

    def _rivals(self, place: int, client: Client) -> dict[str, Any]:
        """The regret of the default and of the best average so far, which cost nothing to ask."""
        truth, pool = self.stream.truth(self.order[place]), client.pool
        if truth is None:
            return {"default": None, "best average": None}
        average = rivals.best_average(self._past(place), pool, len(self.codes), self.recipe.K)
        plain = rivals.default(pool, self.stream.default)
        return {name: float(eq.regret(truth, [pool.index(row) for row in rows]))
                for name, rows in (("default", plain), ("best average", average))}  # fmt: skip

    def _ndcg(self, place: int) -> float | None:
        """How the present ranker orders the configurations for the task at this place, seen afresh."""
        truth = self.stream.truth(self.order[place])
        if truth is None:
            return None
        client = self.client(place)
        with seeded(self._seed(place)):
            found = client.ranked(self.platform.ranker, self.recipe.K)
        return ndcg(found.scores[client.pool], truth)

    def _pool(self, place: int) -> None:
        """The upper bound: what the platform remembers is extracted again from pictures it should not have."""
        if self.how.stale != "pooled":
            return
        with torch.random.fork_rng(devices=[]):
            fresh = [vectors(self.platform.ranker, self.client(i).x, self.how) for i in range(place + 1)]
        memory = zip(self.platform.memory, fresh, strict=True)
        self.platform.memory = [replace(one, vectors=v) for one, v in memory]

    # -- kept ----------------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        if self.folder is not None:
            trace = [{"stage": step.stage, "index": step.index, "terms": step.terms} for step in self.trace]
            store.save(self.folder, "stream", {"owner": self.owner, "served": self.served, "trace": trace,
                                               "state": self.platform.state()})  # fmt: skip

    def _restore(self, saved: dict[str, Any]) -> None:
        if saved["owner"] != self.owner:
            raise ValueError(f"checkpoint={str(self.folder)!r} belongs to {saved['owner']}, this run is {self.owner}: "
                             "give another folder, or delete that one")  # fmt: skip
        self.served = saved["served"]
        self.trace = [Step(**step) for step in saved["trace"]]
        self.platform.restore(saved["state"])

    def outcome(self) -> HyperFDOutcome:
        attempts, stream = Attempts(), self.stream
        now = (attempts("forgetting", self._now) if self.learns else None) or []
        truth = None if stream.scores is None else stream.scores[self.order]
        known = {
            "choices": [list(choice) for choice in stream.choices], "codes": self.codes, "sample": list(self.sample),
            "decisions": list(stream.decisions or (f"decision {k}" for k in range(len(stream.choices[0])))),
            "metric": stream.metric, "unit": stream.unit, "stream": stream.name, "truth": truth, "now": now,
            "raw": attempts("bytes of the data", self._raw) or [], "raw as": self.sent_as,
        }  # fmt: skip
        report = reported(repr(self.recipe), self._report, known, attempts)
        return HyperFDOutcome(
            recipe=self.recipe, report=report, trace=tuple(self.trace), served=self.served,
            state=self.platform.state() if self.learns else {}, known=known,
        )  # fmt: skip

    def _now(self) -> list[float | None]:
        return [self._ndcg(place) for place in range(len(self.served))]

    def _raw(self) -> list[int]:
        return [raw_bytes(self.client(place).data) for place in range(len(self.served))]

    def _report(self, known: dict[str, Any], attempts: Attempts) -> Report:
        served, unit = self.served, self.stream.unit
        later = served[1:]  # before the first task nobody knows anything
        pools = sum(len(self.stream.pool(task)) for task in self.order)
        rows = [
            Row("trials", pools, sum(len(one["tried"]) for one in served)),
            Row(
                f"bytes as {known['raw as']}, as sent",
                sum(known["raw"]) or None,
                sum(one["sent"] for one in served),
                "bytes",
            ),
        ]
        if known["truth"] is None:
            best = [max(one["results"]) for one in served]
            rows.append(Row(self.stream.metric, best[0], sum(best) / len(best), unit, "learned", 2))
        else:
            rows += [
                Row("regret", _mean(later, "random"), _mean(later, "regret"), unit, "learned", 2),
                Row("regret, first task", served[0]["random"], served[0]["regret"], unit, "learned", 2),
                Row("regret of the default", None, _mean(later, "default"), unit, "learned", 2),
                Row("regret of the best average", None, _mean(later, "best average"), unit, "learned", 2),
                Row("ndcg@10", served[0]["ndcg"], _mean(later, "ndcg"), "", "learned", 3),
            ]
            if (lost := forgetting(served, known["now"])) is not None:
                rows.append(Row("forgetting", None, lost, "%", "learned", 1))
        notes = [
            f"before: all configurations trained, all data sent as {known['raw as']}, what as many random choices "
            "leave on average, the order before anything was learned; regrets are means over all tasks but the first",
            "an upload is as large as the model, however small the data set",
            f"the default is one configuration, not {self.recipe.K}; the best average sees what this run has tried, "
            "recommended trials too",
        ]
        return Report(repr(self.recipe), tuple(rows), (*notes, *filter(None, [self.stream.note]), *attempts.notes))


def fingerprint(stream: Stream) -> str:
    """A short hash of what a stream asks, and of what its table answers; a live one's journal knows its data."""
    told = repr((stream.names, stream.choices, None if stream.scores is None else stream.scores.tolist()))
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def ndcg(scores: Tensor, truth: Tensor, k: int = TOP) -> float:
    """NDCG@k of an order by scores, relevance 0 to 5 within the table; 1 is the ideal order."""
    return ranking_metrics.ndcg(scores, eq.relevance(truth), k)


def forgetting(served: Sequence[dict[str, Any]], now: Sequence[float | None]) -> float | None:
    """By how many percent NDCG of old tasks fell since they were learned; None for fewer than two."""
    both = zip(served, now, strict=False)
    pairs = [(one["kept"], new) for one, new in both if one.get("kept") is not None and new is not None]
    old = pairs[:-1]  # the last task had no time to be forgotten
    return 100 * sum(a - b for a, b in old) / sum(a for a, _ in old) if old else None


@lru_cache(maxsize=64)
def raw_bytes(data: Any) -> int:
    """What it would take to send the data set itself: pictures as JPEG of quality 85, 16 a box; 4 a number of a table.

    Size of headers and all; another release of the JPEG library may differ by some bytes.
    """
    if isinstance(data, faces.FaceTask):
        return sum(map(_jpeg, data.learn.pictures)) + 16 * sum(map(len, data.learn.boxes))
    return 4 * data.numel()


def _jpeg(picture: Tensor) -> int:
    content = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(content, "JPEG", quality=85)
    return content.tell()


def _mean(served: Sequence[dict[str, Any]], key: str) -> float:
    return sum(one[key] for one in served) / len(served)
