"""Convolutions, linear layers, products of matrices, attention."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from ...core.graph.calls import two
from ..packed import Map, Op
from ..scheduling import tile_rows
from ..tables import Matmul
from . import views
from .builder import Builder, LacksError, args_of, aten, options_of
from .grids import codes_of, scale_of
from .views import Layout, MapView, layout_over

MAX_WINDOW = 64
LEAST = 3e38  # -inf as a finite number, below all scores
DEPTHWISE = ((3, 3), (5, 5), (7, 7))  # windows that have a kernel of their own


def convolution(b: Builder, node: fx.Node) -> None:
    """A convolution of one or two axes, in groups or not; the map of a matrix product over what each tap meets."""
    x, weight, bias, *_, transposed, _, groups = args_of(node)
    w = weights_of(b, weight) * scale_of(b, x)
    if w.ndim not in (3, 4):
        raise LacksError(f"has a window of {w.ndim - 2} axes: the engine has one or two")
    if transposed:
        _transposed(b, node, w, groups)
        return
    op, layout = _window(b, node, w), layout_over(b.shape(node), (0, 1))
    w = w[:, :, None] if w.ndim == 3 else w  # (OC, IC / groups, k, k)
    offsets = bias_of(b, bias, len(w))
    if groups == 1 and _is_vector(b, x) and b.shape(node)[2:] == (1,) * (len(b.shape(node)) - 2):
        taps = [-(-pad // step) if pad % step == 0 else -1 for pad, step in zip(op.pad, op.dilation, strict=True)]
        meets = min(taps) >= 0 and taps[0] < w.shape[2] and taps[1] < w.shape[3]  # the one tap that meets the pixel
        w = w[:, :, taps[0], taps[1]] if meets else np.zeros(w.shape[:2])
        _product(b, node, Op("linear", name_of(node), b.value(x).map, -1, bias=offsets), w, Layout((), (1,)))
        return
    op.x = _read(b, x, groups)
    if _is_depthwise(op, w, groups, b.shape(x)):
        op.kind, op.taps, op.taps_bias = "depthwise", w.reshape(len(w), -1), offsets
        op.y = b.filled(node, layout, views.sides(b.shape(node)))
        op.tile_rows = tile_rows(b.maps[op.y].h, b.maps[op.y].w, len(w))
        b.emit(node, op, layout)
        return
    keeps_size = views.sides(b.shape(node)) == views.sides(b.shape(x))
    if (op.k, op.stride, op.pad) == ((1, 1), (1, 1), (0, 0)) and keeps_size and not b.maps[op.x].interleaved:
        op.kind, op.x = "pointwise", b.laid(x, layout_over(b.shape(x), (0, 1)))
    op.bias = offsets
    matrix = ungrouped(w, groups).reshape(len(w), -1)
    _in_codes(b, op, x, matrix)
    _product(b, node, op, matrix, layout)


def weights_of(b: Builder, weight: Any) -> np.ndarray:
    numbers = b.constant(weight)
    if numbers is None:
        raise LacksError("has weights that are computed")
    return numbers.detach().double().cpu().numpy()


def bias_of(b: Builder, bias: Any, count: int) -> np.ndarray:
    return np.zeros(count) if bias is None else weights_of(b, bias)


def name_of(node: fx.Node) -> str:
    """The layer of the network that a product stands for."""
    return node.meta["layer"]


def _pair(setting: Any, axes: int, row: int = 1) -> tuple[int, int]:
    """A setting of rows and columns, one number for both; of one axis, that of the columns, `row` for the rows."""
    return two(setting) if axes == 2 else (row, setting[0])


def _window(b: Builder, node: fx.Node, w: np.ndarray) -> Op:
    """The window of a convolution, as a dense product's operator that reads and writes no map yet."""
    _, _, _, stride, padding, dilation, *_ = args_of(node)
    k = (1, *w.shape[2:])[-2:]
    if max(k) > MAX_WINDOW or max(stride) > MAX_WINDOW:
        raise LacksError(f"has a window of {k}, stride {tuple(stride)}: the engine has up to {MAX_WINDOW}")
    axes = w.ndim - 2
    op = Op("conv", name_of(node), -1, -1, k=k, stride=_pair(stride, axes), dilation=_pair(dilation, axes))
    op.pad = _pair(padding, axes, row=0)
    return op


