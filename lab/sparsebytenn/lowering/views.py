"""Where a tensor's numbers lie in a feature map: a view of strides and an offset, as torch has them of a storage.

A map is planes of pixels, `pitch` floats from plane to plane. The axes of a tensor lie in it in any order: a picture's
channels are planes; the features of tokens are planes too, for then a linear layer is a product as a 1 x 1 convolution
is, and its tokens are pixels. torch itself does the arithmetic of views, on tensors that have strides but no numbers.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..packed import Map

Axes = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Which axes of a tensor are planes and which are pixels, the slowest first; axes of one entry are left out."""

    planes: Axes
    pixels: Axes


@dataclass(frozen=True)
class MapView:
    """A tensor in map number `map`: `view` has its shape, and its strides and offset in the map's floats.

    A reshape that strides cannot express is left undone until someone reads it: `before` is then the value that it
    reshapes, and map is -1.
    """

    map: int
    view: Tensor
    before: "MapView | None" = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.view.shape)

    @property
    def key(self) -> tuple:
        """What tells the value's numbers from those of another."""
        before = None if self.before is None else self.before.key
        return self.map, self.shape, self.view.stride(), self.view.storage_offset(), before


def layout_over(shape: Sequence[int], planes: Iterable[int], pixels: Iterable[int] | None = None) -> Layout:
    """A layout with these axes as planes, and as pixels these or all others in order."""
    rank = len(shape)
    front = tuple(axis % rank for axis in planes)
    back = tuple(a % rank for a in pixels) if pixels is not None else tuple(a for a in range(rank) if a not in front)
    return Layout(tuple(a for a in front if shape[a] > 1), tuple(a for a in back if shape[a] > 1))


def usual_layout(shape: Sequence[int]) -> Layout:
    """The layout of a tensor that comes from nowhere: the last two axes are pixels; of two, the last."""
    axes = [axis for axis, size in enumerate(shape) if size > 1]
    planes = axes[:-2] if len(axes) > 2 else axes[:-1]
    return layout_over(shape, planes)


def sizes(shape: Sequence[int], layout: Layout) -> tuple[int, int]:
    """How many planes and pixels a tensor takes in a layout."""
    return math.prod(shape[a] for a in layout.planes), math.prod(shape[a] for a in layout.pixels)


def picture_size(shape: Sequence[int], layout: Layout) -> tuple[int, int]:
    """Height and width of a map whose pixels are those of a layout: the last axis is the width."""
    _, pixels = sizes(shape, layout)
    width = shape[layout.pixels[-1]] if len(layout.pixels) > 1 else pixels
    return pixels // width, width


def sides(shape: Sequence[int]) -> tuple[int, int]:
    """Height and width of a picture (1, C, H, W), or of (1, C, L) as one row."""
    rows, columns = (1, *shape[2:])[-2:]
    return rows, columns


def strides(shape: Sequence[int], layout: Layout, pitch: int) -> list[int]:
    """The strides of a tensor that fills a map in this layout."""
    steps, pixel, plane = [0] * len(shape), 1, pitch
    for axis in reversed(layout.pixels):
        steps[axis], pixel = pixel, pixel * shape[axis]
    for axis in reversed(layout.planes):
        steps[axis], plane = plane, plane * shape[axis]
    return steps


def filling(shape: Sequence[int], layout: Layout, m: Map) -> Tensor:
    """The view of a tensor that fills a map in this layout."""
    storage = torch.empty(m.floats, device="meta")
    return storage.as_strided(tuple(shape), strides(shape, layout, m.pitch), 0)


def interleaved(shape: Sequence[int], m: Map) -> Tensor:
    """The view of a picture (1, C, H, W) whose channels are interleaved."""
    return torch.empty(m.floats, device="meta").as_strided(tuple(shape), (0, 1, m.w * m.c, m.c), 0)


def fills(view: Tensor, layout: Layout, m: Map) -> bool:
    """Whether a view has all of a map in this layout."""
    if sizes(view.shape, layout) != (m.c, m.pixels) or view.storage_offset() or m.interleaved:
        return False
    expected = strides(view.shape, layout, m.pitch)
    return all(size == 1 or view.stride(axis) == expected[axis] for axis, size in enumerate(view.shape))


def layout_of(view: Tensor, m: Map) -> Layout | None:
    """The layout in which a view has all of its map, if it has."""
    axes = sorted((a for a, size in enumerate(view.shape) if size > 1), key=lambda a: -view.stride()[a])
    layout = Layout(
        tuple(a for a in axes if view.stride(a) >= m.pitch), tuple(a for a in axes if view.stride(a) < m.pitch)
    )
    return layout if fills(view, layout, m) else None


def reshaped(view: Tensor, shape: Sequence[int]) -> Tensor | None:
    """A view under another shape, None where strides cannot express that."""
    try:
        return view.view(tuple(shape))
    except RuntimeError:
        return None


def loops(shape: Sequence[int], *all_strides: Sequence[int]) -> tuple[list[int], ...]:
    """Nested loops that walk tensors of a shape with these strides, the slowest first, joined where they can be."""
    joined: list[list[int]] = []  # of each loop: its size, then a stride a tensor
    for loop in zip(shape, *all_strides, strict=True):
        if loop[0] == 1:
            continue
        last = joined[-1] if joined else None
        if last and all(outer == inner * loop[0] for outer, inner in zip(last[1:], loop[1:], strict=True)):
            joined[-1] = [last[0] * loop[0], *loop[1:]]
        else:
            joined.append([*loop])
    columns = zip(*joined, strict=True) if joined else [()] * (1 + len(all_strides))
    return tuple([*column] for column in columns)
