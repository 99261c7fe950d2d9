"""Pools, means and resizes: what a window or a table of rows and columns says."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx

from ...core.graph.calls import two
from ..packed import Map, Op
from ..tables import Pool, Resize
from . import views
from .builder import Builder, LacksError, args_of, aten, options_of, with_defaults
from .views import layout_over


def max_pool(b: Builder, node: fx.Node) -> None:
    _without_places(node)
    _, k, stride, pad, dilation, *_ = with_defaults(node, None, None, [], [0], [1], False)
    _pool(b, node, "max", [_ranges(*axis) for axis in _axes(b, node, k, stride, pad, dilation)], two(dilation), None)


def average_pool(b: Builder, node: fx.Node) -> None:
    defaults: tuple[Any, ...] = (None, None, [], [0], False, True, None)
    k, stride, pad, _, counts_pad, divisor = with_defaults(node, *defaults)[1:]
    axes = _axes(b, node, k, stride, pad, [1])
    ranges = [_ranges(*axis) for axis in axes]
    counts = [_counted(*axis) if counts_pad else (r[:, 1] - r[:, 0]) for axis, r in zip(axes, ranges, strict=True)]
    if divisor is not None:
        counts = [np.full(len(counts[0]), divisor), np.ones(len(counts[1]))]
    _pool(b, node, "mean", ranges, (1, 1), counts)


def adaptive(fn: str) -> Callable[[Builder, fx.Node], None]:
    """A pool to any size: window i goes from floor(i n / size) to ceil((i + 1) n / size)."""

    def lower(b: Builder, node: fx.Node) -> None:
        if fn == "max":
            _without_places(node)
        ranges = []
        for n, size in zip(views.sides(b.shape(args_of(node)[0])), views.sides(b.shape(node)), strict=True):
            ranges.append(np.array([(i * n // size, -(-(i + 1) * n // size)) for i in range(size)], np.uint32))
        _pool(b, node, fn, ranges, (1, 1), [r[:, 1] - r[:, 0] for r in ranges])

    return lower


def _without_places(node: fx.Node) -> None:
    """LacksError where someone reads the second output of a pool."""
    if any(args_of(user)[1] == 1 for user in node.users):
        raise LacksError("gives the places of the largest numbers")


def _axes(b: Builder, node: fx.Node, k: Any, stride: Any, pad: Any, dilation: Any) -> list[tuple[int, ...]]:
    """For rows and columns: the input's side, the output's, window, stride, padding and dilation."""
    sides = zip(views.sides(b.shape(args_of(node)[0])), views.sides(b.shape(node)), strict=True)
    settings = zip(two(k), two(stride or k), two(pad), two(dilation), strict=True)
    return [(*side, *setting) for side, setting in zip(sides, settings, strict=True)]


def _ranges(n: int, size: int, k: int, stride: int, pad: int, dilation: int) -> np.ndarray:
    """Where each window begins and ends within n, (size, 2)."""
    start = np.arange(size) * stride - pad
    end = np.minimum(start + (k - 1) * dilation + 1, n)
    start = np.where(start < 0, start + -(start // dilation) * dilation, start)  # the first tap that is inside
    return np.stack([start, end], 1).astype(np.uint32)


def _counted(n: int, size: int, k: int, stride: int, pad: int, _: int) -> np.ndarray:
    """How many rows of each window lie in n and the padding around it, (size,)."""
    start = np.arange(size) * stride - pad
    return np.minimum(start + k, n + pad) - start


def _pool(b: Builder, node: fx.Node, fn: str, ranges: list, step: tuple[int, int], counts: list | None) -> None:
    index = b.picture(args_of(node)[0])
    scales = [np.ones(len(r)) if counts is None else 1 / counts[i] for i, r in enumerate(ranges)]
    row_scale, column_scale = (scale.astype(np.float32) for scale in scales)
    table = Pool(ranges[0], ranges[1], step, row_scale, column_scale)
    layout = layout_over(b.shape(node), (0, 1))
    y = b.filled(node, layout, views.sides(b.shape(node)))
    b.emit(node, Op("pool", node.name, index, y, fn=fn, table=table), layout)


def mean(b: Builder, node: fx.Node) -> None:
    """Over any axes, which become the pixels of a plane."""
    x = args_of(node)[0]
    shape, over = b.shape(x), _over(b, node)
    if options_of(node).get("dtype") not in (None, torch.float32):
        raise LacksError(f"gives {options_of(node)['dtype']} numbers")
    kept = [axis for axis in range(len(shape)) if axis not in over]
    if all(shape[axis] == 1 for axis in over):  # the mean of one number
        value = b.resolved(x)
        b.gives(node, value if b.shape(node) == shape else replace(value, view=value.view.squeeze(tuple(over))))
        return
    index = b.laid(x, layout_over(shape, kept))
    out = b.shape(node)
    b.emit(node, Op("mean", node.name, index, b.new(Map(1, 1, b.maps[index].c))), layout_over(out, ()))


def _over(b: Builder, node: fx.Node) -> set[int]:
    """The axes that a node takes together: all, where it names none."""
    x, axes = args_of(node)[:2]
    rank = len(b.shape(x))
    return {axis % rank for axis in (axes or range(rank))}


def total(b: Builder, node: fx.Node) -> None:
    """A sum over any axes: their mean, times how many numbers there are."""
    mean(b, node)
    value = b.resolved(node)
    count = math.prod(b.shape(args_of(node)[0])) / math.prod(b.shape(node))
    times = b.written("count", torch.tensor(count), layout_over((), ()))
    y = b.like(value.map)
    b.ops.append(Op("binary", node.name, value.map, y, add=times.map, fn="mul"))
    b.gives(node, replace(value, map=y))


def largest(b: Builder, node: fx.Node) -> None:
    """The largest number over any axes: a pool over a whole plane."""
    x = args_of(node)[0]
    shape, over = b.shape(x), _over(b, node)
    index = b.laid(x, layout_over(shape, [axis for axis in range(len(shape)) if axis not in over]))
    m, unit = b.maps[index], np.ones(1, np.float32)
    table = Pool(np.array([[0, m.h]], np.uint32), np.array([[0, m.w]], np.uint32), (1, 1), unit, unit)
    out = b.shape(node)
    b.emit(
        node,
        Op("pool", node.name, index, b.new(Map(m.c, 1, 1)), fn="max", table=table),
        layout_over(out, range(len(out))),
    )


# -- resizes -----------------------------------------------------------------------------------------------------------


def nearest(exact: bool) -> Callable[[Builder, fx.Node], None]:
    """The nearest row and column, as torch finds them, in float32."""

    def lower(b: Builder, node: fx.Node) -> None:
        tables = []
        for n, size, given in _resized(b, node, args_of(node)[2:]):
            scale = np.float32(1 / given if given else n / size)
            at = np.floor((np.arange(size, dtype=np.float32) + np.float32(0.5 * exact)) * scale)
            i = np.minimum(at.astype(np.int64), n - 1)
            tables.append((np.stack([i, i], 1), np.zeros(size)))
        resized(b, node, tables)

    return lower


def bilinear(b: Builder, node: fx.Node) -> None:
    """Between the two rows and columns that lie around, as torch finds them, in float32."""
    aligned, tables = bool(args_of(node)[2]), []
    for n, size, given in _resized(b, node, args_of(node)[3:]):
        if aligned:
            at = np.arange(size, dtype=np.float32) * np.float32((n - 1) / (size - 1) if size > 1 else 0)
        else:
            scale = np.float32(1 / given if given else n / size)
            at = np.maximum((np.arange(size, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), 0)
        i = np.minimum(at.astype(np.int64), n - 1)
        tables.append((np.stack([i, np.minimum(i + 1, n - 1)], 1), at - i))
    resized(b, node, tables)


def _resized(b: Builder, node: fx.Node, given: Sequence[Any]) -> list[tuple[int, int, Any]]:
    """For rows and columns: the input's side, the output's, and the factor that was given."""
    shape, out = b.shape(args_of(node)[0]), b.shape(node)
    if len(shape) != 4:
        raise LacksError(f"resizes {shape}: the engine resizes one picture, (1, C, H, W)")
    return list(zip(shape[2:], out[2:], (*given, None, None)[:2], strict=True))


def resized(b: Builder, node: fx.Node, tables: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Rows and columns of a picture mixed as tables say: indices (size, 2), weights (size,) of the second."""
    (rows, row_weight), (columns, column_weight) = tables
    index, layout = b.picture(args_of(node)[0]), layout_over(b.shape(node), (0, 1))
    table = Resize(
        rows.astype(np.uint32),
        row_weight.astype(np.float32),
        columns.astype(np.uint32),
        column_weight.astype(np.float32),
    )
    y = b.filled(node, layout, views.sides(b.shape(node)))
    b.emit(node, Op("resize", node.name, index, y, table=table), layout)