def _read(b: Builder, x: fx.Node, groups: int) -> int:
    """The map of a picture that a convolution reads; as the picture came, its channels may be interleaved."""
    value = b.values.get(x)
    if isinstance(value, MapView) and groups == 1 and value.before is None and b.maps[value.map].interleaved:
        return value.map
    return b.picture(x)


def _is_vector(b: Builder, x: fx.Node) -> bool:
    """Whether a picture of 1 x 1 pixels lies in a map of one row."""
    value, shape = b.values.get(x), b.shape(x)
    if not isinstance(value, MapView) or value.before is not None or shape[0] != 1 or b.maps[value.map].interleaved:
        return False
    is_pixel = len(shape) > 2 and all(side == 1 for side in shape[2:])
    return is_pixel and views.fills(value.view, layout_over(shape, ()), b.maps[value.map])


def _is_depthwise(op: Op, w: np.ndarray, groups: int, shape: tuple[int, ...]) -> bool:
    own_filters = groups == len(w) == shape[1] > 1 and op.k in DEPTHWISE and op.dilation == (1, 1)
    return own_filters and op.stride in ((1, 1), (2, 2)) and op.pad[0] == op.pad[1] < op.k[0]


def ungrouped(w: np.ndarray, groups: int) -> np.ndarray:
    """Weights (OC, IC / groups, ...) as (OC, IC, ...), zeros where a group does not read: zero blocks cost nothing."""
    if groups == 1:
        return w
    out, width = len(w) // groups, w.shape[1]
    full = np.zeros((len(w), groups * width, *w.shape[2:]))
    for g in range(groups):
        full[g * out : (g + 1) * out, g * width : (g + 1) * width] = w[g * out : (g + 1) * out]
    return full


def _product(b: Builder, node: fx.Node, op: Op, w: np.ndarray, layout: Layout) -> None:
    """Add a product with matrix w (OC, columns) whose output fills its map in a layout."""
    if op.kind == "linear":
        op.y = b.new(Map(1, 1, len(w)))
    elif op.kind == "pointwise":
        m = b.maps[op.x]
        op.y = b.new(Map(len(w), m.h, m.w))
    else:
        op.y = b.filled(node, layout, views.sides(b.shape(node)))
        op.tile_rows = tile_rows(b.maps[op.y].h, b.maps[op.y].w, w.shape[1])
    b.matrices[op.y] = w
    b.emit(node, op, layout)


def _in_codes(b: Builder, op: Op, x: fx.Node, w: np.ndarray) -> None:
    """Mark a product that is done in int8, for what it reads lies on a grid of codes and its rows do too."""
    if not b.maps[op.x].interleaved:
        op.int8 = codes_of(b, x, w)


