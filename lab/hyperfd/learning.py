"""One round of learning, where the pictures are: ranking, triplet, synaptic losses, then the map between versions."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from ..core.training import Stage, Step, descend
from . import equations as eq
from .features import subsets
from .layers import Extractor, FixedExtractor, Ranker

REPLAYED = 8  # earlier lists in each step, each counting as much as the present one
FRESH_EVERY = 3  # steps from one fresh pass of the extractor to the next; between them vectors from before the round
COMMON_LR, EXTRACTOR_LR = 5.0, 0.02  # times the rate: what holds for all data sets is learned fast, features slowly
DECAY = 0.1  # of weights
FITTED_ON, CHECKED_ON = 24, 8  # subsets that fit the transformation, and those that judge it
MOST_ERROR_SUM = 0.5  # a record whose transformations' errors sum to more is not learned from any longer
MARGIN = 0.3  # of the triplet loss, between vectors of length one
RIDGE = 1e-2  # of the map between versions


@dataclass(frozen=True)
class Record:
    """What the platform keeps of a task: meta-vectors (R, d) in the present version, rows and their results.

    error is what the record's vectors have lost, where its client measures that at home (`drift`); otherwise the sum of
    the transformations' errors: as the clients that sent them say, or as a guarded platform measures them on pictures
    of its own, which is no estimate of it. client is whose it is, best the highest NDCG by which any version has
    ordered its results; neither is offered to others.
    """

    name: str
    vectors: Tensor
    rows: tuple[int, ...]
    results: tuple[float, ...]
    images: int = 0
    boxes: int = 0
    error: float = 0.0
    client: str = ""
    best: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The record as a platform's folder holds it."""
        saved = asdict(self) | {"rows": list(self.rows), "results": list(self.results)}
        return {"pictures" if name == "images" else name: value for name, value in saved.items()}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "Record":
        """The record that `to_dict` wrote."""
        fields: dict[str, Any] = {"images" if name == "pictures" else name: value for name, value in saved.items()}
        return cls(**fields | {"rows": tuple(fields["rows"]), "results": tuple(fields["results"])})


@dataclass(frozen=True)
class RoundConfig:
    """How a round learns: the fields of the recipe that it needs.

    sends_map=False sends the identity for the map between versions, which then tells nothing; its error is measured.
    is_private: the round sees no picture, only the record's released vectors, and the extractor stays as it is.
    portfolio: whether what is recommended is diverse, see `portfolio`, or what has the highest scores.
    """

    R: int = 8
    m: int = 32
    steps: int = 300
    lr: float = 2e-3
    triplet: float = 0.1
    si: float = 0.1
    stale: str = "transform"
    features: str = "learned"
    sends_map: bool = True
    is_private: bool = False
    portfolio: bool = True

    def identity(self) -> str:
        """What names these settings in a platform's folder, in words that must not change: folders are known by it."""
        fields = asdict(self)
        fields["aligned"] = fields.pop("sends_map")
        del fields["is_private"], fields["portfolio"]  # a client's own affair
        return f"Learning({', '.join(f'{name}={value!r}' for name, value in fields.items())})"

    def ranker(self, sample: torch.Size, codes: int) -> Ranker:
        """A new ranker for data sets of such samples and configurations of so many codes."""
        if self.features == "handmade":
            return Ranker(FixedExtractor(sample[-1]), codes)
        return Ranker(Extractor(sample, spread=self.features != "mean"), codes)

    def learns_extractor(self) -> bool:
        """Whether a round changes the extractor, and with it the space of the meta-vectors."""
        return self.features in ("learned", "mean") and not self.is_private


