"""One round of learning, where the pictures are: ranking, triplet, synaptic losses, then the map between versions."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from ..core.descent import Stage, Step, descend
from . import equations as eq
from .layers import Extractor, Given, Ranker
from .looking import subsets

REPLAYED = 8  # earlier lists in each step, each counting as much as the present one
COMMON, SLOW = 5.0, 0.02  # how much faster what holds for all data sets is learned than the rest, and the extractor
DECAY = 0.1  # of weights
PAIRS, CHECKED = 24, 8  # subsets that fit the transformation, and those that judge it
LIMIT = 0.5  # a record whose transformations' errors sum to more is not learned from any longer
MARGIN = 0.3


@dataclass(frozen=True)
class Record:
    """What the platform keeps of a task: meta-vectors (R, d) in the present version, rows and their results.

    error is what transformations have lost so far; vectors is None for a record whose vectors were given up.
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
    steps: int = 100
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
    adam = AdamW(groups, how.lr, weight_decay=DECAY)
    synapses.begin(weights)
    pictures: Sequence[Tensor | None] = seen or [None] * len(memory)
    replayed = [
        (one, its) for one, its in zip(memory, pictures, strict=True) if one.error <= LIMIT and len(one.rows) > 1
    ]
    stage = Stage(folder, "learning", owner, every=1000, ranker=ranker, adam=adam, synapses=synapses)
    own = torch.tensor(record.rows), eq.relevance(torch.tensor(record.results))

    def terms(_: Any) -> dict[str, Tensor]:
        v = ranker.extractor(_drawn(x, 2, how))  # (2, d): disjoint subsets
        picks = [replayed[i] for i in torch.randperm(len(replayed))[:REPLAYED].tolist()]
        present = torch.stack([eq.ranking_loss(s, own[1]) for s in ranker.scores(v, codes[own[0]])]).mean()
        found = {"ranking": present / (1 + len(picks))}
        if picks:
            lists = [_list_loss(ranker, one, codes, how, its) for one, its in picks]
            found["replay"] = torch.stack(lists).sum() / (1 + len(picks))
            if how.triplet and how.learns_extractor():
                negatives = torch.stack([one.vectors[int(torch.randint(len(one.vectors), ()))] for one, _ in picks])
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
        return ranker.extractor(_drawn(x, count or how.R, how))


def aged(memory: Sequence[Record], D: Tensor, error: float, how: Learning) -> list[Record]:
    """The records after a new version of the extractor: their vectors through its transformation, as stale says."""
    if how.stale == "transform":
        return [replace(one, vectors=eq.transformed(one.vectors, D), error=one.error + error) for one in memory]
    return list(memory) if how.stale in ("reuse", "pooled") else []


def _drawn(x: Tensor, count: int, how: Learning) -> Tensor:
    """Subsets for the extractor; hand-made numbers are one vector a data set, whatever the subset."""
    return x[:1].expand(count, -1) if how.features == "handmade" else subsets(x, count, how.m)


def _list_loss(ranker: Ranker, one: Record, codes: Tensor, how: Learning, x: Tensor | None) -> Tensor:
    """Of a record's list, by one of its vectors, or by a new one of its samples where these are at hand."""
    v = (
        one.vectors[int(torch.randint(len(one.vectors), ()))][None]
        if x is None
        else ranker.extractor(_drawn(x, 1, how))
    )
    return eq.ranking_loss(ranker.scores(v, codes[list(one.rows)])[0], eq.relevance(torch.tensor(one.results)))


def _but_extractor(ranker: Ranker) -> list[nn.Parameter]:
    for p in ranker.extractor.parameters():
        p.requires_grad_(False)
    return [p for p in ranker.parameters() if p.requires_grad]


def _aligned(old: Ranker, new: Ranker, x: Tensor, how: Learning) -> tuple[Tensor, float]:
    """The transformation between two versions, Eq. (9), and its error on held-out subsets, Eq. (11)."""
    width = int(old.extractor.width)  # type: ignore[arg-type]
    if not how.learns_extractor():
        return torch.zeros(width, width), 0.0
    with torch.no_grad():
        seen = _drawn(x, PAIRS + CHECKED, how)
        a, b = old.extractor(seen), new.extractor(seen)
        D = eq.transformation(a[:PAIRS], b[:PAIRS]) if how.aligned else torch.zeros(width, width)
        return D, float(eq.transformation_error(a[PAIRS:], b[PAIRS:], D))


class _Endless:
    """Batches without content: what a step needs it draws itself."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[None]:
        yield None