def _transposed(b: Builder, node: fx.Node, w: np.ndarray, groups: int) -> None:
    """A transposed convolution: zeros between the pixels of x, then a convolution with the window turned round.

    Output row t meets x's row i with tap t + pad - i * stride. w (IC, OC / groups, k, k).
    """
    x, _, bias, stride, padding, dilation, *_ = args_of(node)
    axes = w.ndim - 2
    w = w[:, :, None] if axes == 1 else w
    wide = len(w) // groups
    turned = np.concatenate([w[g * wide : (g + 1) * wide].swapaxes(0, 1) for g in range(groups)])[:, :, ::-1, ::-1]
    steps, spread, pads, k = _pair(stride, axes), _pair(dilation, axes), _pair(padding, axes, row=0), turned.shape[2:]
    shape = b.shape(x)
    size = views.sides(shape)
    sparse = [(side - 1) * step + 1 for side, step in zip(size, steps, strict=True)]
    front = [(taps - 1) * s - pad for taps, s, pad in zip(k, spread, pads, strict=True)]
    if min(front) < 0:
        raise LacksError("pads more than its window reaches")
    index = b.picture(x)
    if max(steps) > 1:
        m = Map(shape[1], sparse[0], sparse[1])
        spaced = b.new(m)
        to = torch.empty(m.floats, device="meta").as_strided(
            (shape[1], *size), (m.pitch, steps[0] * sparse[1], steps[1]), 0
        )
        planes = (shape[1], *size)
        b.move(spaced, [(b.over(index, planes, layout_over(planes, (0,))), to)], 0.0)
        index = spaced
    op = Op(
        "conv", name_of(node), index, -1, k=k, pad=tuple(front), dilation=spread, bias=bias_of(b, bias, len(turned))
    )
    _product(b, node, op, ungrouped(turned, groups).reshape(len(turned), -1), layout_over(b.shape(node), (0, 1)))


# -- linear layers and matrix products ---------------------------------------------------------------------------------


def linear(b: Builder, node: fx.Node) -> None:
    """mm and addmm: of x (M, K) and a matrix that is constant, or of two that are computed."""
    *bias, first, second = args_of(node)[:3] if node.target is aten.addmm.default else args_of(node)[:2]
    if options_of(node).get("alpha", 1) != 1 or options_of(node).get("beta", 1) != 1:
        raise LacksError("scales what it adds")
    left, right = b.constant(first), b.constant(second)
    if left is None and right is None:
        if bias:
            raise LacksError("adds to a product of two computed matrices")
        _multiplied(b, node, *_stacks(b, first, second))
        return
    added = b.constant(bias[0]) if bias else None
    if bias and (added is None or added.numel() != b.shape(node)[-1] or right is None):
        raise LacksError("adds what is no bias of its rows")
    offsets = bias_of(b, bias[0] if bias else None, b.shape(node)[1 if right is not None else 0])
    if right is not None:
        _rows(b, node, first, weights_of(b, second).T, offsets.reshape(-1))
    else:
        w = weights_of(b, first)  # (M, K) of x (K, N)
        op = Op("pointwise", name_of(node), b.laid(second, layout_over(b.shape(second), (0,))), -1, bias=offsets)
        _product(b, node, op, w, layout_over(b.shape(node), (0,)))


def _rows(b: Builder, node: fx.Node, x: fx.Node, w: np.ndarray, bias: np.ndarray) -> None:
    """x (M, K) times w (N, K): features are planes and rows pixels; a flattened map is read whole."""
    value = b.value(x)
    m_rows = b.shape(x)[0]
    if m_rows == 1 and (flat := _flattened(b, value)) is not None:
        m = b.maps[flat]
        kind = "pointwise" if m.pixels == 1 else "conv"
        op = Op(kind, name_of(node), flat, b.new(Map(len(w), 1, 1)), k=(m.h, m.w), bias=bias)
        b.matrices[op.y] = w
        _in_codes(b, op, x, w)
        b.emit(node, op, layout_over(b.shape(node), (1,)))
        return
    if m_rows == 1:
        vector = Layout((), (1,) if w.shape[1] > 1 else ())
        op = Op("linear", name_of(node), b.laid(x, vector, (1, w.shape[1])), -1, bias=bias)
        _product(b, node, op, w, layout_over(b.shape(node), ()))
        return
    op = Op("pointwise", name_of(node), b.laid(x, layout_over(b.shape(x), (1,))), -1, bias=bias)
    _in_codes(b, op, x, w)
    _product(b, node, op, w, layout_over(b.shape(node), (1,)))


