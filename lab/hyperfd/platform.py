"""The platform's side of the privacy boundary: holds the model and the memory, never sees a picture."""

import copy
import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core import store
from ..core.training import seeded
from . import bounds, database
from .bounds import Rejected, Stale
from .database import TakenRound
from .drift import MOST_DRIFT
from .layers import Ranker
from .learning import MOST_ERROR_SUM, Record, RoundConfig, Synapses, map_records
from .merging import Base, merged
from .messages import PERCENT, Offer, Shape, Upload, digest

LEAST_IMAGES = 32  # of a client: two subsets of 16, as clients keep to as well
ROUNDS_A_DAY = 24  # of one client
RECORDS_OF_ONE = 8  # of one client, its newest: nobody fills the memory alone


class Platform:
    """Gives each client its model and takes what it learned, so that every task served makes the next one better.

    sample is the shape of what the extractor sees of one picture (or row of numbers), codes (n, F) the configurations,
    results the least and the largest that a client may send. With a folder, the state is stored after every upload and
    found again, and the last versions stay: see `database` and `rollback`. An upload is taken whole or not at all; one
    that learned from a version before the newest is merged. guarded=False trusts uploads to be honest, as those of a
    run in one process are, and does not ask for `bounds`.
    """

    def __init__(
        self,
        sample: tuple[int, ...],
        codes: Tensor,
        config: RoundConfig,
        seed: int = 0,
        folder: str | Path | None = None,
        results: tuple[float, float] = PERCENT,
        guarded: bool = True,
    ) -> None:
        self.config, self.codes, self.folder = config, codes, Path(folder) if folder is not None else None
        space = f"{tuple(codes.shape)} codes {digest(codes)}"
        self.run_id = f"a platform for {tuple(sample)}, {space}, {config.identity()}, seed {seed}"
        with seeded(seed):
            self.ranker: Ranker = config.ranker(torch.Size(sample), codes.shape[1]).eval()
        self.synapses = Synapses.of(list(self.ranker.parameters()))
        self.shape, self.guarded = Shape.of(self.ranker, config.R, codes, results), guarded
        self.memory: list[Record] = []
        self.version = 0
        self.bases = {0: self._base(torch.zeros(self.shape.d, self.shape.d))}
        self.taken: dict[str, TakenRound] = {}
        if self.folder is not None:
            self._continue(self.folder)

    def offer(self) -> bytes:
        """The message that a client begins with: model, synapses, memory."""
        weights = {name: value.clone() for name, value in self.ranker.state_dict().items()}
        return Offer(self.version, self.shape.space, weights, self.synapses.Omega, tuple(self.memory)).to_bytes()

    def accept(self, content: bytes, client: str = "") -> None:
        """Take an upload: check all of it, carry the memory to the new version, store, and only then become it.

        An upload that is refused, and a state that cannot be stored, leave all as it was. One that was taken already,
        and is sent again since its answer was lost, changes nothing. Stale where it is to be learned again.
        """
        taken = TakenRound(hashlib.sha256(content).hexdigest(), client, time.time())
        if taken.digest in self.taken:
            return
        self.validate_turn(taken)
        upload = Upload.from_bytes(content, self.shape)
        if self.guarded:
            self.validate_step(upload)
        late = upload.base != self.version
        after = self._after(self._merged(upload) if late else upload, taken)
        try:
            after.validate_finite()
            if self.guarded:
                bounds.validate_trials(self.ranker, after.memory[-1], self.memory, self.codes)
                bounds.validate_ordering(after.ranker, after.memory, self.codes)
        except Rejected as error:
            raise (
                Stale(f"{error}; it learned from version {upload.base}, ask for an offer") if late else error
            ) from None
        after.save(taken)
        vars(self).update(vars(after))

    def validate_turn(self, taken: TakenRound) -> None:
        """Rejected where a client, which is known by its key, has had its rounds of a day."""
        day = [r for r in self.taken.values() if r.client == taken.client and r.at > taken.at - database.DAY]
        if taken.client and len(day) >= ROUNDS_A_DAY:
            raise Rejected(f"client {taken.client!r} has sent {len(day)} rounds within a day, the most: come tomorrow")

    def validate_step(self, upload: Upload) -> None:
        """Rejected where an upload leaves the `bounds` of what an honest client sends, seen from where it began."""
        if upload.images < LEAST_IMAGES:
            raise Rejected(f"upload: pictures={upload.images}: {LEAST_IMAGES} or more hide a single one")
        base = self._base_of(upload)
        bounds.validate_moved(base.weights, upload.weights, self.config)
        bounds.validate_grown(base.Omega, upload.Omega, base.weights, upload.weights)
        bounds.validate_mapped(self.memory, upload.D)

    def validate_finite(self) -> None:
        """Rejected where the memory, or the scores that the model gives for it, are no finite numbers."""
        for record in self.memory:
            with torch.no_grad():
                scores = self.ranker.scores(record.vectors, self.codes)  # (R, n)
            if not (torch.isfinite(record.vectors).all() and torch.isfinite(scores).all()):
                raise Rejected(f"upload: after it {record.name!r} would have no finite vectors or scores")

    def _base_of(self, upload: Upload) -> Base:
        """The version that an upload began with; Stale where it is not kept."""
        if upload.base not in self.bases:
            raise Stale(
                f"the upload learned from version {upload.base}, the platform is at {self.version}: ask for an offer "
                "and learn again"
            )
        return self.bases[upload.base]

    def _merged(self, upload: Upload) -> Upload:
        self._base_of(upload)
        between = [self.bases[version] for version in range(upload.base, self.version + 1)]
        return merged(upload, between, self.version)

    def _after(self, upload: Upload, taken: TakenRound) -> "Platform":
        """The platform after this upload, its memory in the new version's space."""
        after = copy.copy(self)
        after.version = self.version + 1
        after.ranker = self.config.ranker(self._sample(), self.codes.shape[1]).eval()
        after.ranker.load_state_dict(upload.weights)
        Omega = [o.clamp_max(bounds.MOST_OMEGA) for o in upload.Omega] if self.guarded else upload.Omega
        after.synapses = Synapses(Omega, Synapses.of(list(after.ranker.parameters())).then)
        error = upload.error
        if self.guarded:
            error = bounds.measured_error(self.ranker, after.ranker, upload.D, self.config)
        parts = (upload.vectors, upload.rows, upload.results, upload.images, upload.boxes)
        record = Record(f"task {len(self.memory)}", *parts, client=taken.client)
        after.memory = _of_each([*map_records(self.memory, upload.D, error, self.config), record])
        if self.guarded:
            after.memory = [_judged(r, after.ranker, self.codes) for r in after.memory]
        bases = self.bases | {after.version: after._base(upload.D)}
        after.bases = {version: bases[version] for version in list(bases)[-database.KEPT :]}
        after.taken = {d: r for d, r in self.taken.items() if r.at > taken.at - database.DAY} | {taken.digest: taken}
        return after

    def note_drift(self, drifts: Sequence[float]) -> None:
        """Take what earlier clients have measured at home of their records, in the memory's order, for their error; one
        of more than MOST_DRIFT is not learned from any longer.
        """
        lost = [drift if drift <= MOST_DRIFT else MOST_ERROR_SUM + drift for drift in drifts]
        measured = [replace(record, error=error) for record, error in zip(self.memory, lost, strict=False)]
        self.memory = [*measured, *self.memory[len(drifts) :]]

    def save(self, taken: TakenRound | None = None) -> None:
        """Store the state beside those before it; without a folder, do nothing.

        Rejected where the folder went on without this platform: another one serves it, or it was rolled back.
        """
        if self.folder is not None:
            saved = {"owner": self.run_id, **self.state(), "D": self.bases[self.version].D, "since": min(self.bases)}
            try:
                database.append(self.folder, saved, self.version - 1, taken)
            except ValueError as error:
                raise Rejected(str(error)) from None

    def state(self) -> dict[str, Any]:
        """All that the platform holds, as a tree."""
        return {
            "version": self.version,
            "weights": self.ranker.state_dict(),
            "Omega": self.synapses.Omega,
            "memory": [record.to_dict() for record in self.memory],
        }

    def _continue(self, folder: Path) -> None:
        """Go on from the newest version in the folder, and know those before it that uploads may still begin with."""
        adopt(folder)
        for version in database.versions(folder):
            saved = database.load(folder, version)
            if saved["owner"] != self.run_id:
                raise ValueError(f"checkpoint={str(folder)!r} belongs to {saved['owner']}: give another folder")
            self.restore(saved)
            since = saved.get("since", version)
            self.bases = {v: base for v, base in self.bases.items() if v >= since}
        if self.version:
            self.taken = {r.digest: r for r in database.rounds(folder)}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Become what `state` gave."""
        self.version = saved["version"]
        self.ranker.load_state_dict(saved["weights"])
        self.synapses = Synapses(list(saved["Omega"]), Synapses.of(list(self.ranker.parameters())).then)
        self.memory = [Record.from_dict(record) for record in saved["memory"]]
        self.bases[self.version] = self._base(saved.get("D", torch.zeros(self.shape.d, self.shape.d)))

    def _base(self, D: Tensor) -> Base:
        weights = {name: value.clone() for name, value in self.ranker.state_dict().items()}
        return Base(weights, list(self.synapses.Omega), D)

    def _sample(self) -> torch.Size:
        """The shape of a sample, from the first layer's weights."""
        if self.config.features == "handmade":
            return torch.Size([self.shape.d])
        first = next(iter(self.ranker.extractor.parameters()))
        return torch.Size([first.shape[1]] + [1] * (first.dim() - 2))


