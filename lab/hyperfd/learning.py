"""One round of learning, where the pictures are: ranking, triplet, synaptic losses, then the map between versions."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from ..core.training import Stage, Step, descend
from . import equations as eq
from .layers import Extractor, Given, Ranker
from .looking import subsets

REPLAYED = 8  # earlier lists in each step, each counting as much as the present one
LOOKS = 3  # every so many steps pictures are looked at anew, in the others vectors from before the round serve
COMMON, SLOW = 5.0, 0.02  # how much faster what holds for all data sets is learned than the rest, and the extractor
DECAY = 0.1  # of weights
PAIRS, CHECKED = 24, 8  # subsets that fit the transformation, and those that judge it
LIMIT = 0.5  # a record whose transformations' errors sum to more is not learned from any longer
MARGIN = 0.3
RIDGE = 1e-2  # of the map between versions


@dataclass(frozen=True)
class Record:
    """What the platform keeps of a task: meta-vectors (R, d) in the present version, rows and their results.

    error sums the transformations' errors on the pictures of the clients that sent them. What the record's own vectors
    have lost is not known, since its pictures are gone: a map that fails where it was fitted is only the worst case.
    """

    name: str
    vectors: Tensor
    rows: tuple[int, ...]
    results: tuple[float, ...]
    pictures: int = 0
    boxes: int = 0
    error: float = 0.0


@dataclass(frozen=True)
class Learning:
    """How a round learns: the fields of the recipe that it needs.

    aligned=False sends the identity for the map between versions, which then tells nothing; its error is measured.
    """

    R: int = 8
    m: int = 32
    steps: int = 300
    lr: float = 2e-3
    triplet: float = 0.1
    si: float = 0.1
    stale: str = "transform"
    features: str = "learned"
    aligned: bool = True

    def ranker(self, sample: torch.Size, codes: int) -> Ranker:
        """A new ranker for data sets of such samples and configurations of so many codes."""
        if self.features == "handmade":
            return Ranker(Given(sample[-1]), codes)
        return Ranker(Extractor(sample, spread=self.features != "mean"), codes)

    def learns_extractor(self) -> bool:
        return self.features in ("learned", "mean")


@dataclass
class Synapses:
    """Synaptic Intelligence: how much each weight mattered so far (Omega), and where the last task left it (then)."""

    Omega: list[Tensor]
    then: list[Tensor]
    omega: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, weights: Sequence[Tensor]) -> "Synapses":
        return cls([torch.zeros_like(w) for w in weights], [w.detach().clone() for w in weights])

    def begin(self, weights: Sequence[Tensor]) -> None:
        """A task begins: its path starts here."""
        self.then = [w.detach().clone() for w in weights]
        self.omega = [torch.zeros_like(w) for w in weights]
        self.last = [w.detach().clone() for w in weights]

    def note(self, weights: Sequence[nn.Parameter], strength: float) -> None:
        """After an update: Eq. (6), with the gradient of the task alone, the penalty's own taken off."""
        for k, w in enumerate(weights):
            if w.grad is None:
                continue
            gradient = w.grad - 2 * strength * self.Omega[k] * (self.last[k] - self.then[k])
            self.omega[k] = eq.path_importance(self.omega[k], gradient, w.detach() - self.last[k])
            self.last[k] = w.detach().clone()

    def end(self, weights: Sequence[Tensor]) -> None:
        """A task ends: Eq. (7)."""
        changes = [w.detach() - then for w, then in zip(weights, self.then, strict=True)]
        self.Omega = [eq.consolidated(*parts) for parts in zip(self.Omega, self.omega, changes, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        return {"Omega": self.Omega, "then": self.then, "omega": self.omega, "last": getattr(self, "last", [])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.Omega, self.then, self.omega, self.last = (list(state[k]) for k in ("Omega", "then", "omega", "last"))


@dataclass(frozen=True)
class Learned:
    """What a round of learning gives: the new ranker, its synapses, the map from the old vectors and its error."""

    ranker: Ranker
    synapses: Synapses
    D: Tensor
    error: float
    trace: tuple[Step, ...]


def learn(
    old: Ranker, synapses: Synapses, x: Tensor, record: Record, memory: Sequence[Record], codes: Tensor,
    how: Learning, folder: Path | None = None, owner: str = "", progress: bool = False, seen: Sequence[Tensor] = (),
) -> Learned:  # fmt: skip
    """Minimise ranking + triplet + synaptic losses on this client's samples x (k, ...) and trials, replaying memory.

    With `seen`, the samples of each record of the memory, all is learned jointly: what no wall would allow.
    """
    ranker, synapses = copy.deepcopy(old), copy.deepcopy(synapses)
    learned = list(ranker.parameters()) if how.learns_extractor() else _but_extractor(ranker)
    weights = list(ranker.parameters())
    common = list(ranker.common.parameters())
    slow = list(ranker.extractor.parameters()) if how.learns_extractor() else []
    others = [p for p in learned if not any(p is one for one in (*common, *slow))]
    groups: list[dict[str, Any]] = [
        {"params": common, "lr": COMMON * how.lr}, {"params": slow, "lr": SLOW * how.lr}, {"params": others}
    ]  # fmt: skip
    adam = AdamW(groups, how.lr, weight_decay=DECAY, fused=True)
    synapses.begin(weights)
    pictures: Sequence[Tensor | None] = seen or [None] * len(memory)
    known = zip(memory, pictures, strict=True)
    replayed = [(one, its, _list(one)) for one, its in known if one.error <= LIMIT and len(one.rows) > 1]
    own = _list(record)
    stage = Stage(folder, "learning", owner, every=1000, ranker=ranker, adam=adam, synapses=synapses)
    counted = None if how.features == "handmade" else ranker.extractor.counted(x)  # type: ignore[operator]

    def terms(_: Any) -> dict[str, Tensor]:
        looks = len(stage.trace) % LOOKS == 0
        v = _looked(ranker, x, 2, how, counted) if looks else _pair(record.vectors)  # (2, d): disjoint subsets
        picks = [replayed[i] for i in torch.randperm(len(replayed))[:REPLAYED].tolist()]
        old_v = [_vector(ranker, one, how, its) for one, its, _ in picks]
        lists = [own] * len(v) + [old_list for *_, old_list in picks]
        losses = _losses(ranker, torch.cat([v, *old_v]), lists, codes)
        found = {"ranking": losses[: len(v)].mean() / (1 + len(picks))}
        if picks:
            found["replay"] = losses[len(v) :].sum() / (1 + len(picks))
            if looks and how.triplet and how.learns_extractor():
                negatives = torch.stack([one.vectors[int(torch.randint(len(one.vectors), ()))] for one, *_ in picks])
                found["triplet"] = how.triplet * eq.triplet_loss(v[0], v[1], negatives, MARGIN)
        if how.si:
            found["synaptic"] = eq.synaptic_penalty(synapses.Omega, weights, synapses.then, how.si)
        return found

    ranker.train()
    for _ in descend(terms, _Endless(), adam, stage, steps=how.steps, progress=progress):
        synapses.note(weights, how.si)
    synapses.end(weights)
    ranker.eval()
    D, error = _aligned(old, ranker, x, how)
    return Learned(ranker, synapses, D, error, tuple(stage.trace))


def vectors(ranker: Ranker, x: Tensor, how: Learning, count: int | None = None) -> Tensor:
    """The meta-vectors (R, d) of random subsets of a data set's samples."""
    with torch.no_grad():
        if how.features == "handmade":
            return _looked(ranker, x, count or how.R, how)
        return _pooled(ranker, x, subsets(torch.arange(len(x)), count or how.R, how.m))


def aged(memory: Sequence[Record], D: Tensor, error: float, how: Learning) -> list[Record]:
    """The records after a new version of the extractor: their vectors through its transformation, as stale says."""
    if how.stale == "transform":
        return [replace(one, vectors=eq.transformed(one.vectors, D), error=one.error + error) for one in memory]
    return list(memory) if how.stale in ("reuse", "pooled") else []


def _looked(ranker: Ranker, x: Tensor, count: int, how: Learning, counted: Tensor | None = None) -> Tensor:
    """Meta-vectors of random subsets, to be learned through; hand-made numbers are one vector, whatever the subset."""
    if how.features == "handmade":
        return ranker.extractor(x[:1].expand(count, -1))
    picks = subsets(torch.arange(len(x)), count, how.m)
    return ranker.extractor(x[picks], None if counted is None else counted[picks])


def _pooled(ranker: Ranker, x: Tensor, picks: Tensor) -> Tensor:
    """The same of given subsets (R, m), each sample looked at once."""
    return eq.meta_vector(ranker.extractor.picture(x)[picks], bool(ranker.extractor.spread))  # type: ignore[operator]


def _pair(vectors: Tensor) -> Tensor:
    """Two of a data set's vectors (R, d), or the only one: (2, d) or (1, d)."""
    return vectors[torch.randperm(len(vectors))[:2]]


def _vector(ranker: Ranker, one: Record, how: Learning, x: Tensor | None) -> Tensor:
    """One of a record's vectors (1, d), or a new one of its samples where these are at hand."""
    return one.vectors[int(torch.randint(len(one.vectors), ()))][None] if x is None else _looked(ranker, x, 1, how)


def _list(one: Record) -> tuple[Tensor, Tensor]:
    """The rows of a record and how relevant each is, both (n,)."""
    return torch.tensor(one.rows), eq.relevance(torch.tensor(one.results))


def _losses(ranker: Ranker, v: Tensor, lists: Sequence[tuple[Tensor, Tensor]], codes: Tensor) -> Tensor:
    """The ranking loss of each list (rows, relevance) by its vector of v (b, d): (b,); those of one length together."""
    lengths = [len(rows) for rows, _ in lists]
    losses: list[Tensor] = [v.new_zeros(())] * len(lists)
    for length in set(lengths):
        at = [k for k, n in enumerate(lengths) if n == length]
        rows, r = (torch.stack(part) for part in zip(*(lists[k] for k in at), strict=True))
        for k, loss in zip(at, eq.ranking_loss(ranker.scores(v[at], codes[rows]), r), strict=True):
            losses[k] = loss
    return torch.stack(losses)


def _but_extractor(ranker: Ranker) -> list[nn.Parameter]:
    for p in ranker.extractor.parameters():
        p.requires_grad_(False)
    return [p for p in ranker.parameters() if p.requires_grad]


def _aligned(old: Ranker, new: Ranker, x: Tensor, how: Learning) -> tuple[Tensor, float]:
    """The transformation between two versions, Eq. (9), and its error on held-out subsets of this client, Eq. (11)."""
    width = int(old.extractor.width)  # type: ignore[arg-type]
    if not how.learns_extractor():
        return torch.zeros(width, width), 0.0
    with torch.no_grad():
        picks = subsets(torch.arange(len(x)), PAIRS + CHECKED, how.m)
        a, b = _pooled(old, x, picks), _pooled(new, x, picks)
        D = eq.transformation(a[:PAIRS], b[:PAIRS], RIDGE) if how.aligned else torch.zeros(width, width)
        return D, float(eq.transformation_error(a[PAIRS:], b[PAIRS:], D))


class _Endless:
    """Batches without content: what a step needs it draws itself."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[None]:
        yield None
