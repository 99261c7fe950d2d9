"""What only names numbers anew, and what really moves them: concatenation, padding, shuffles, rolls."""

import itertools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from . import views
from .builder import RENAMINGS, Builder, LacksError, args_of, aten, called, options_of, with_defaults
from .views import Layout, MapView, layout_over


def renamed(b: Builder, node: fx.Node) -> None:
    """A view, as torch has it; a reshape that strides cannot express is left to whoever reads it."""
    x = args_of(node)[0]
    if node.target in (aten.clone.default, aten.detach.default, aten.alias.default):
        b.values[node] = b.values[x] if x in b.values else b.value(x)
        return
    is_reshape = node.target in (aten.view.default, aten._unsafe_view.default, aten._reshape_alias.default)
    value = b.value(x)
    if is_reshape:
        b.values[node] = _reshape(value, b.shape(node))
        return
    value = b.resolved(x)
    made = called(node)(value.view, *args_of(node)[1:], **options_of(node))
    if isinstance(made, Tensor):
        b.values[node] = MapView(value.map, made)
    else:
        b.values[node] = tuple(MapView(value.map, part) for part in made)


def _reshape(value: MapView, shape: tuple[int, ...]) -> MapView:
    if value.before is not None:  # of a reshape
        target = torch.empty(value.before.shape, device="meta")
        if shape == value.before.shape:
            return value.before
        return MapView(-1, target.reshape(shape), value.before)
    if (view := views.reshaped(value.view, shape)) is not None:
        return MapView(value.map, view)
    return MapView(-1, torch.empty(shape, device="meta"), value)


def picked(b: Builder, node: fx.Node) -> None:
    """One of several outputs."""
    parts = b.values.get(args_of(node)[0])
    if isinstance(parts, tuple):
        b.values[node] = parts[args_of(node)[1]]
    elif node not in b.values:
        raise LacksError(f"is output {args_of(node)[1]} of {args_of(node)[0]}, which the engine does not give")


def cat(b: Builder, node: fx.Node) -> None:
    operands, axis = with_defaults(node, None, 0)
    parts = [operand for operand in operands if 0 not in b.shape(operand)]
    _joined(b, node, [b.resolved(operand) for operand in parts], axis % len(b.shape(node)))


def stack(b: Builder, node: fx.Node) -> None:
    operands, axis = with_defaults(node, None, 0)
    axis %= len(b.shape(node))
    values = [b.resolved(operand) for operand in operands]
    _joined(b, node, [MapView(value.map, value.view.unsqueeze(axis)) for value in values], axis)


def _joined(b: Builder, node: fx.Node, values: list[MapView], axis: int) -> None:
    """Values one behind the other along an axis, in the layout of the largest."""
    shape = b.shape(node)
    largest = max(values, key=lambda value: value.view.numel())
    layout = _with_axes(shape, views.layout_of(largest.view, b.maps[largest.map]))
    y = b.filled(node, layout)
    to, at, parts = views.filling(shape, layout, b.maps[y]), 0, []
    for value in values:
        count = value.shape[axis]
        parts.append((value, to.narrow(axis, at, count)))
        at += count
    b.move(y, parts, name=node.name)
    b.gives(node, MapView(y, to))


def _with_axes(shape: tuple[int, ...], layout: Layout | None) -> Layout:
    """The layout, and among its planes the axes that have more than one entry in a shape alone."""
    if layout is None:
        return views.usual_layout(shape)
    lacking = [a for a, count in enumerate(shape) if count > 1 and a not in (*layout.planes, *layout.pixels)]
    return layout_over(shape, (*lacking, *layout.planes), layout.pixels)


