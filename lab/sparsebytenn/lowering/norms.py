"""Norms and softmax; a batch norm is folded into the product before it where it can be."""

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import fx

from ..packed import Op
from ..tables import Norm
from . import views
from .builder import FREE, Builder, LacksError, args_of, aten, called
from .products import bias_of, name_of, softmaxed, weights_of
from .views import Layout, layout_over


def batch_norm(b: Builder, node: fx.Node) -> None:
    """Fold y = (x - mean) / std * weight + bias into the product before it, else scale and shift each plane."""
    x, weight, bias, mean, var, training, _, eps = args_of(node)
    if training or mean is None or var is None:
        if "instance" in str(node.meta["origin"]).lower() and b.shape(x)[0] == 1:
            _over_planes(b, node, x, (weight, bias), 1, float(eps))
            return
        raise LacksError("keeps no running statistics: its answer depends on the other pictures of a batch")
    scale = 1 / np.sqrt(weights_of(b, var) + eps)
    scale = scale if weight is None else scale * weights_of(b, weight)
    shift = (0 if bias is None else weights_of(b, bias)) - weights_of(b, mean) * scale
    op, shape = b.writer(x), b.shape(x)
    by_channel = op is not None and b.layout(x) in (layout_over(shape, (1,)), Layout((), (1,) if shape[1] > 1 else ()))
    if op is not None and by_channel and op.clamp == FREE and op.add is None and not op.act and shape[1] == len(scale):
        if op.taps is not None:
            op.taps, op.taps_bias = op.taps * scale[:, None], op.taps_bias * scale + shift
            b.gives(node, b.values[x])
            return
        if op.y in b.matrices and len(b.matrices[op.y]) == len(scale):
            b.matrices[op.y], op.bias = b.matrices[op.y] * scale[:, None], op.bias * scale + shift
            b.gives(node, b.values[x])
            return
    _normed(b, node, x, "affine", layout_over(shape, (1,)), Norm(0.0, scale, shift), 1)


def layer_norm(b: Builder, node: fx.Node) -> None:
    """Over the last axes: one axis is planes, normalised at each pixel; more are the planes and pixels of one group."""
    x, normalised, weight, bias, eps = args_of(node)
    shape, axes = b.shape(x), len(normalised)
    count = int(np.prod(normalised))
    weights = np.ones(count) if weight is None else weights_of(b, weight).reshape(-1)
    offsets = bias_of(b, bias, count).reshape(-1)
    layout = layout_over(shape, range(len(shape) - axes, len(shape)))
    _normed(b, node, x, "pixel", layout, Norm(float(eps), weights, offsets), count)


def group_norm(b: Builder, node: fx.Node) -> None:
    x, weight, bias, n, c, _, groups, eps = args_of(node)
    if n != 1:
        raise LacksError(f"reads {b.shape(x)}: the engine normalises one picture, (1, C, ...)")
    _over_planes(b, node, x, (weight, bias), c // groups, float(eps))


def _over_planes(b: Builder, node: fx.Node, x: fx.Node, affine: tuple, planes: int, eps: float) -> None:
    """Normalise so many channels of a picture together, over all of their pixels."""
    weight, bias = affine
    c = b.shape(x)[1]
    weights = np.ones(c) if weight is None else weights_of(b, weight)
    _normed(b, node, x, "planes", layout_over(b.shape(x), (1,)), Norm(eps, weights, bias_of(b, bias, c)), planes)


def _normed(b: Builder, node: fx.Node, x: fx.Node, fn: str, layout: Layout, table: Norm, planes: int) -> None:
    index = b.laid(x, layout)
    b.emit(node, Op("norm", name_of(node), index, b.like(index), fn=fn, planes=planes, table=table), layout)


def softmax(b: Builder, node: fx.Node) -> None:
    """Over one axis, which becomes the fastest of the planes."""
    x, axis = args_of(node)[:2]
    shape = b.shape(x)
    axis = axis % max(len(shape), 1)
    layout = b.layout(x) or views.usual_layout(shape)
    if shape[axis] > 1 and layout.planes[-1:] != (axis,):
        others = [a for a in layout.planes if a != axis]
        layout = Layout((*others, axis), tuple(a for a in layout.pixels if a != axis))
    index = b.laid(x, layout)
    y = softmaxed(b, node.name, index, shape[axis], is_safe=called(node) is aten._safe_softmax.default)
    b.gives(node, b.over(y, shape, layout))


LOWERINGS: dict[Any, Callable[[Builder, fx.Node], None]] = {
    aten.native_batch_norm.default: batch_norm, aten.native_layer_norm.default: layer_norm,
    aten.native_group_norm.default: group_norm, aten._softmax.default: softmax,
    aten._safe_softmax.default: softmax,
}  # fmt: skip
