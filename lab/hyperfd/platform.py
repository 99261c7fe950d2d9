"""The platform's side of the wall: holds the model and the memory, never sees a picture."""

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
from .messages import Offer, Shape, Upload


class Platform:
    """Gives each client its model and takes what it learned, so that every task served makes the next one better.

    sample is the shape of what the extractor sees of one picture (or row of numbers), codes (n, F) the configurations.
    With a folder, the state is stored after every upload and found again; an upload is taken whole or not at all.
    """

    def __init__(
        self, sample: tuple[int, ...], codes: Tensor, how: Learning, seed: int = 0, folder: str | Path | None = None
    ) -> None:
        self.how, self.codes, self.folder = how, codes, Path(folder) if folder is not None else None
        self.owner = f"a platform for {tuple(sample)}, {tuple(codes.shape)} codes, {how}, seed {seed}"
        with seeded(seed):
            self.ranker: Ranker = how.ranker(torch.Size(sample), codes.shape[1]).eval()
        self.synapses = Synapses.of(list(self.ranker.parameters()))
        self.shape = Shape.of(self.ranker, how.R, len(codes))
        self.memory: list[Record] = []
        self.version = 0
        if self.folder is not None and store.exists(self.folder, "platform"):
            self._found(store.load(self.folder, "platform"))

    def offer(self) -> bytes:
        """The message that a client begins with: model, synapses, memory."""
        weights = {name: value.clone() for name, value in self.ranker.state_dict().items()}
        return Offer(self.version, weights, self.synapses.Omega, tuple(self.memory)).to_bytes()

    def accept(self, content: bytes) -> None:
        """Take an upload: check all of it, carry the memory to the new version, store. Refused leaves all as it was."""
        upload = Upload.from_bytes(content, self.shape)
        if upload.base != self.version:
            raise ValueError(f"the upload learned from version {upload.base}, the platform is at {self.version}: "
                             "ask for an offer and learn again")  # fmt: skip
        known = Record(
            f"task {len(self.memory)}", upload.vectors, upload.rows, upload.results, upload.pictures, upload.boxes
        )
        memory = [*aged(self.memory, upload.D, upload.error, self.how), known]
        ranker = self.how.ranker(self._sample(), self.codes.shape[1])
        ranker.load_state_dict(upload.weights)
        self.memory, self.version = memory, self.version + 1
        self.ranker, self.synapses = ranker.eval(), Synapses(upload.Omega, Synapses.of(list(ranker.parameters())).then)
        self.save()

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