@dataclass
class Synapses:
    """Synaptic Intelligence: how much each weight mattered so far (Omega), and where the last task left it (then)."""

    Omega: list[Tensor]
    then: list[Tensor]
    omega: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, weights: Sequence[Tensor]) -> "Synapses":
        """Of weights that have not learned any task yet."""
        return cls([torch.zeros_like(w) for w in weights], [w.detach().clone() for w in weights])

    def begin(self, weights: Sequence[Tensor]) -> None:
        """A task begins: its path starts here."""
        self.then = [w.detach().clone() for w in weights]
        self.omega = [torch.zeros_like(w) for w in weights]
        self.last = [w.detach().clone() for w in weights]

    def note(self, weights: Sequence[nn.Parameter], strength: float) -> None:
        """After an update: Card (6), with the gradient of the task alone, the penalty's own taken off."""
        for k, w in enumerate(weights):
            if w.grad is None:
                continue
            gradient = w.grad - 2 * strength * self.Omega[k] * (self.last[k] - self.then[k])
            self.omega[k] = eq.path_importance(self.omega[k], gradient, w.detach() - self.last[k])
            self.last[k] = w.detach().clone()

    def end(self, weights: Sequence[Tensor]) -> None:
        """A task ends: Card (7)."""
        changes = [w.detach() - then for w, then in zip(weights, self.then, strict=True)]
        self.Omega = [eq.consolidated(*parts) for parts in zip(self.Omega, self.omega, changes, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        return {"Omega": self.Omega, "then": self.then, "omega": self.omega, "last": getattr(self, "last", [])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.Omega, self.then, self.omega, self.last = (list(state[k]) for k in ("Omega", "then", "omega", "last"))


@dataclass(frozen=True)
class RoundData:
    """What a round learns from: samples x (k, ...) and trials of this client, records of earlier ones, codes (n, F).

    `memory_samples`, the samples of each record of the memory, cross the privacy boundary: only the upper bound, which
    learns from all data jointly, has them.
    """

    x: Tensor
    record: Record
    memory: Sequence[Record]
    codes: Tensor
    memory_samples: Sequence[Tensor] = ()


@dataclass(frozen=True)
class RoundResult:
    """What a round of learning gives: the new ranker, its synapses, the map from the old vectors and its error."""

    ranker: Ranker
    synapses: Synapses
    D: Tensor
    error: float
    trace: tuple[Step, ...]


def train_round(
    before: Ranker,
    synapses: Synapses,
    data: RoundData,
    config: RoundConfig,
    *,
    folder: Path | None = None,
    run_id: str = "",
    progress: bool = False,
) -> RoundResult:
    """Minimise ranking + triplet + synaptic losses on this client's data, replaying the memory; what came in stays.

    In a folder the round is kept as it goes, under its run_id, and continues there after a kill.
    """
    ranker, synapses = copy.deepcopy(before), copy.deepcopy(synapses)
    adam = _optimiser(ranker, config)
    weights = list(ranker.parameters())
    synapses.begin(weights)
    stage = Stage(folder, "learning", run_id, every=1000, ranker=ranker, adam=adam, synapses=synapses)
    losses = _RoundLosses(ranker, synapses, data, config)

    def terms(_: None) -> dict[str, Tensor]:
        return losses(is_fresh=len(stage.trace) % FRESH_EVERY == 0)

    ranker.train()
    for _ in descend(terms, _Endless(), adam, stage, steps=config.steps, progress=progress):
        synapses.note(weights, config.si)
    synapses.end(weights)
    ranker.eval()
    D, error = _transformation(before, ranker, data.x, config)
    return RoundResult(ranker, synapses, D, error, tuple(stage.trace))


def vectors(ranker: Ranker, x: Tensor, config: RoundConfig, count: int | None = None) -> Tensor:
    """The meta-vectors (R, d) of random subsets of a data set's samples; `count` of them in place of R."""
    with torch.no_grad():
        if config.features == "handmade":
            return _fresh_vectors(ranker, x, count or config.R, config)
        return _pooled(ranker, x, subsets(torch.arange(len(x)), count or config.R, config.m))


def map_records(memory: Sequence[Record], D: Tensor, error: float, config: RoundConfig) -> list[Record]:
    """The records after a new version of the extractor: their vectors through its transformation, as `stale` says."""
    if config.stale == "transform":
        return [replace(r, vectors=eq.transformed(r.vectors, D), error=r.error + error) for r in memory]
    return list(memory) if config.stale in ("reuse", "pooled") else []


def map_error(before: Ranker, after: Ranker, x: Tensor, D: Tensor, config: RoundConfig) -> float:
    """The error of a map between two models on random subsets of samples that took no part in it, Card (11)."""
    with torch.no_grad():
        picks = subsets(torch.arange(len(x)), CHECKED_ON, config.m)
        return float(eq.transformation_error(_pooled(before, x, picks), _pooled(after, x, picks), D))


# -- the losses of a step ----------------------------------------------------------------------------------------------


class _RoundLosses:
    """The terms of one step: the ranking loss of the present list, those of earlier lists, and two regularisers."""

    def __init__(self, ranker: Ranker, synapses: Synapses, data: RoundData, config: RoundConfig) -> None:
        self.ranker, self.synapses, self.data, self.config = ranker, synapses, data, config
        self.weights = list(ranker.parameters())
        samples: Sequence[Tensor | None] = data.memory_samples or [None] * len(data.memory)
        self.replayable = [
            (record, x, _list(record))
            for record, x in zip(data.memory, samples, strict=True)
            if record.error <= MOST_ERROR_SUM and len(record.rows) > 1
        ]
        self.present = _list(data.record)
        extractor = ranker.extractor  # its handcrafted features (k, 6) are the same in each step
        self.handcrafted = None
        if isinstance(extractor, Extractor) and not config.is_private:
            self.handcrafted = extractor.handcrafted(data.x)

    def __call__(self, is_fresh: bool) -> dict[str, Tensor]:
        """By name; a fresh step passes pictures through the extractor, the others take vectors from before the round.

        The present list counts as much as each of the replayed ones.
        """
        v = self._present_vectors(is_fresh)  # (2, d), of disjoint subsets, or (1, d)
        replayed = [self.replayable[i] for i in torch.randperm(len(self.replayable))[:REPLAYED].tolist()]
        old = [self._old_vector(record, x) for record, x, _ in replayed]  # (1, d) each
        lists = [self.present] * len(v) + [old_list for *_, old_list in replayed]
        losses = _ranking_losses(self.ranker, torch.cat([v, *old]), lists, self.data.codes)
        terms = {"ranking": losses[: len(v)].mean() / (1 + len(replayed))}
        if replayed:
            terms["replay"] = losses[len(v) :].sum() / (1 + len(replayed))
            if is_fresh and self.config.triplet and self.config.learns_extractor():
                negatives = torch.stack([_random_vector(record) for record, *_ in replayed])  # (replayed, d)
                terms["triplet"] = self.config.triplet * eq.triplet_loss(v[0], v[1], negatives, MARGIN)
        if self.config.si:
            Omega, then = self.synapses.Omega, self.synapses.then
            terms["synaptic"] = eq.synaptic_penalty(Omega, self.weights, then, self.config.si)
        return terms

    def _present_vectors(self, is_fresh: bool) -> Tensor:
        """Two of this client's meta-vectors (2, d), through which the extractor learns where they are fresh."""
        if is_fresh and not self.config.is_private:
            return _fresh_vectors(self.ranker, self.data.x, 2, self.config, self.handcrafted)
        v = self.data.record.vectors
        return v[torch.randperm(len(v))[:2]]

    def _old_vector(self, record: Record, x: Tensor | None) -> Tensor:
        """One of a record's vectors (1, d), or a fresh one of its samples where these are at hand."""
        return _random_vector(record)[None] if x is None else _fresh_vectors(self.ranker, x, 1, self.config)


def _optimiser(ranker: Ranker, config: RoundConfig) -> AdamW:
    """AdamW with three rates; an extractor that is not to learn is frozen."""
    common, extractor = list(ranker.common.parameters()), list(ranker.extractor.parameters())
    if not config.learns_extractor():
        for p in extractor:
            p.requires_grad_(False)
        extractor = []
    grouped = {id(p) for p in (*common, *extractor)}
    others = [p for p in ranker.parameters() if p.requires_grad and id(p) not in grouped]
    groups: list[dict[str, Any]] = [
        {"params": common, "lr": COMMON_LR * config.lr},
        {"params": extractor, "lr": EXTRACTOR_LR * config.lr},
        {"params": others},
    ]
    return AdamW(groups, config.lr, weight_decay=DECAY, fused=True)


def _fresh_vectors(
    ranker: Ranker, x: Tensor, count: int, config: RoundConfig, handcrafted: Tensor | None = None
) -> Tensor:
    """Meta-vectors (count, d) of random subsets, to be learned through; handcrafted ones are alike for every subset."""
    if config.features == "handmade":
        return ranker.extractor(x[:1].expand(count, -1))
    picks = subsets(torch.arange(len(x)), count, config.m)  # (count, m)
    return ranker.extractor(x[picks], None if handcrafted is None else handcrafted[picks])


def _pooled(ranker: Ranker, x: Tensor, picks: Tensor) -> Tensor:
    """Meta-vectors (R, d) of given subsets (R, m), each sample passed through the extractor once."""
    assert isinstance(ranker.extractor, Extractor)
    return eq.meta_vector(ranker.extractor.features(x)[picks], ranker.extractor.spread)


def _random_vector(record: Record) -> Tensor:
    """One of a record's vectors, (d,)."""
    return record.vectors[int(torch.randint(len(record.vectors), ()))]


def _list(record: Record) -> tuple[Tensor, Tensor]:
    """The rows of a record and how relevant each is, both (n,)."""
    return torch.tensor(record.rows), eq.relevance(torch.tensor(record.results))


def _ranking_losses(ranker: Ranker, v: Tensor, lists: Sequence[tuple[Tensor, Tensor]], codes: Tensor) -> Tensor:
    """The ranking loss of each list (rows, relevance) by its vector of v (b, d): (b,); those of one length together."""
    lengths = [len(rows) for rows, _ in lists]
    losses: list[Tensor] = [v.new_zeros(())] * len(lists)
    for length in set(lengths):
        at = [k for k, n in enumerate(lengths) if n == length]
        rows, r = (torch.stack(part) for part in zip(*(lists[k] for k in at), strict=True))  # (len(at), length) both
        for k, loss in zip(at, eq.ranking_loss(ranker.scores(v[at], codes[rows]), r), strict=True):
            losses[k] = loss
    return torch.stack(losses)


def _transformation(before: Ranker, after: Ranker, x: Tensor, config: RoundConfig) -> tuple[Tensor, float]:
    """The map between two versions, Card (9), and its error on held-out subsets of this client, Card (11)."""
    width = before.extractor.width
    if not config.learns_extractor():
        return torch.zeros(width, width), 0.0
    with torch.no_grad():
        picks = subsets(torch.arange(len(x)), FITTED_ON + CHECKED_ON, config.m)
        old, new = _pooled(before, x, picks), _pooled(after, x, picks)  # (FITTED_ON + CHECKED_ON, d) both
        identity = torch.zeros(width, width)  # τ(v) = v + v D
        D = eq.transformation(old[:FITTED_ON], new[:FITTED_ON], RIDGE) if config.sends_map else identity
        return D, float(eq.transformation_error(old[FITTED_ON:], new[FITTED_ON:], D))


class _Endless:
    """Batches without content: what a step needs it draws itself."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[None]:
        yield None
