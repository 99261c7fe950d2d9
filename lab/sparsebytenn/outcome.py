"""What a run of SparseByteNN leaves behind: a network whose zeros stand in blocks, its masks and its row orders."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.batch import each, shapes_of, zeros_of
from ..core.graph.channels import Channels
from ..core.graph.slices import Slice
from ..core.graph.tracing import trace
from ..core.onnx import export
from ..core.outcome import Outcome, remade
from . import engine, web
from .rearrange import moves


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class SparseByteNNOutcome(Outcome):
    """A rearranged network whose pruned blocks are exactly 0, with its masks and orders.

    masks: layer -> (groups, IC) bool, a group being `block` rows as they stand in `model`, True what is kept; where
    `block` is (rows, inputs), (groups, groups of inputs). orders: for each class of channels, by the name of its first
    writer, (C,) where each channel stood before. classes: the pruned layers that write each class. saliencies: layer ->
    (OC, IC) float16, the kernels' magnitudes in the dense network, rows as they came.
    """

    model: nn.Module
    masks: dict[str, Tensor]
    orders: dict[str, Tensor]
    classes: dict[str, tuple[str, ...]]
    saliencies: dict[str, Tensor]
    base: dict | None
    example: Any  # its shapes

    def found(self) -> dict[str, Any]:
        return {
            "masks": self.masks,
            "orders": self.orders,
            "classes": {name: list(layers) for name, layers in self.classes.items()},
            "saliencies": self.saliencies,
            "base": self.base,
            "example": self.example,
            "weights": dict(self.model.state_dict()),
        }

    @classmethod
    def restore(cls, saved: dict[str, Any], recipe: Any, base: nn.Module | None = None) -> "SparseByteNNOutcome":
        """Trace the base and load the stored weights; `base` is the user's own network, with any weights."""
        state = saved["found"]
        example = zeros_of(state["example"])

        def traced(dense: nn.Module) -> nn.Module:
            kind = next(dense.parameters()).dtype
            return trace(dense, each(example, lambda x: x.to(kind) if x.is_floating_point() else x))

        model = remade(state, base, traced, "pruned")
        return cls(
            recipe=recipe,
            **cls.records(saved),
            model=model,
            masks=state["masks"],
            orders=state["orders"],
            classes={name: tuple(layers) for name, layers in state["classes"].items()},
            saliencies=state["saliencies"],
            base=state["base"],
            example=shapes_of(example),
        )

    def export(self, path: str | Path, opset: int = 17) -> Path:
        """Write the network as an ONNX file with a free batch axis, its zeros in place; needs the extra `export`."""
        return export.onnx(self.model, path, zeros_of(self.example), opset)

    def engine(
        self,
        *,
        strict: bool = False,
        dense: bool = False,
        measure: bool = True,
        interleaved: bool = False,
        calibrate: Tensor | None = None,
    ) -> Any:
        """The network in the sparse engine, norms folded; where the engine has a part of it, the rest stays in torch.

        `lab.sparsebytenn.engine.compile` says what the options mean.
        """
        options = {"strict": strict, "dense": dense, "measure": measure, "interleaved": interleaved}
        return engine.compile(self.model, zeros_of(self.example), **options, calibrate=calibrate)

    def export_web(self, folder: str | Path, **options: Any) -> Path:
        """Write a folder with one page that runs the network in a browser, sparse beside dense; its path.

        Options (labels, mean, std, images, title) as `lab.sparsebytenn.web.bundle` takes them.
        """
        sparse = self.engine(strict=True, measure=False)
        return web.export_web(sparse, folder, **({"dense": engine.with_zeros(sparse)} | options))

    def order(self, layer: str) -> Tensor:
        """Where each row of a pruned layer stood in the dense network: (OC,)."""
        for name, layers in self.classes.items():
            if layer in layers:
                return self.orders[name]
        return torch.arange(len(self.saliencies[layer]))

    def columns(self, layer: str) -> Tensor:
        """Where each column of a pruned layer stood in the dense network: (IC,)."""
        return self._columns[layer]

    @cached_property
    def _columns(self) -> dict[str, Tensor]:
        parts = moves(Channels(self.model), self.orders)  # type: ignore[arg-type]
        return {name: part.columns for name, part in parts.items() if isinstance(part, Slice)}
