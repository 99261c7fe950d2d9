"""The receptive field: which pixels a unit can see, found by what becomes NaN."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from .activations import as_images, features, first, named, placed

PROBES = 32  # a side is cut into at most so many bands


@dataclass(frozen=True)
class Field:
    """For each row and column of a layer's map, the first and last pixel it can see: (h, 2) and (w, 2)."""

    rows: torch.Tensor
    columns: torch.Tensor

    def box(self, row: int, column: int) -> tuple[int, int, int, int]:
        """(top, left, bottom, right) of the pixels that the unit sees, the last two not included."""
        (top, bottom), (left, right) = self.rows[row].tolist(), self.columns[column].tolist()
        return top, left, bottom + 1, right + 1


def receptive_fields(
    model: nn.Module, layers: Sequence[str] | str, x: torch.Tensor, bands: int = PROBES
) -> dict[str, Field]:
    """The field of every unit of the layers, for pictures of x's size, (1, C, H, W).

    Empirical: a band of rows (then of columns) of the picture is NaN, and the units that become NaN see it, for NaN
    passes through sums, products, rectifiers and pools whatever the weights are. Exact where a side has at most `bands`
    pixels, else to the whole band outwards. Whatever mixes the whole picture (attention, squeeze and excitation, group
    norms) sees all of it; so does, by assumption, a unit that no NaN reaches. Boxes: what lies inside may have gaps.
    """
    layers, x = named(model, layers), as_images(x)[:1].float()
    clean = _outputs(model, layers, x)
    if any(torch.isnan(output).any() for output in clean.values()):
        raise ValueError("the model answers NaN on finite data: its weights are broken, load them again")
    by_axis: dict[str, list[torch.Tensor]] = {layer: [] for layer in layers}  # rows, columns
    for axis in (2, 3):
        side = x.shape[axis]
        edges = torch.linspace(0, side, min(side, bands) + 1).round().int().tolist()
        touched: dict[str, list[torch.Tensor]] = {layer: [] for layer in layers}
        for start, stop in pairwise(edges):
            probe = x.clone()
            probe.narrow(axis, start, stop - start).fill_(float("nan"))
            for layer, output in _outputs(model, layers, probe).items():
                touched[layer].append(_touched(output, axis))
        for layer in layers:
            by_axis[layer].append(_ends(torch.stack(touched[layer]), edges))
    return {layer: Field(rows, columns) for layer, (rows, columns) in by_axis.items()}


def _outputs(model: nn.Module, layers: list[str], x: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.backends.cudnn.flags(enabled=False):  # its fast algorithms may smear a NaN over their tiles
        outputs = placed(model, x, layers)
    return {layer: features(first(outputs, layer), layer) for layer in layers}


def _touched(output: torch.Tensor, axis: int) -> torch.Tensor:
    """Which units along an axis of a map are NaN in any filter: (units,) bool; a layer without maps has one."""
    broken = torch.isnan(output)
    return broken.transpose(axis, -1).flatten(0, 2).any(0).cpu() if output.ndim == 4 else broken.any().view(1).cpu()


def _ends(touched: torch.Tensor, edges: list[int]) -> torch.Tensor:
    """The first and last pixel of each unit: touched (bands, units) bool -> (units, 2); all where none touched it."""
    count = len(touched)
    order = torch.arange(count)[:, None]
    low = torch.where(touched, order, count).min(0).values
    high = torch.where(touched, order, -1).max(0).values
    none = high < 0
    low, high = torch.where(none, 0, low), torch.where(none, count - 1, high)
    borders = torch.tensor(edges)
    return torch.stack((borders[low], borders[high + 1] - 1), 1)
