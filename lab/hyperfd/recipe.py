"""HyperFD's procedure: data sets come one after another; each is served, learned from where it lies, and let go."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core import imports, store
from ..core.data import faces
from ..core.deprecation import deprecated
from ..core.fields import by_name, integer, one_of, real, validate
from ..core.machine import device_of
from ..core.report import Attempts, Report, Row, attempt, reported
from ..core.running import digest, made, validate_kind
from ..core.spaces import streams
from ..core.spaces.streams import Stream
from ..core.stopping import held
from ..core.training import Step, seeded
from . import baselines
from .client import LEAST, DataOwner, Noise, Recommendation, validate_noise
from .drift import HeldBack
from .evaluation import Judgement, TaskRecord, forgetting, judged, ndcg, raw_bytes
from .features import meta_features
from .learning import Record, RoundConfig, RoundResult, vectors
from .messages import ANY
from .outcome import HyperFDOutcome
from .platform import Platform

LEARNED = ("hyperfd", "offline")
OFFLINE = 5  # tasks that the offline ranker learns from before it stays as it is


@by_name
@dataclass(frozen=True, kw_only=True)
class HyperFD:
    """Privacy-preserving recommendation of face detectors, task after task (Yan et al., 2022, arXiv 2203.08399).

    K: configurations recommended to each client, which trains them; trials: how many it trains in all, the others drawn
    at random to teach the platform. R random subsets of m pictures each make its meta-vectors. steps of learning at
    rate lr after each task. triplet and si weigh the two regularisers, 0 leaves one out. stale says what becomes of
    stored vectors when the extractor changes: 'transform', 'reuse' as they are, 'drop' them, or 'pooled', which crosses
    the privacy boundary: all tasks' pictures lie on one pile and are learned from together, an upper bound. features:
    'learned', 'mean' (without spread), 'frozen' (random), 'handmade' (24 handcrafted ones). noise: (epsilon,
    delta), by which all that a client sends is differentially private, its results and the number of its pictures
    aside: see the card; 0 for none. portfolio: of the K the two best are taken as they are scored, the others differ
    from them and one another in three decisions, and while one task or none is known scores count less; without it, the
    highest scores. by: 'hyperfd', 'offline' (learns from the pictures of five tasks together, then stays as it is), or
    a baseline: 'random', 'default' (one configuration, not K), 'best average' (of all trials so far), 'nearest', 'tpe'.
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
    noise: Noise = 0.0
    portfolio: bool = True
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
            portfolio=one_of(True, False),
            by=one_of(*LEARNED, *baselines.BASELINES),
        )
        validate(self, trials=integer(max(2, self.K)))
        if isinstance(self.noise, list):  # as files hold it
            object.__setattr__(self, "noise", tuple(self.noise))
        validate_noise(self.noise, self.learning())
        if self.noise and not isinstance(self.noise, tuple):
            deprecated("HyperFD(noise=NUMBER)", "noise=(epsilon, delta), such as (8.0, 1e-5)", "0.4")

    @classmethod
    def paper(cls, name: str) -> "HyperFD":
        """No setting of the paper could be read: ValueError, whatever the name."""
        raise ValueError(f"name={name!r}: the paper's settings could not be read, none are kept")

    def learning(self) -> RoundConfig:
        """How a client learns, by this recipe."""
        stale = "pooled" if self.by == "offline" else self.stale
        config = RoundConfig(self.R, self.m, self.steps, self.lr, self.triplet, self.si, stale, self.features)
        return replace(config, portfolio=self.portfolio)

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
        imports.complete()
        if device is not None and device_of(device).type != "cpu":
            raise ValueError(f"HyperFD: device={device!r}: its networks are small, it learns on the cpu only")
        with seeded(seed):
            order = torch.randperm(len(stream)).tolist()
        with held(checkpoint):
            folder = Path(checkpoint) if checkpoint is not None else None
            if folder is not None and stream.scores is None and stream.journal is None:
                stream = replace(stream, journal=folder / "trained")
            run = _StreamRun(self, stream, order, seed, folder)
            run.serve(progress)
            return run.outcome()


