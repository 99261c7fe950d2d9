"""What a run of decoupling leaves: a network with gates, and the questions that its paths answer."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.graph.surgery import Plan
from ..core.onnx import export
from ..core.outcome import Outcome, base_network, load_weights
from ..core.program import Program, Unbuilt
from .paths import Paths, paths_of, record
from .placement import Decoupled, insert_gates
from .removal import removed
from .skipping import Skipping, skipping


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class DecouplingOutcome(Outcome):
    """A network whose gates choose its filters input by input; what was never on is gone (`plan`).

    `seen` are the paths of up to 2,000 pictures of the task's batches; `sample` holds some of these pictures
    (n, C, H, W), for each class a few, and `sampled` (n,) says where among the paths they stand.
    """

    model: nn.Module
    decoupled: Decoupled
    plan: Plan
    seen: Paths
    sample: Tensor
    sampled: Tensor
    base: dict | None
    example: tuple[int, ...]

    def paths(self, batches: Iterable, limit: int | None = None) -> Paths:
        """The paths of the pictures of `batches`, in one pass: see `lab.decoupling.paths`."""
        return record(self.decoupled, batches, limit)

    def skipping(self) -> Skipping:
        """The network as it saves time: one picture at a time, only what is on is computed. Same outputs."""
        return skipping(self.decoupled, self.sample[:1].to(next(self.model.parameters()).device))

    def export(self, path: str | Path, opset: int = 17) -> Path:
        """Write the gated network as an ONNX file with a free batch axis; needs the extra `export`."""
        return export.onnx(self.model, path, torch.zeros(self.example), opset)

    def found(self) -> dict[str, Any]:
        return {
            "plan": self.plan.to_dict(),
            "packed": torch.from_numpy(self.seen.packed),
            "labels": torch.from_numpy(self.seen.labels),
            "predicted": torch.from_numpy(self.seen.predicted),
            "sample": self.sample,
            "sampled": self.sampled,
            "base": self.base,
            "example": list(self.example),
            "weights": dict(self.model.state_dict()),
        }

    @classmethod
    def restore(cls, saved: dict[str, Any], recipe: Any, base: nn.Module | None = None) -> "DecouplingOutcome":
        """Put gates into the base, cut it by the plan and load the stored weights; `base` is the user's own network."""
        stored = saved["found"]
        dense, plan = base_network(base, stored["base"]), Plan.from_dict(stored["plan"])
        decoupled: Any = Unbuilt()
        seen: Any = Unbuilt()
        if not isinstance(dense, Program):
            decoupled = _rebuilt(dense, plan, stored, recipe.mix)
            seen = paths_of(decoupled, *(stored[name].numpy() for name in ("packed", "labels", "predicted")))
        return cls(
            recipe=recipe,
            **cls.records(saved),
            model=dense if isinstance(dense, Program) else decoupled.model,
            decoupled=decoupled,
            plan=plan,
            seen=seen,
            sample=stored["sample"],
            sampled=stored["sampled"],
            base=stored["base"],
            example=tuple(stored["example"]),
        )


def _rebuilt(dense: nn.Module, plan: Plan, stored: dict[str, Any], mix: Any) -> Decoupled:
    """The network with its gates, cut by the plan, with the stored weights."""
    example = torch.zeros(stored["example"], dtype=next(dense.parameters(), torch.zeros(0)).dtype)
    with torch.random.fork_rng(devices=[]):
        decoupled = removed(insert_gates(dense, example, mix=mix), plan, example)
    load_weights(decoupled.model, stored["weights"], dense, "decoupled")
    return decoupled
