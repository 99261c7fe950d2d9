"""What a run of GAL leaves behind: a smaller network, the plan that made it, and its masks over time."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.batch import shapes_of, zeros_of
from ..core.graph import surgery
from ..core.onnx import export
from ..core.outcome import Outcome, remade
from .structures import KINDS, Structure


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class GALOutcome(Outcome):
    """A smaller network, the plan that made it, and its masks over time.

    history (snapshots, entries) holds the mask entries of all `structures` in order; its last row is the final mask.
    """

    model: nn.Module
    plan: surgery.Plan
    structures: tuple[Structure, ...]
    history: Tensor
    base: dict | None
    example: Any  # its shapes

    def found(self) -> dict[str, Any]:
        return {
            "plan": self.plan.to_dict(),
            "structures": [list(vars(s).values())[: 7 if s.rows else 6] for s in self.structures],
            "history": self.history,
            "base": self.base,
            "example": self.example,
            "weights": dict(self.model.state_dict()),
        }

    @classmethod
    def restore(cls, saved: dict[str, Any], recipe: Any, base: nn.Module | None = None) -> "GALOutcome":
        """Cut the base down by the plan and load the stored weights; `base` is the user's own network, any weights."""
        stored = saved["found"]
        plan, example = surgery.Plan.from_dict(stored["plan"]), zeros_of(stored["example"])
        model = remade(stored, base, lambda dense: surgery.remove(dense, plan, example), "pruned")
        return cls(
            recipe=recipe,
            **cls.records(saved),
            model=model,
            plan=plan,
            structures=tuple(Structure(*values[:6], *map(tuple, values[6:])) for values in stored["structures"]),
            history=stored["history"],
            base=stored["base"],
            example=shapes_of(example),
        )

    def export(self, path: str | Path, opset: int = 17) -> Path:
        """Write the smaller network as an ONNX file with a free batch axis; needs the extra `export`."""
        return export.onnx(self.model, path, zeros_of(self.example), opset)

    def masks(self) -> dict[str, Tensor]:
        """The final mask of each structure, by the name of its module."""
        parts = self.history[-1].split([s.entries for s in self.structures])
        return {f"{s.unit} {s.name}": part for s, part in zip(self.structures, parts, strict=True)}

    def scores(self) -> surgery.Scores:
        """Each entry's mean mask over the run, which ranks entries by how early they closed: `lab.ui.pruning_rate`."""
        parts = self.history.mean(0).split([s.entries for s in self.structures])
        ranked: dict[tuple[str, str], list[tuple[str, Tensor]]] = {}  # all blocks together, and a join's branches
        for structure, part in zip(self.structures, parts, strict=True):
            joint = {"block": "", "branch": structure.reader}.get(structure.unit, structure.name)
            ranked.setdefault((KINDS[structure.unit], joint), []).append((structure.name, structure.of_rows(part)))
        return {
            (unit, tuple(name for name, _ in members)): torch.cat([part for _, part in members])
            for (unit, _), members in ranked.items()
        }