class _StreamRun:
    """One run: the platform, the clients in their order, and what was noted of each."""

    def __init__(self, recipe: HyperFD, stream: Stream, order: list[int], seed: int, folder: Path | None) -> None:
        self.recipe, self.stream, self.order, self.seed, self.folder = recipe, stream, order, seed, folder
        self.codes = stream.codes()  # (n, F)
        self.config = recipe.learning()
        self.learns = recipe.by in LEARNED
        first = self.client(0)
        data = f"{fingerprint(stream)}, data {digest(first.x)}"
        self.run_id = f"{recipe!r} on {stream.name}, {len(stream)} tasks {data}, seed {seed}"
        self.sent_as = "JPEG" if isinstance(first.data, faces.FaceTask) else "numbers"
        self.sample = tuple(first.x.shape[1:])
        self.platform = Platform(self.sample, self.codes, self.config, seed, results=ANY, guarded=False)
        self.served: list[TaskRecord] = []
        self.at_home: list[HeldBack] = []  # what each client that has learned keeps, in their order
        self.trace: list[Step] = []
        if folder is not None and store.exists(folder, "stream"):
            self._restore(store.load(folder, "stream"))

    def client(self, position: int) -> DataOwner:
        """The owner of the data that comes at this position of the order."""
        task = self.order[position]
        return DataOwner(
            self.stream.data(self.stream.names[task]),
            self.codes,
            lambda rows: self.stream.evaluate(task, rows),
            self.config,
            self.recipe.noise,
            pool=self.stream.pool(task),
            seed=self._seed(position),
            secret=self._seed(position),
        )

    def serve(self, progress: bool) -> None:
        """Serve the tasks that are left, each from its own seed, so that a killed run ends as if it had not been."""
        for position in range(len(self.served), len(self.order)):
            with seeded(self._seed(position)):
                self.served.append(self._serve_task(position, progress))
            self._save()

    def _serve_task(self, position: int, progress: bool) -> TaskRecord:
        """Recommend, have it tried, judge it, and learn: all there is to know of one task."""
        client = self.client(position)
        offer = self.platform.offer()
        recommendation = self._recommended(position, client, offer)
        rows = list(recommendation.rows)
        tried = [*rows, *self._teaching(position, client.pool, rows)]
        results = client.evaluate(tried)
        record = TaskRecord(
            task=self.order[position],
            name=self.stream.names[self.order[position]],
            rows=tuple(rows),
            results=tuple(results[: len(rows)]),
            tried=tuple(tried),
            tried_results=tuple(results),
            scores=recommendation.scores,
            spread=recommendation.spread,
            offered=len(offer),
            **asdict(self._judged(position, client, recommendation)),
        )
        if self.learns and (self.recipe.by == "hyperfd" or position < OFFLINE):
            record = self._learned(position, client, offer, record, progress)
        terms = {"regret": record.regret, "ndcg": record.ndcg, "sent": record.sent}
        shown = {name: float(value) for name, value in terms.items() if value is not None}
        self.trace.append(Step("served", position, shown))
        return record

    def _learned(
        self, position: int, client: DataOwner, offer: bytes, record: TaskRecord, progress: bool
    ) -> TaskRecord:
        """The client learns and uploads, the platform takes it; the record with what that cost and gave."""
        pooled = self.config.stale == "pooled"
        memory_samples = [self.client(i).x for i in range(position)] if pooled else ()
        message, learned = client.upload(
            offer, record.tried, record.tried_results, progress=progress, memory_samples=memory_samples
        )
        self.platform.accept(message)
        if pooled:
            self._extract_again(position)
        elif self.config.stale == "transform" and self.config.learns_extractor():
            self._measure_drift(position, learned)
        self.trace += [Step(f"learning {position}", step.index, step.terms) for step in learned.trace]
        return replace(record, sent=len(message), kept=attempt("order", self._ndcg, position)[0])

    def _measure_drift(self, position: int, learned: RoundResult) -> None:
        """Earlier clients measure at home what their records have lost by the new version, and the platform is told."""
        ranker = self.platform.ranker
        with seeded(self._seed(position)):
            carried = [held.carried(learned.D, ranker, self.client(i).x) for i, held in enumerate(self.at_home)]
            self.at_home = [held for held, _ in carried] + [HeldBack.of(ranker, self.client(position).x, self.config)]
        if drifts := [drift for _, drift in carried]:
            self.platform.note_drift(drifts)
            terms = {"mean": sum(drifts) / len(drifts), "largest": max(drifts), "own error": learned.error}
            self.trace.append(Step("drift", position - 1, terms))  # the first client has none before it

    def _seed(self, position: int) -> int:
        """The seed of one task of one run; a hash, for sums of seed and position are soon another run's."""
        return int(np.random.SeedSequence([self.seed, position]).generate_state(1)[0])

    def _teaching(self, position: int, pool: Sequence[int], recommended: Sequence[int]) -> list[int]:
        """Random trials, the same for all recommenders of an order, but where one has recommended one of them."""
        order = np.random.default_rng([self.seed, position]).permutation(pool).tolist()
        return [row for row in order if row not in set(recommended)][: max(0, self.recipe.trials - len(recommended))]

    def _recommended(self, position: int, client: DataOwner, offer: bytes) -> Recommendation:
        """By the ranker, or by a baseline, which scores only what it names."""
        if self.learns:
            return client.recommend(offer, self.recipe.K)
        rows = self._by_baseline(position, client)
        scores = torch.zeros(len(self.codes))
        scores[rows] = torch.arange(len(rows), 0, -1.0)
        return Recommendation(tuple(rows), scores, torch.zeros_like(scores))

    def _by_baseline(self, position: int, client: DataOwner) -> list[int]:
        by, k, pool, past = self.recipe.by, self.recipe.K, client.pool, self._past(position)
        if by == "random":
            return baselines.random(pool, k)
        if by == "default":
            return baselines.default(pool, self.stream.default)
        if by == "best average":
            return baselines.best_average(past, pool, len(self.codes), k)
        if by == "nearest":
            features = [meta_features(self.client(i).data) for i in range(position)]
            return baselines.nearest(past, features, meta_features(client.data), pool, k)
        return baselines.tpe(self.stream.choices, pool, k, client.evaluate, self._seed(position))

    def _past(self, position: int) -> list[Record]:
        """What was tried before this position."""
        return [Record(task.name, torch.zeros(0), task.tried, task.tried_results) for task in self.served[:position]]

    def _judged(self, position: int, client: DataOwner, recommendation: Recommendation) -> Judgement:
        """By the table where there is one, beside the default and the best average so far, which cost nothing."""
        truth, pool = self.stream.truth(self.order[position]), client.pool
        if truth is None:
            return Judgement()
        rows = {
            "best_average": baselines.best_average(self._past(position), pool, len(self.codes), self.recipe.K),
            "default": baselines.default(pool, self.stream.default),
        }
        return judged(recommendation, truth, pool, self.recipe.K, rows)

    def _ndcg(self, position: int) -> float | None:
        """How the present ranker orders the configurations for the task at this position, on fresh subsets."""
        truth = self.stream.truth(self.order[position])
        if truth is None:
            return None
        client = self.client(position)
        with seeded(self._seed(position)):
            recommendation = client.ranked(self.platform.ranker, self.recipe.K)
        return ndcg(recommendation.scores[client.pool], truth)

    def _extract_again(self, position: int) -> None:
        """The upper bound: what the platform remembers is extracted again from pictures it should not have."""
        with torch.random.fork_rng(devices=[]):
            fresh = [vectors(self.platform.ranker, self.client(i).x, self.config) for i in range(position + 1)]
        memory = zip(self.platform.memory, fresh, strict=True)
        self.platform.memory = [replace(record, vectors=v) for record, v in memory]

    # -- kept ----------------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        if self.folder is not None:
            saved = {
                "owner": self.run_id,
                "served": [record.to_dict() for record in self.served],
                "trace": [asdict(step) for step in self.trace],
                "state": self.platform.state(),
                "at home": [[held.picks, held.vectors] for held in self.at_home],
            }
            store.save(self.folder, "stream", saved)

    def _restore(self, saved: dict[str, Any]) -> None:
        if saved["owner"] != self.run_id:
            raise ValueError(
                f"checkpoint={str(self.folder)!r} belongs to {saved['owner']}, this run is {self.run_id}: give another "
                "folder, or delete that one"
            )
        self.served = [TaskRecord.from_dict(record) for record in saved["served"]]
        self.trace = [Step(**step) for step in saved["trace"]]
        self.platform.restore(saved["state"])
        self.at_home = [HeldBack(*held) for held in saved["at home"]]

    def outcome(self) -> HyperFDOutcome:
        """What is left after the last task; a measurement that fails becomes a note of the report."""
        attempts, stream = Attempts(), self.stream
        context = {
            "choices": [list(choice) for choice in stream.choices],
            "codes": self.codes,
            "sample": list(self.sample),
            "decisions": list(stream.decisions or (f"decision {k}" for k in range(len(stream.choices[0])))),
            "metric": stream.metric,
            "unit": stream.unit,
            "stream": stream.name,
            "truth": None if stream.scores is None else stream.scores[self.order],
            "now": (attempts("forgetting", self._now) if self.learns else None) or [],
            "raw": attempts("bytes of the data", self._raw) or [],
            "raw as": self.sent_as,
        }
        report = reported(repr(self.recipe), self._report, context, attempts)
        return HyperFDOutcome(
            recipe=self.recipe,
            report=report,
            trace=tuple(self.trace),
            served=self.served,
            state=self.platform.state() if self.learns else {},
            context=context,
            made=made(self.seed, self.stream.name, network="a ranker"),
        )

    def _now(self) -> list[float | None]:
        return [self._ndcg(position) for position in range(len(self.served))]

    def _raw(self) -> list[int]:
        return [raw_bytes(self.client(position).data) for position in range(len(self.served))]

    def _report(self, context: dict[str, Any], attempts: Attempts) -> Report:
        served, sent_as = self.served, context["raw as"]
        pools = sum(len(self.stream.pool(task)) for task in self.order)
        sent = sum(record.sent for record in served)
        rows = [
            Row("trials", pools, sum(len(record.tried) for record in served)),
            Row(f"bytes as {sent_as}, as sent", sum(context["raw"]) or None, sent, "bytes"),
            *(self._trained_rows() if context["truth"] is None else self._table_rows(context["now"])),
        ]
        notes = [
            f"before: all configurations trained, all data sent as {sent_as}, what as many random choices "
            "leave on average, the order before anything was learned; regrets are means over all tasks but the first",
            "an upload is as large as the model, however small the data set",
            f"the default is one configuration, not {self.recipe.K}; the best average sees what this run has tried, "
            "recommended trials too",
        ]
        if any(step.stage == "drift" for step in self.trace):
            notes.append("error of the maps: of the last on its client's own subsets, of all on earlier clients'")
        if isinstance(self.recipe.noise, tuple):
            notes.append(
                "each client's message is ({:g}, {:g})-differentially private for one picture in another's place, its "
                "results and the number of its pictures aside".format(*self.recipe.noise)
            )
        return Report(repr(self.recipe), tuple(rows), (*notes, *filter(None, [self.stream.note]), *attempts.notes))

    def _trained_rows(self) -> list[Row]:
        best = [max(record.results) for record in self.served]
        return [Row(self.stream.metric, best[0], sum(best) / len(best), self.stream.unit, "learned", 2)]

    def _table_rows(self, now: Sequence[float | None]) -> list[Row]:
        served, unit = self.served, self.stream.unit
        later = served[1:]  # before the first task nobody knows anything
        rows = [
            Row("regret", _mean(later, "random"), _mean(later, "regret"), unit, "learned", 2),
            Row("regret, first task", served[0].random, served[0].regret, unit, "learned", 2),
            Row("regret of the default", None, _mean(later, "default"), unit, "learned", 2),
            Row("regret of the best average", None, _mean(later, "best_average"), unit, "learned", 2),
            Row("ndcg@10", served[0].ndcg, _mean(later, "ndcg"), "", "learned", 3),
        ]
        if (lost := forgetting(served, now)) is not None:
            rows.append(Row("forgetting", None, lost, "%", "learned", 1))
        if last := [step.terms for step in self.trace if step.stage == "drift"][-1:]:
            rows.append(Row("error of the maps", last[0]["own error"], last[0]["mean"], "", "learned", 5))
        return rows


def fingerprint(stream: Stream) -> str:
    """A short hash of what a stream asks, and of what its table holds; a live one's journal knows its data."""
    payload = repr((stream.names, stream.choices, None if stream.scores is None else stream.scores.tolist()))
    return hashlib.sha256(payload.encode()).hexdigest()[:12]


def _mean(served: Sequence[TaskRecord], name: str) -> float:
    """Of a judgement's field; 'served' have a table."""
    return sum(getattr(record, name) for record in served) / len(served)