def _flattened(b: Builder, value: MapView) -> int | None:
    """The map of a picture that a vector (1, C * H * W) has the numbers of, if a window can be as large as it."""
    before = value if value.before is None else value.before
    if before.before is not None or before.map < 0:
        return None
    m, shape = b.maps[before.map], before.shape
    if value.before is None:
        is_pixels = m.pixels == 1 and m.c == shape[-1] and views.fills(value.view, layout_over(shape, (1,)), m)
        return before.map if is_pixels and m.c > 1 else None
    is_whole = len(shape) == 4 and shape[0] == 1 and shape[1:] == (m.c, m.h, m.w)
    if not is_whole or max(m.h, m.w) > MAX_WINDOW or not views.fills(before.view, layout_over(shape, (0, 1)), m):
        return None
    return before.map


def products(b: Builder, node: fx.Node) -> None:
    """bmm: matrices (B, M, K) and (B, K, N)."""
    _multiplied(b, node, *_stacks(b, *args_of(node)[:2]))


def _stacks(b: Builder, left: fx.Node, right: fx.Node) -> tuple[MapView, MapView]:
    """Two stacks of matrices under one (b1, b2, ...): a stack that is one axis is split as the other is."""
    first, second = _batched(b, left), _batched(b, right)
    if first.shape[0] == 1:
        return MapView(first.map, first.view.view(*second.shape[:2], *first.shape[2:])), second
    if second.shape[:2] != first.shape[:2]:
        value = b.resolved(right)
        second = MapView(value.map, value.view.view(*first.shape[:2], *second.shape[2:]))
    return first, second


def _batched(b: Builder, operand: fx.Node) -> MapView:
    """Matrices under a shape (b1, b2, rows, columns)."""
    value = b.value(operand)
    before = value.before
    if before is not None and before.before is None and len(before.shape) >= 4:
        if before.shape[-2:] == value.shape[-2:] and all(side == 1 for side in before.shape[:-4]):
            return MapView(before.map, before.view[(0,) * (len(before.shape) - 4)])
    value = b.resolved(operand)
    return MapView(value.map, value.view[(None,) * (4 - len(value.shape))])


def _multiplied(b: Builder, node: fx.Node, first: MapView, second: MapView) -> None:
    """The product of matrices, (b1, b2, M, K) and (b1, b2, K, N), transposed where that needs no move.

    The rows that the kernel reads lie one behind the other: those of the second matrix, or, of the transposed product,
    the columns of the first. A softmax over the columns that follows wants the transposed one, whose planes they are.
    """
    shape = b.shape(node)
    can_transpose = first.view.stride(2) == 1 or first.shape[2] == 1
    if can_transpose and (second.view.stride(3) != 1 or _softmax_follows(node)):
        index = multiplied(b, node.name, _turned(second), _turned(first))
        layout = layout_over(shape, (*range(len(shape) - 2), len(shape) - 1))
    else:
        index = multiplied(b, node.name, first, second)
        layout = layout_over(shape, range(len(shape) - 1))
    b.gives(node, b.over(index, shape, layout))


def _turned(value: MapView) -> MapView:
    return MapView(value.map, value.view.transpose(2, 3))


def _softmax_follows(node: fx.Node) -> bool:
    """Whether what reads a product, a few names and sums later, is a softmax over its columns."""
    for _ in range(8):
        if len(node.users) != 1:
            return False
        node = next(iter(node.users))
        if node.target is aten._softmax.default:
            return args_of(node)[1] in (-1, len(node.meta.get("shape", ())) - 1)
    return False


def multiplied(b: Builder, name: str, first: MapView, second: MapView, scale: float = 1.0) -> int:
    """The map that holds scale * first @ second, (b1, b2, M, K) and (b1, b2, K, N): a plane for each row."""
    if second.view.stride(3) != 1 and second.shape[3] > 1:
        layout = layout_over(second.shape, (0, 1, 2))
        second = b.over(b.placed(second, layout), second.shape, layout)
    (b1, b2, m, k), n = first.shape, second.shape[3]
    a_strides, b_strides = first.view.stride(), second.view.stride()
    table = Matmul(
        (b1, b2), m, k, n,
        int(first.view.storage_offset()), (a_strides[0], a_strides[1], a_strides[2], a_strides[3]),
        int(second.view.storage_offset()), (b_strides[0], b_strides[1], b_strides[2]), scale,
    )  # fmt: skip
    y = b.new(Map(b1 * b2 * m, 1, n))
    b.ops.append(Op("matmul", name, first.map, y, add=second.map, table=table))
    return y