def _of_each(memory: Sequence[Record]) -> list[Record]:
    """The records, of each client that is known by its key only the newest ones."""
    kept: list[Record] = []
    counts: dict[str, int] = {}
    for record in reversed(memory):
        counts[record.client] = counts.get(record.client, 0) + 1
        if not record.client or counts[record.client] <= RECORDS_OF_ONE:
            kept.append(record)
    return kept[::-1]


def _judged(record: Record, ranker: Ranker, codes: Tensor) -> Record:
    """The record, with the best order of its results that any version gave."""
    return replace(record, best=max(record.best, bounds.ordered(ranker, record, codes)))


def adopt(folder: str | Path) -> None:
    """Take over a folder in which an older version of the lab kept the platform as files; they stay as they are."""
    if (Path(folder) / database.FILE).exists():
        return
    files = (re.fullmatch(r"platform(?:-(\d+))?\.json", path.name) for path in Path(folder).glob("platform*.json"))
    names = {int(match[1] or 0): match[0].removesuffix(".json") for match in files if match}
    numbered = {number: name for number, name in names.items() if number} or names
    database.adopt(folder, numbered)


def versions(folder: str | Path) -> list[int]:
    """The versions that a folder keeps, oldest first."""
    adopt(folder)
    return database.versions(folder)


def rollback(folder: str | Path, to: int | None = None) -> tuple[int, int]:
    """Make a platform's older state, `to` or the one before the newest, its newest version: (the old, the new number).

    Nothing is taken away, so that this can be undone as well. ValueError while a platform serves the folder.
    """
    kept = versions(folder)
    to = kept[-2] if to is None and len(kept) > 1 else to
    if to is None or to not in kept[:-1]:
        state = f"keeps {', '.join(map(str, kept))}, the last of which is in use" if kept else "holds no platform"
        raise ValueError(f"to={to}: {folder} {state}: give {'an older one' if kept else 'the folder of one'}")
    new = kept[-1] + 1
    with store.held(folder):  # no upload that began before is merged: it may be what the operator is rid of
        database.append(folder, {**database.load(folder, to), "version": new, "since": new}, kept[-1])
    return to, new
