"""The platform's side of the wall: holds the model and the memory, never sees a picture."""

import copy
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core import store
from ..core.descent import seeded
from .layers import Ranker
from .learning import Learning, Record, Synapses, aged
from .messages import Offer, Refused, Shape, Upload, digest


class Platform:
    """Gives each client its model and takes what it learned, so that every task served makes the next one better.

    sample is the shape of what the extractor sees of one picture (or row of numbers), codes (n, F) the configurations.
    With a folder, the state is stored after every upload and found again; an upload is taken whole or not at all.
    """

    def __init__(
        self, sample: tuple[int, ...], codes: Tensor, how: Learning, seed: int = 0, folder: str | Path | None = None
    ) -> None:
        self.how, self.codes, self.folder = how, codes, Path(folder) if folder is not None else None
        space = f"{tuple(codes.shape)} codes {digest(codes)}"
        self.owner = f"a platform for {tuple(sample)}, {space}, {how}, seed {seed}"
        with seeded(seed):
            self.ranker: Ranker = how.ranker(torch.Size(sample), codes.shape[1]).eval()
        self.synapses = Synapses.of(list(self.ranker.parameters()))
        self.shape = Shape.of(self.ranker, how.R, codes)
        self.memory: list[Record] = []
        self.version = 0
        if self.folder is not None and store.exists(self.folder, "platform"):
            self._found(store.load(self.folder, "platform"))

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
            raise ValueError(f"the upload learned from version {upload.base}, the platform is at {self.version}: "
                             "ask for an offer and learn again")  # fmt: skip
        known = Record(
            f"task {len(self.memory)}", upload.vectors, upload.rows, upload.results, upload.pictures, upload.boxes
        )
        after = copy.copy(self)
        after.memory = [*aged(self.memory, upload.D, upload.error, self.how), known]
        after.ranker, after.version = self.how.ranker(self._sample(), self.codes.shape[1]).eval(), self.version + 1
        after.ranker.load_state_dict(upload.weights)
        after.synapses = Synapses(upload.Omega, Synapses.of(list(after.ranker.parameters())).then)
        after.demand_finite()
        after.save()
        vars(self).update(vars(after))

    def demand_finite(self) -> None:
        """Refused where the memory, or the scores that the model gives for it, are no finite numbers."""
        for one in self.memory:
            with torch.no_grad():
                scores = self.ranker.scores(one.vectors, self.codes)
            if not (torch.isfinite(one.vectors).all() and torch.isfinite(scores).all()):
                raise Refused(f"upload: after it {one.name!r} would have no finite vectors or scores")

    def save(self) -> None:
        """Store the state; without a folder, do nothing."""
        if self.folder is not None:
            store.save(self.folder, "platform", {"owner": self.owner, **self.state()})

    def state(self) -> dict[str, Any]:
        """All that the platform holds, as a tree."""
        memory = [{**asdict(one), "rows": list(one.rows), "results": list(one.results)} for one in self.memory]
        return {"version": self.version, "weights": self.ranker.state_dict(), "Omega": self.synapses.Omega,
                "memory": memory}  # fmt: skip

    def _found(self, saved: Mapping[str, Any]) -> None:
        if saved["owner"] != self.owner:
            raise ValueError(f"checkpoint={str(self.folder)!r} belongs to {saved['owner']}: give another folder")
        self.restore(saved)

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Become what `state` told."""
        self.version = saved["version"]
        self.ranker.load_state_dict(saved["weights"])
        self.synapses = Synapses(list(saved["Omega"]), Synapses.of(list(self.ranker.parameters())).then)
        self.memory = [Record(**{**one, "rows": tuple(one["rows"]), "results": tuple(one["results"])})
                       for one in saved["memory"]]  # fmt: skip

    def _sample(self) -> torch.Size:
        """The shape of a sample, from the first layer's weights."""
        if self.how.features == "handmade":
            return torch.Size([self.shape.d])
        first = next(iter(self.ranker.extractor.parameters()))
        return torch.Size([first.shape[1]] + [1] * (first.dim() - 2))