def pad(b: Builder, node: fx.Node) -> None:
    """Constant padding; where it is negative, rows go."""
    x, pads, fill = with_defaults(node, None, None, 0.0)
    value, shape = b.resolved(x), b.shape(node)
    layout = _with_axes(shape, views.layout_of(value.view, b.maps[value.map]))
    if 0 in (b.shape(x)[~i] + min(pads[2 * i], 0) + min(pads[2 * i + 1], 0) for i in range(len(pads) // 2)):
        b.gives(node, b.written(node.name, torch.full(shape, float(fill)), layout))  # nothing of x is left
        return
    y = b.filled(node, layout)
    to = target = views.filling(shape, layout, b.maps[y])
    view = value.view
    for i in range(len(pads) // 2):
        axis, before, after = view.dim() - 1 - i, pads[2 * i], pads[2 * i + 1]
        inside = view.shape[axis] + min(before, 0) + min(after, 0)
        view, to = view.narrow(axis, max(-before, 0), inside), to.narrow(axis, max(before, 0), inside)
    b.move(y, [(MapView(value.map, view), to)], float(fill), node.name)
    b.gives(node, MapView(y, target))


def shuffled(axes: Callable[[tuple[int, ...], int], tuple[tuple[int, ...], tuple[int, ...]]]) -> Callable:
    """A reshape, a permutation and a reshape: `axes(shape, setting)` says to which shape and in which order."""

    def lower(b: Builder, node: fx.Node) -> None:
        x, setting = args_of(node)[:2]
        apart, order = axes(b.shape(x), setting)
        value = b.resolved(x)
        if (view := views.reshaped(value.view, apart)) is None:
            raise LacksError("takes apart numbers that do not lie in order")
        b.values[node] = MapView(-1, torch.empty(b.shape(node), device="meta"), MapView(value.map, view.permute(order)))

    return lower


def _pixel_shuffle(shape: tuple[int, ...], r: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    *front, c, h, w = shape
    n = len(front)
    return (*front, c // r**2, r, r, h, w), (*range(n), n, n + 3, n + 1, n + 4, n + 2)


def _pixel_unshuffle(shape: tuple[int, ...], r: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    *front, c, h, w = shape
    n = len(front)
    return (*front, c, h // r, r, w // r, r), (*range(n), n, n + 2, n + 4, n + 1, n + 3)


def _channel_shuffle(shape: tuple[int, ...], groups: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    n, c, *rest = shape
    return (n, groups, c // groups, *rest), (0, 2, 1, *range(3, 3 + len(rest)))


def scatter(b: Builder, node: fx.Node) -> None:
    """A vector with a part of it overwritten at constant places, as what worked in place is written out of place."""
    base, axis, index, part = args_of(node)
    where = b.constant(index)
    if axis != 0 or len(b.shape(node)) != 1 or where is None:
        raise LacksError("scatters along an axis, or to places that are computed")
    y = b.filled(node, layout_over(b.shape(node), ()))
    target = views.filling(b.shape(node), layout_over(b.shape(node), ()), b.maps[y])
    (first, at_first), (second, _) = _unflattened(b, base, target), _unflattened(b, part, target[: where.numel()])
    steps, start = _steps(where.reshape(second.shape)), int(where.flatten()[0])
    b.move(y, [(first, at_first), (second, target.as_strided(second.shape, steps, start))], 0.0, node.name)
    b.gives(node, MapView(y, target))


def _unflattened(b: Builder, node: fx.Node, to: Tensor) -> tuple[MapView, Tensor]:
    """What a vector has the numbers of, and the places that they go to, under its shape."""
    value = b.value(node)
    if value.before is None or value.before.before is not None:
        return b.resolved(node), to
    return value.before, to.view(value.before.shape)


def _steps(where: Tensor) -> list[int]:
    """The stride of each axis of places that lie at even distances."""
    steps = [
        int((where.select(a, 1) - where.select(a, 0)).flatten()[0]) if n > 1 else 0 for a, n in enumerate(where.shape)
    ]
    even = where.flatten()[0].clone()
    for axis, (n, step) in enumerate(zip(where.shape, steps, strict=True)):
        even = even + step * torch.arange(n).view([-1 if a == axis else 1 for a in range(where.dim())])
    if min(steps, default=0) < 0 or not torch.equal(even.expand(where.shape), where):
        raise LacksError("scatters to places that do not lie at even distances")
    return steps


def roll(b: Builder, node: fx.Node) -> None:
    """Each axis in two parts that change places."""
    x, shifts, axes = with_defaults(node, None, None, [])
    shape = b.shape(node)
    value = b.resolved(x)
    if not axes:
        raise LacksError("rolls numbers as if they were one axis")
    layout = _with_axes(shape, views.layout_of(value.view, b.maps[value.map]))
    y = b.filled(node, layout)
    to = views.filling(shape, layout, b.maps[y])
    cuts = []  # of each axis that rolls: (axis, from, to, count) of its parts
    for shift, axis in zip(shifts, axes, strict=True):
        n, a = shape[axis], axis % len(shape)
        s = shift % n
        cuts.append([cut for cut in ((a, 0, s, n - s), (a, n - s, 0, s)) if cut[3]])
    parts = []
    for chosen in itertools.product(*cuts):
        source, target = value.view, to
        for axis, from_, at, count in chosen:
            source, target = source.narrow(axis, from_, count), target.narrow(axis, at, count)
        parts.append((MapView(value.map, source), target))
    b.move(y, parts, name=node.name)
    b.gives(node, MapView(y, to))


def repeat(b: Builder, node: fx.Node) -> None:
    """Each axis so many times: axes of stride 0 in front of it."""
    x, counts = args_of(node)[:2]
    value = b.resolved(x)
    rank = len(counts)
    view = value.view[(None,) * (2 * rank - value.view.dim())]
    order = [a for axis in range(rank) for a in (axis, rank + axis)]
    spread = view.permute(order).expand([n for pair in zip(counts, view.shape[rank:], strict=True) for n in pair])
    b.values[node] = MapView(-1, torch.empty(b.shape(node), device="meta"), MapView(value.map, spread))


def cast(b: Builder, node: fx.Node) -> None:
    """A change of device or of layout in memory; the engine has one kind of number."""
    x = args_of(node)[0]
    if node.meta["dtype"] != x.meta["dtype"]:
        raise LacksError(f"turns {x.meta['dtype']} numbers into {node.meta['dtype']}")
    b.values[node] = b.value(x)


LOWERINGS: dict[Any, Callable[[Builder, fx.Node], None]] = {
    **dict.fromkeys(RENAMINGS, renamed),
    operator.getitem: picked, aten.cat.default: cat, aten.stack.default: stack, aten.constant_pad_nd.default: pad,
    aten.pixel_shuffle.default: shuffled(_pixel_shuffle), aten.pixel_unshuffle.default: shuffled(_pixel_unshuffle),
    aten.channel_shuffle.default: shuffled(_channel_shuffle),
    aten.native_channel_shuffle.default: shuffled(_channel_shuffle), aten.roll.default: roll,
    aten.repeat.default: repeat, aten.scatter.src: scatter, aten._to_copy.default: cast,
}  # fmt: skip