def border(kind: str) -> Callable[[Builder, fx.Node], None]:
    """Padding with the picture's own numbers: reflected, or the last row and column again."""

    def lower(b: Builder, node: fx.Node) -> None:
        shape, pads = b.shape(args_of(node)[0]), args_of(node)[1]
        if len(shape) != 4 or len(pads) != 4:
            raise LacksError(f"pads {shape}: the engine pads one picture, (1, C, H, W)")
        tables = []
        for n, before, after in zip(shape[2:], (pads[2], pads[0]), (pads[3], pads[1]), strict=True):
            at = np.arange(-before, n + after)
            at = np.clip(at, 0, n - 1) if kind == "replicate" else (n - 1) - np.abs((n - 1) - np.abs(at))
            tables.append((np.stack([at, at], 1), np.zeros(len(at))))
        resized(b, node, tables)

    return lower


def flip(b: Builder, node: fx.Node) -> None:
    shape = b.shape(node)
    axes = {axis % len(shape) for axis in args_of(node)[1]}
    if len(shape) != 4 or not axes <= {2, 3}:
        raise LacksError(
            f"turns round {shape} over axes {sorted(axes)}: the engine turns rows and columns of a picture"
        )
    tables = [np.arange(shape[axis])[:: -1 if axis in axes else 1] for axis in (2, 3)]
    resized(b, node, [(np.stack([at, at], 1), np.zeros(len(at))) for at in tables])


LOWERINGS: dict[Any, Callable[[Builder, fx.Node], None]] = {
    aten.max_pool2d_with_indices.default: max_pool, aten.avg_pool2d.default: average_pool,
    aten._adaptive_avg_pool2d.default: adaptive("mean"), aten.adaptive_max_pool2d.default: adaptive("max"),
    aten.mean.dim: mean, aten.sum.dim_IntList: total, aten.amax.default: largest,
    aten.upsample_nearest2d.default: nearest(exact=False), aten._upsample_nearest_exact2d.default: nearest(exact=True),
    aten.upsample_bilinear2d.default: bilinear, aten.reflection_pad2d.default: border("reflect"),
    aten.replication_pad2d.default: border("replicate"), aten.flip.default: flip,
}  # fmt: skip