def attention(b: Builder, node: fx.Node) -> None:
    """Scaled dot-product attention: scores with keys as planes, a softmax over them, then the values' mean."""
    q, k, v = (b.resolved(operand) for operand in args_of(node)[:3])
    mask, is_causal = options_of(node).get("attn_mask"), len(args_of(node)) > 4 and args_of(node)[4]
    scale = options_of(node).get("scale")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    b1, b2, queries, _ = q.shape
    keys = k.shape[2]
    # (b1, b2, keys, d) @ (b1, b2, d, queries): keys are planes, queries pixels
    scores = multiplied(b, f"{node.name} scores", k, _turned(q), float(scale))
    shape, layout = (b1, b2, queries, keys), layout_over((b1, b2, queries, keys), (0, 1, 3))
    if is_causal:
        ones = torch.ones(queries, keys, dtype=torch.bool).tril()
        mask = torch.zeros(queries, keys).masked_fill(~ones, -torch.inf)
    elif isinstance(mask, fx.Node):
        mask = b.constant(mask) if b.constant(mask) is not None else mask
    if mask is not None:
        if isinstance(mask, Tensor) and mask.dtype is torch.bool:
            mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
        m = b.maps[scores]
        value = _mask(b, mask, shape)
        added = b.like(scores)
        b.ops.append(
            Op("binary", f"{node.name} mask", scores, added, add=b.placed(value, layout, (m.h, m.w)), fn="add")
        )
        scores = added
    weights = softmaxed(b, f"{node.name} softmax", scores, keys, is_safe=mask is not None and not is_causal)
    # (b1, b2, d, keys) @ (b1, b2, keys, queries)
    y = multiplied(b, node.name, _turned(v), _turned(b.over(weights, shape, layout)))
    out = b.shape(node)
    b.gives(node, b.over(y, out, layout_over(out, (0, 1, 3))))


def softmaxed(b: Builder, name: str, scores: int, planes: int, is_safe: bool) -> int:
    """The map of a softmax over groups of planes; a safe one gives 0 where all of a group is -inf, as masks leave it.

    There -inf becomes a number that no score comes near, and what stands there is multiplied by 0 afterwards.
    """
    y = b.like(scores)
    if not is_safe:
        b.ops.append(Op("softmax", name, scores, y, planes=planes))
        return y
    finite, weights, mask = (b.like(scores) for _ in range(3))
    lift = b.written("lift", torch.tensor(LEAST), views.usual_layout(())).map
    b.ops += [
        Op("unary", f"{name} finite", scores, finite, clamp=(-LEAST, np.inf)),
        Op("softmax", name, finite, weights, planes=planes),
        Op("binary", f"{name} mask", finite, mask, add=lift, fn="add", clamp=(0.0, 1.0)),
        Op("binary", f"{name} safe", weights, y, add=mask, fn="mul"),
    ]
    return y


def _mask(b: Builder, mask: Any, shape: tuple[int, ...]) -> MapView:
    if isinstance(mask, Tensor):
        return b.written("mask", mask.expand(shape), layout_over(shape, (0, 1, 3)))
    value = b.resolved(mask)
    return MapView(value.map, value.view.expand(shape))


LOWERINGS: dict[Any, Callable[[Builder, fx.Node], None]] = {
    aten.convolution.default: convolution, aten.mm.default: linear, aten.addmm.default: linear,
    aten.bmm.default: products, aten._scaled_dot_product_flash_attention_for_cpu.default: attention,
}  # fmt: skip
