"""AceNAS's procedure: an encoder learns from weak labels, then ranks from a few true ones, gathered in rounds."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core import imports, ranking_metrics, tasks
from ..core.fields import Allowed, by_name, integer, one_of, real, validate
from ..core.machine import device_of
from ..core.report import Report, Row, attempt, reported
from ..core.running import digest, made, validate_kind
from ..core.spaces.architectures import Space
from ..core.stopping import held
from ..core.training import Stage, Step, seeded
from . import fronts, metrics, search
from .fronts import CostObjective
from .outcome import AceNASOutcome
from .scorers import SETTINGS, BoostedScorer, FitConfig, GraphScorer

GRAPH_SCORERS = ("gcn", "brp", "vanilla")
BASELINES = (*search.BASELINES, "nsga2")
SCORERS = (*GRAPH_SCORERS, "lightgbm", *BASELINES)
LOSSES = ("lambdarank", "ranknet", "mse", "kl")
PUBLISHED = {
    "benchmarks": dict(rank_by="label_ascending", pretrain_epochs=300, pretrain_batch=20),
    "brp-nas": dict(scorer="brp", loss="kl", pretrain=("macs",), pretrain_epochs=300, pretrain_batch=64, epochs=250),
    "neural-predictor": dict(scorer="vanilla", loss="mse", pretrain="none", rounds=1),
}


def _limit(value: Any) -> bool:
    return value is None or (
        isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and _positive(value[1])
    )


def _weak_labels(value: Any) -> bool:
    if isinstance(value, str):
        return value in ("all", "accuracy", "costs", "none")
    return isinstance(value, tuple) and bool(value) and all(isinstance(name, str) for name in value)


def _objectives(value: Any) -> bool:
    return value is None or (
        isinstance(value, tuple) and len(value) == 2 and all(isinstance(name, str) and name for name in value)
    )


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


@by_name
@dataclass(frozen=True, kw_only=True)
class AceNAS:
    """Learning to rank ace architectures with weak supervision (Zhang et al., 2021, arXiv 2108.03001).

    budget: architectures that are trained to learn from, in so many rounds; then the top predicted ones are trained as
    well, and the best of all is picked. scorer: 'gcn' (chains of blocks get the sizes for chains), 'lightgbm', the
    predictors 'brp' and 'vanilla', or a search without one: 'random',
    'evolution', 'local search', 'tpe', which trains budget + top.
    loss: 'lambdarank', 'ranknet', 'mse' or 'kl'. rank_by: LambdaRank's ranks come from the 'score', or as in the
    released code from 'label_ascending'. scale: the relevance of the best. epochs: passes over the trained ones a
    round. pretrain: the weak labels to begin with: 'all', 'accuracy' (a super-net's), 'costs', 'none' or their names,
    ('macs',); in pretrain_epochs passes of batches of pretrain_batch. limit: ('latency_ms', 5.0) leaves out what costs
    more. objectives: ('accuracy', 'latency') seeks all that none beats in both label and cost: the outcome keeps the
    front and how much it covers, and what is trained next is spread along the front that is predicted. The rival for
    this is scorer='nsga2'.
    """

    budget: int = 100
    rounds: int = 5
    top: int = 10
    scorer: str = "gcn"
    loss: str = "lambdarank"
    rank_by: str = "score"
    scale: float = 20.0
    epochs: int = 300
    pretrain: str | tuple[str, ...] = "all"
    pretrain_epochs: int = 40
    pretrain_batch: int = 64
    limit: tuple[str, float] | None = None
    objectives: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        for name in ("limit", "objectives", "pretrain"):
            if isinstance(getattr(self, name), list):  # as files hold it
                object.__setattr__(self, name, tuple(getattr(self, name)))
        validate(
            self,
            budget=integer(2),
            rounds=integer(1),
            top=integer(1),
            scorer=one_of(*SCORERS),
            loss=one_of(*LOSSES),
            rank_by=one_of("score", "label_ascending"),
            scale=real(1, 30),
            epochs=integer(1),
            pretrain=Allowed(_weak_labels, "'all', 'accuracy', 'costs', 'none' or names of weak labels"),
            pretrain_epochs=integer(1),
            pretrain_batch=integer(2),
            limit=Allowed(_limit, "None or (name of a cost, a number > 0)"),
            objectives=Allowed(
                _objectives, "None or (what is learned, name of a cost), such as ('accuracy', 'latency')"
            ),
        )
        validate(self, rounds=integer(1, self.budget // 2))
        if self.scorer == "nsga2" and self.objectives is None:
            raise ValueError("AceNAS: scorer='nsga2' weighs two objectives: give objectives=('accuracy', 'latency')")

    @classmethod
    def paper(cls, name: str) -> "AceNAS":
        """Released settings by name: 'benchmarks', and of the predictors it is compared with 'brp-nas' and
        'neural-predictor'.
        """
        if name not in PUBLISHED:
            raise ValueError(f"name={name!r}: the released settings are kept for {', '.join(PUBLISHED)}")
        return cls(**PUBLISHED[name])  # type: ignore[arg-type]

    def run(
        self,
        task: Space | None = None,
        *,
        seed: int = 0,
        device: str | torch.device | None = None,
        progress: bool = True,
        checkpoint: str | Path | None = None,
    ) -> AceNASOutcome:
        """Search the space; a run that is begun again with the same checkpoint folder trains nothing twice."""
        given = tasks.cells() if task is None else task
        validate_kind(self, given, Space, "lab.Space(graphs=..., train=...)")
        imports.complete()
        device = None if device is None else device_of(device)
        order = given.mixed(seed)  # ties and draws must not hang on the order in which the table happens to stand
        space = given[order]
        trace: list[Step] = []
        with seeded(seed), held(checkpoint):
            folder = Path(checkpoint) if checkpoint is not None else None
            if folder is not None:  # trainings that are kept are this seed's and this space's
                run_id = f"AceNAS with seed {seed} on {space.name} (graphs {digest(repr(space.graphs))})"
                Stage(folder, "space", run_id).save()
            pool, cost = self._pool(space), self._cost(space)

            def evaluate(rows: Sequence[int]) -> list[float]:
                with seeded(seed):  # what a training draws must not move the search
                    return space.evaluate(rows, seed, folder / "trained" if folder else None, progress)

            choose = search.best if cost is None else partial(fronts.best_spread, space.costs[cost])
            if self.scorer in BASELINES:
                trained = self._baseline(cost, space)(space, pool, self.budget + self.top, evaluate, seed)
                rounds = [search.only_round(len(space), trained)]
            else:
                scorer, trace = self._scorer(space, seed, device, folder, progress)
                rounds = list(search.half_exploit(scorer, pool, self.budget, self.rounds, evaluate, seed, choose))
                trained = self._finish(rounds[-1], pool, evaluate, choose)
            objective = None if cost is None else CostObjective.of(space, pool, cost, list(trained.values()))
            steps, note = attempt("rounds", _steps, space, rounds, objective)
            trace += steps or []
            pick = max(trained, key=trained.__getitem__)
            report = reported(repr(self), self._report, space, pool, rounds[-1], trained, pick, objective)
            report = replace(report, notes=(*report.notes, note)) if note else report
        rows = torch.tensor(order)  # of the table as it was given, by the rows of the mixed space
        return AceNASOutcome(
            recipe=self,
            report=report,
            trace=tuple(trace),
            rows=rows[list(trained)],
            labels=torch.tensor(list(trained.values()), dtype=torch.float64),
            learned=[len(r.rows) for r in rounds],
            scores=torch.stack([r.scores for r in rounds])[:, rows.argsort()],
            pick=space.names[pick],
            ranking=[space.names[row] for row in search.best(rounds[-1].scores, pool, 100)],
            context=_context(space, pool, rounds) | {"pool": rows[pool], "objective": cost, **_columns(given)},
            made=made(seed, space.name, network=f"the space {space.name}", metric=space.metric, unit=space.unit),
        )

    def _pool(self, space: Space) -> list[int]:
        """The rows within the limit; the budget must fit into them."""
        rows = list(range(len(space)))
        if self.limit is not None:
            name, most = self.limit
            if name not in space.costs:
                names = ", ".join(space.costs) or "no costs"
                raise ValueError(f"AceNAS: limit={self.limit}: this space knows {names}")
            rows = (space.costs[name] <= most).nonzero()[:, 0].tolist()
        if len(rows) < self.budget + self.top:
            within = f" within limit={self.limit}" if self.limit else ""
            raise ValueError(
                f"AceNAS: budget={self.budget} with top={self.top} is more than the {len(rows)} architectures of the "
                f"space{within}: lower budget"
            )
        return rows

    def _cost(self, space: Space) -> str | None:
        """The cost that is the second objective, by its name or the beginning of it."""
        if self.objectives is None:
            return None
        label, name = self.objectives
        if label not in ("accuracy", space.metric):
            raise ValueError(f"AceNAS: objectives={self.objectives}: what is learned of this space is {space.metric!r}")
        alike = [name] if name in space.costs else [cost for cost in space.costs if cost.startswith(name)]
        if len(alike) != 1:
            names = ", ".join(alike or space.costs) or "no costs"
            verb = "may mean" if alike else "this space knows"
            raise ValueError(f"AceNAS: objectives={self.objectives}: {name!r} {verb} {names}: give one of them")
        return alike[0]

    def _baseline(self, cost: str | None, space: Space) -> Callable[..., dict[int, float]]:
        """A search without a scorer; the one for two objectives is told the second."""
        if self.scorer == "nsga2":
            assert cost is not None
            return partial(fronts.nsga2, costs=space.costs[cost])
        return search.BASELINES[self.scorer]

    def _scorer(
        self, space: Space, seed: int, device: torch.device | None, folder: Path | None, progress: bool
    ) -> tuple[BoostedScorer | GraphScorer, list[Step]]:
        """The scorer, pre-trained on the weak labels, and the steps of that."""
        config = FitConfig(self.loss, self.rank_by, self.scale, metrics.LOW, self.epochs)
        name = "chain" if space.chain and self.scorer == "gcn" else self.scorer
        boosted = name == "lightgbm"
        scorer = BoostedScorer(space, config) if boosted else GraphScorer(space, SETTINGS[name], config, device)
        weak = self._weak(space)
        if not weak:
            return scorer, []
        epochs, batch = self.pretrain_epochs, self.pretrain_batch  # what pre-training hangs on names its checkpoint
        run_id = f"{name}, {epochs} passes in batches of {batch}, seed {seed}, weak labels {_digest(weak)}"
        return scorer, scorer.pretrain(weak, epochs, batch, folder, run_id, progress)

    def _weak(self, space: Space) -> dict[str, Tensor]:
        """The weak labels to begin with: those named, or those that are costs, those that are not, or both."""
        if isinstance(self.pretrain, tuple):
            if missing := [name for name in self.pretrain if name not in space.weak]:
                raise ValueError(
                    f"AceNAS: pretrain={self.pretrain}: {missing[0]!r} is not a weak label of this space, which knows "
                    f"{', '.join(space.weak) or 'none'}"
                )
            return {name: space.weak[name] for name in self.pretrain}
        wanted = {"all": (True, False), "accuracy": (False,), "costs": (True,), "none": ()}[self.pretrain]
        return {name: values for name, values in space.weak.items() if (name in space.costs) in wanted}

    def _finish(
        self, last: search.Round, pool: list[int], evaluate: search.Evaluate, choose: search.Choose
    ) -> dict[int, float]:
        """The last step: the top predicted ones are trained as well; the labels of all that was trained, by row."""
        labels = dict(zip(last.rows, last.labels, strict=True))
        fresh = [row for row in choose(last.scores, pool, self.top) if row not in labels]
        return labels | dict(zip(fresh, evaluate(fresh), strict=True))

    def _report(
        self,
        space: Space,
        pool: list[int],
        last: search.Round,
        trained: dict[int, float],
        pick: int,
        objective: CostObjective | None,
    ) -> Report:
        rows = [Row("trainings", len(pool), len(trained))]
        if space.truth is None:
            rows.append(Row(space.metric, None, trained[pick], space.unit, "learned", 2))
        else:
            truth = space.truth[pool]
            chance, optimum = ranking_metrics.expected_best(truth, len(trained)), float(truth.max())
            value = float(space.truth[pick])
            rows += [
                Row(space.metric, chance, value, space.unit, "learned", 2),
                Row("regret", optimum - chance, optimum - value, space.unit, "learned", 2),
                *_rank_rows(space, pool, last.scores),
            ]
        if objective is not None:
            share = objective.share(list(trained), list(trained.values()), space.truth)
            by_chance = None if space.truth is None else objective.by_chance(pool, len(trained), space.truth)
            rows.append(Row("hypervolume", by_chance, share, "%", "learned", 1))
        rows += [
            Row(name, float(values[pool].median()), float(values[pick]), "ms" if "_ms" in name else "", "exact")
            for name, values in space.costs.items()
            if "latency" not in name
        ]
        return Report(repr(self), tuple(rows), tuple(self._notes(space, pick, objective)))

    def _notes(self, space: Space, pick: int, objective: CostObjective | None) -> list[str]:
        notes = [f"picked {space.names[pick]}"]
        if objective is not None:
            of = "what the front of the table covers" if space.truth is not None else "the box of what was trained"
            notes.append(f"hypervolume: what the trained ones cover of {space.metric} and {objective.name}, of {of}")
        if space.truth is not None:
            notes.append("before: what as many random trainings find on average; the order of one weak label alone")
        if self.pretrain != "none" and self.scorer not in BASELINES and not self._weak(space):
            notes.append(f"pretrain={self.pretrain!r}: the space has no such weak labels, nothing was pre-trained")
        return notes


def _rank_rows(space: Space, pool: list[int], scores: Tensor) -> list[Row]:
    """How scores rank what may be chosen, beside the first weak label alone."""
    assert space.truth is not None
    truth, weak = space.truth[pool], next((values[pool] for values in space.weak.values()), None)
    measures = (("ndcg@10", metrics.ndcg), ("kendall tau", ranking_metrics.kendall_tau))
    return [
        Row(name, None if weak is None else measure(weak, truth), measure(scores[pool], truth), "", "learned", 3)
        for name, measure in measures
    ]


def _digest(weak: dict[str, Tensor]) -> str:
    """The names of weak labels, and what tells their values from others."""
    content = b"".join(values.numpy().tobytes() for values in weak.values())
    return f"{', '.join(weak)} ({hashlib.sha256(content).hexdigest()[:8]})"


def _steps(space: Space, rounds: list[search.Round], objective: CostObjective | None) -> list[Step]:
    return [_step(space, index, round, objective) for index, round in enumerate(rounds)]


def _step(space: Space, index: int, round: search.Round, objective: CostObjective | None) -> Step:
    terms = {"trained": float(len(round.rows)), "best label": max(round.labels)}
    if round.collapsed:
        terms["collapsed"] = 1.0
    if space.truth is not None:
        terms["ndcg@10"] = metrics.ndcg(round.scores, space.truth)
        terms["kendall tau"] = ranking_metrics.kendall_tau(round.scores, space.truth)
    if objective is not None:
        terms["hypervolume"] = objective.share(round.rows, round.labels, space.truth)
    return Step("rounds", index, terms)


def _context(space: Space, pool: list[int], rounds: list[search.Round]) -> dict[str, Any]:
    """What views need besides the table's columns: the graphs of the best of each round, and what is measured."""
    shown = sorted({row for round in rounds for row in search.best(round.scores, pool, 10)})
    graphs = {space.names[row]: [[list(g.operators), list(g.edges)] for g in space.graphs[row]] for row in shown}
    return {"metric": space.metric, "unit": space.unit, "space": space.name, "graphs": graphs}


def _columns(space: Space) -> dict[str, Any]:
    """What views need of the table, row by row."""
    return {"truth": space.truth, "costs": dict(space.costs), "names": list(space.names)}
