"""The platform's side of the privacy boundary: holds the model and the memory, never sees a picture."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core import store
from ..core.training import seeded
from . import bounds
from .bounds import Rejected
from .layers import Ranker
from .learning import Record, RoundConfig, Synapses, map_records
from .messages import PERCENT, Offer, Shape, Upload, digest

KEPT = 8  # versions in the folder, the newest among them


class Platform:
    """Gives each client its model and takes what it learned, so that every task served makes the next one better.

    sample is the shape of what the extractor sees of one picture (or row of numbers), codes (n, F) the configurations,
    results the least and the largest that a client may send. With a folder, the state is stored after every upload and
    found again, and the last KEPT versions stay: see `rollback`. An upload is taken whole or not at all. guarded=False
    trusts uploads to be honest, as those of a run in one process are, and does not ask for `bounds`.
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
        if self.folder is not None and (kept := versions(self.folder)):
            self._continue(store.load(self.folder, _name(kept[-1])))
        elif self.folder is not None and store.exists(self.folder, "platform"):  # before versions were kept
            self._continue(store.load(self.folder, "platform"))

    def offer(self) -> bytes:
        """The message that a client begins with: model, synapses, memory."""
        weights = {name: value.clone() for name, value in self.ranker.state_dict().items()}
        return Offer(self.version, self.shape.space, weights, self.synapses.Omega, tuple(self.memory)).to_bytes()

    def accept(self, content: bytes) -> None:
        """Take an upload: check all of it, carry the memory to the new version, store, and only then become it.

        An upload that is refused, and a state that cannot be stored, leave all as it was.
        """
        upload = Upload.from_bytes(content, self.shape)
        if upload.base != self.version:
            raise ValueError(
                f"the upload learned from version {upload.base}, the platform is at {self.version}: ask for an offer "
                "and learn again"
            )
        name = f"task {len(self.memory)}"
        record = Record(name, upload.vectors, upload.rows, upload.results, upload.images, upload.boxes)
        after = copy.copy(self)
        after.memory = [*map_records(self.memory, upload.D, upload.error, self.config), record]
        after.ranker, after.version = self.config.ranker(self._sample(), self.codes.shape[1]).eval(), self.version + 1
        after.ranker.load_state_dict(upload.weights)
        after.synapses = Synapses(upload.Omega, Synapses.of(list(after.ranker.parameters())).then)
        after.validate_finite()
        if self.guarded:
            self.validate_honest(upload, after)
        after.save()
        vars(self).update(vars(after))

    def validate_honest(self, upload: Upload, after: "Platform") -> None:
        """Rejected where an upload leaves the `bounds` of what an honest client sends, or makes the model worse."""
        bounds.validate_moved(self.ranker.state_dict(), upload.weights, self.config)
        bounds.validate_grown(self.synapses.Omega, upload.Omega)
        bounds.validate_mapped(self.memory, upload.D)
        before = [*(self.memory if len(after.memory) > 1 else []), after.memory[-1]]
        bounds.validate_ordering((self.ranker, before), (after.ranker, after.memory), self.codes)

    def validate_finite(self) -> None:
        """Rejected where the memory, or the scores that the model gives for it, are no finite numbers."""
        for record in self.memory:
            with torch.no_grad():
                scores = self.ranker.scores(record.vectors, self.codes)  # (R, n)
            if not (torch.isfinite(record.vectors).all() and torch.isfinite(scores).all()):
                raise Rejected(f"upload: after it {record.name!r} would have no finite vectors or scores")

    def save(self) -> None:
        """Store the state beside those before it; without a folder, do nothing.

        Rejected where the folder went on without this platform: another one serves it, or it was rolled back.
        """
        if self.folder is not None:
            if (kept := versions(self.folder)) and kept[-1] != self.version - 1:
                raise Rejected(
                    f"{self.folder} is at version {kept[-1]}, this platform was at {self.version - 1}: start it again"
                )
            _store(self.folder, {"owner": self.run_id, **self.state()})

    def state(self) -> dict[str, Any]:
        """All that the platform holds, as a tree."""
        return {
            "version": self.version,
            "weights": self.ranker.state_dict(),
            "Omega": self.synapses.Omega,
            "memory": [record.to_dict() for record in self.memory],
        }

    def _continue(self, saved: Mapping[str, Any]) -> None:
        if saved["owner"] != self.run_id:
            raise ValueError(f"checkpoint={str(self.folder)!r} belongs to {saved['owner']}: give another folder")
        self.restore(saved)

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Become what `state` gave."""
        self.version = saved["version"]
        self.ranker.load_state_dict(saved["weights"])
        self.synapses = Synapses(list(saved["Omega"]), Synapses.of(list(self.ranker.parameters())).then)
        self.memory = [Record.from_dict(record) for record in saved["memory"]]

    def _sample(self) -> torch.Size:
        """The shape of a sample, from the first layer's weights."""
        if self.config.features == "handmade":
            return torch.Size([self.shape.d])
        first = next(iter(self.ranker.extractor.parameters()))
        return torch.Size([first.shape[1]] + [1] * (first.dim() - 2))


def versions(folder: str | Path) -> list[int]:
    """The versions that a folder keeps, oldest first."""
    matches = (re.fullmatch(r"platform-(\d+)\.json", path.name) for path in Path(folder).glob("platform-*.json"))
    return sorted(int(match[1]) for match in matches if match)


def rollback(folder: str | Path, to: int | None = None) -> tuple[int, int]:
    """Make a platform's older state, `to` or the one before the newest, its newest version: (the old, the new number).

    Nothing is taken away, so that this can be undone as well. ValueError while a platform serves the folder.
    """
    kept = versions(folder)
    to = kept[-2] if to is None and len(kept) > 1 else to
    if to is None or to not in kept[:-1]:
        state = f"keeps {', '.join(map(str, kept))}, the last of which is in use" if kept else "holds no platform"
        raise ValueError(f"to={to}: {folder} {state}: give {'an older one' if kept else 'the folder of one'}")
    with store.held(folder):
        _store(folder, {**store.load(folder, _name(to)), "version": kept[-1] + 1})
    return to, kept[-1] + 1


def _store(folder: str | Path, state: Mapping[str, Any]) -> None:
    """Keep a state under its version, and of the older ones as many as are kept."""
    store.save(folder, _name(state["version"]), state)
    for old in versions(folder)[:-KEPT]:
        for path in sorted(Path(folder).glob(f"{_name(old)}[.-]*"), reverse=True):  # '.json' first, it names the other
            path.unlink()


def _name(version: int) -> str:
    return f"platform-{version}"
