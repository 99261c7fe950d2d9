"""The pictures that a filter answers to most, and the part of each that it can see."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import nn

from ..core.batch import inputs
from .activations import activations, as_images, features, first, named, over
from .field import Field, receptive_fields

Top = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # values (F, k), numbers of the pictures (F, k), units (F, k, 2)


@dataclass(frozen=True)
class Strongest:
    """The k strongest pictures of each filter of a layer, strongest first; one unit, the highest, speaks for a picture.

    `values` (filters, k) are activations, `number` (filters, k) the picture's index in the stream, `unit`
    (filters, k, 2) row and column in the map; `kept` holds each of them once, (C, H, W), by its index.
    Where the stream had fewer than k pictures, k is their number.
    """

    layer: str
    values: torch.Tensor
    number: torch.Tensor
    unit: torch.Tensor
    seen: int  # pictures in the stream
    kept: dict[int, torch.Tensor] = field(repr=False)
    field: Field = field(repr=False)

    def box(self, filter: int, rank: int = 0) -> tuple[int, int, int, int]:
        """(top, left, bottom, right) of what the unit sees in its picture."""
        row, column = self.unit[filter, rank].tolist()
        return self.field.box(row, column)

    def images(self, filter: int) -> list[torch.Tensor]:
        """The k pictures (C, H, W) of a filter."""
        return [self.kept[number] for number in self.number[filter].tolist()]

    def crops(self, filter: int) -> list[torch.Tensor]:
        """The part of each of the k pictures that the unit sees, (C, h, w); smaller at the picture's edge."""
        parts = []
        for rank, image in enumerate(self.images(filter)):
            top, left, bottom, right = self.box(filter, rank)
            parts.append(image[:, top:bottom, left:right])
        return parts


def strongest(model: nn.Module, layer: str, batches: Iterable, k: int = 9, *, progress: bool = True) -> Strongest:
    """The k pictures of `batches` that each filter of a layer answers to most, one pass, and what it sees in them.

    A batch is (x, y) or x, all x (N, C, H, W) of one size; filters are axis 1 of what the layer gives, at its first
    call if it runs more than once. The part is the unit's receptive field (`receptive_fields`). Held in memory: at
    most filters * k pictures. ValueError for an empty stream, another shape, or k below 1.
    """
    return strongest_of(model, [layer], batches, k, progress=progress)[layer]


def strongest_of(
    model: nn.Module, layers: list[str], batches: Iterable, k: int = 9, *, progress: bool = True
) -> dict[str, Strongest]:
    """`strongest` of several layers in one pass, by layer."""
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise ValueError(f"k={k!r}: give an integer number of pictures, 1 or more")
    layers = named(model, layers)
    tops: dict[str, Top] = {}
    kept: dict[int, torch.Tensor] = {}
    count, shape = 0, None
    for batch in over(batches, "strongest" if progress else ""):
        x = as_images(inputs(batch), "a batch")
        shape = x.shape[1:] if shape is None else shape
        if x.shape[1:] != shape:
            raise ValueError(f"a batch holds pictures of {tuple(x.shape[1:])}, the first {tuple(shape)}: use one size")
        outputs = activations(model, x, layers)
        for layer in layers:
            tops[layer] = _merged(tops.get(layer), _peaks(features(first(outputs, layer), layer), count), k)
        needed = {number for _, numbers, _ in tops.values() for number in numbers.flatten().tolist()}
        kept = {number: image for number, image in kept.items() if number in needed}
        kept |= {count + i: x[i].cpu().clone() for i in range(len(x)) if count + i in needed}
        count += len(x)
    if shape is None:
        raise ValueError("the batches are empty: give at least one")
    fields = receptive_fields(model, layers, next(iter(kept.values()))[None])
    return {
        layer: Strongest(layer, *top, count, {n: kept[n] for n in set(top[1].flatten().tolist())}, fields[layer])
        for layer, top in tops.items()
    }


def _peaks(output: torch.Tensor, start: int) -> Top:
    """Each filter's highest unit in each picture: values (F, N), the picture's number (F, N), row, column (F, N, 2)."""
    n, f = output.shape[:2]
    width = output.shape[3] if output.ndim == 4 else 1
    values, unit = output.reshape(n, f, -1).max(2)
    number = torch.arange(start, start + n).expand(f, n)
    return values.T.float().cpu(), number, torch.stack((unit // width, unit % width), 2).transpose(0, 1).cpu()


def _merged(old: Top | None, new: Top, k: int) -> Top:
    """The k highest of both, highest first; of equals the earlier picture."""
    values, number, unit = new if old is None else [torch.cat(pair, 1) for pair in zip(old, new, strict=True)]
    order = values.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return values.gather(1, order), number.gather(1, order), unit.gather(1, order[..., None].expand(-1, -1, 2))
