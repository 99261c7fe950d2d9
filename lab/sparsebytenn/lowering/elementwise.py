"""Activations, clamps, sums and products entry by entry, with torch's broadcasting."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from ..packed import Op
from . import views
from .builder import FREE, Builder, LacksError, args_of, aten, called, options_of, with_defaults
from .views import Layout, MapView

SWAPPED = {"add": "add", "mul": "mul", "max": "max", "min": "min", "sub": "rsub", "div": "rdiv"}
SIMPLE = {
    aten.sigmoid.default: "sigmoid", aten.silu.default: "silu", aten.hardsigmoid.default: "hardsigmoid",
    aten.hardswish.default: "hardswish", aten.tanh.default: "tanh", aten.mish.default: "mish",
    aten.exp.default: "exp", aten.sqrt.default: "sqrt",
}  # fmt: skip


def simple(b: Builder, node: fx.Node) -> None:
    """An activation without settings."""
    activated(b, node, SIMPLE[called(node)])


def gelu(b: Builder, node: fx.Node) -> None:
    activated(b, node, {"none": "gelu", "tanh": "gelu_tanh"}[options_of(node).get("approximate", "none")])


def elu(b: Builder, node: fx.Node) -> None:
    if any(float(number) != 1 for number in args_of(node)[1:]):
        raise LacksError("is an ELU with other settings than 1")
    activated(b, node, "elu")


def softplus(b: Builder, node: fx.Node) -> None:
    if tuple(args_of(node)[1:]) not in ((), (1,), (1, 20)):
        raise LacksError("is a softplus with other settings than 1 and 20")
    activated(b, node, "softplus")


def leaky(b: Builder, node: fx.Node) -> None:
    _, slope = with_defaults(node, None, 0.01)
    activated(b, node, "prelu", lambda planes: np.full(planes, slope, np.float32))


def prelu(b: Builder, node: fx.Node) -> None:
    """A slope for all, or one for each entry of axis 1."""
    slopes = b.constant(args_of(node)[1])
    if slopes is None:
        raise LacksError("has slopes that are computed")
    numbers = slopes.detach().double().reshape(-1).numpy().astype(np.float32)
    if len(numbers) == 1:
        activated(b, node, "prelu", lambda planes: np.full(planes, numbers[0], np.float32))
        return
    x, shape = args_of(node)[0], b.shape(node)
    layout = views.layout_over(shape, (1,))
    op = b.writer(x)
    if op is None or op.act or b.layout(x) != layout:
        index = b.laid(x, layout)
        b.emit(node, Op("unary", node.name, index, b.like(index), act="prelu", slopes=numbers), layout)
        return
    op.act, op.slopes = "prelu", numbers
    b.gives(node, b.values[x])


def activated(b: Builder, node: fx.Node, act: str, slopes: Callable[[int], np.ndarray] | None = None) -> None:
    """Have an operator apply an activation to what it computes."""
    op = _finishing(b, node)
    op.act, op.slopes = act, None if slopes is None else slopes(b.maps[op.y].c)


def clamped(b: Builder, node: fx.Node) -> None:
    """Have an operator clamp what it computes; one clamp behind the other is a clamp."""
    clamp_to(b, node, *_limits(b, node))


def clamp_to(b: Builder, node: fx.Node, low: float, high: float) -> None:
    """The same for a node of any kind, which gives what it reads between these numbers."""
    narrow(_finishing(b, node), low, high)


def narrow(op: Op, low: float, high: float) -> None:
    """Have an operator clamp what it clamped to these numbers too."""
    first, last = op.clamp
    op.clamp = min(max(first, low), high), min(max(last, low), high)


def _finishing(b: Builder, node: fx.Node) -> Op:
    """The operator that wrote what a node reads, if it can do more to it, else one of its own."""
    x = args_of(node)[0]
    op = b.writer(x)
    if op is None or op.act:
        return _unary(b, node)
    b.gives(node, b.values[x])
    return op


def _limits(b: Builder, node: fx.Node) -> tuple[float, float]:
    """The numbers that a node clamps to, infinity where there is none."""
    name = called(node).__name__.split(".")[0]
    if name == "relu":
        return 0.0, np.inf
    given = list(args_of(node)[1:])
    low, high = {"hardtanh": (-1.0, 1.0), "clamp_max": (None, given[0] if given else None)}.get(name, (None, None))
    if name != "clamp_max":
        low, high = (*given, *(low, high)[len(given) :])[:2]
    low, high = options_of(node).get("min", low), options_of(node).get("max", high)
    return _limit(b, low, -np.inf), _limit(b, high, np.inf)


def _limit(b: Builder, limit: Any, free: float) -> float:
    if limit is None:
        return free
    number = b.constant(limit) if isinstance(limit, (fx.Node, Tensor)) else torch.tensor(limit)
    if number is None or number.numel() != 1:
        raise LacksError("clamps to numbers that are computed, or to several")
    return float(number)


def _unary(b: Builder, node: fx.Node) -> Op:
    """An operator of its own that passes on what it reads, so far."""
    x = args_of(node)[0]
    layout = b.layout(x) or views.usual_layout(b.shape(x))
    index = b.laid(x, layout)
    op = Op("unary", node.name, index, b.like(index))
    b.emit(node, op, layout)
    return op


def binary(fn: str) -> Callable[[Builder, fx.Node], None]:
    """What lowers a node of two operands, of which one may be a number."""

    def lower(b: Builder, node: fx.Node) -> None:
        first, second = (_operand(b, operand) for operand in args_of(node)[:2])
        if options_of(node).get("rounding_mode"):
            raise LacksError("rounds what it divides")
        entrywise(b, node, fn, first, second)

    return lower


def rsub(b: Builder, node: fx.Node) -> None:
    if options_of(node).get("alpha", 1) != 1 or len(args_of(node)) > 2:
        raise LacksError("scales what it subtracts")
    first, second = (_operand(b, operand) for operand in args_of(node)[:2])
    entrywise(b, node, "sub", second, first)


def negative(b: Builder, node: fx.Node) -> None:
    entrywise(b, node, "mul", args_of(node)[0], torch.tensor(-1.0))


def reciprocal(b: Builder, node: fx.Node) -> None:
    entrywise(b, node, "div", torch.tensor(1.0), args_of(node)[0])


def reciprocal_root(b: Builder, node: fx.Node) -> None:
    """1 / sqrt(x)."""
    x = args_of(node)[0]
    layout = b.layout(x) or views.usual_layout(b.shape(x))
    index = b.laid(x, layout)
    root = b.like(index)
    b.ops.append(Op("unary", node.name, index, root, act="sqrt"))
    unit = b.written("unit", torch.tensor(1.0), views.usual_layout(()))
    b.emit(node, Op("binary", node.name, root, b.like(index), add=unit.map, fn="rdiv"), layout)


def power(b: Builder, node: fx.Node) -> None:
    x, exponent = args_of(node)[:2]
    if exponent == 2:
        entrywise(b, node, "mul", x, x)
    elif exponent == 0.5:
        activated(b, node, "sqrt")
    else:
        raise LacksError(f"is a power of {exponent}")


def _operand(b: Builder, operand: Any) -> Any:
    """A node, or the numbers of what depends on no input."""
    if isinstance(operand, (int, float)):
        return torch.tensor(float(operand))
    return operand if (numbers := b.constant(operand)) is None else numbers


def entrywise(b: Builder, node: fx.Node, fn: str, first: Any, second: Any) -> None:
    shape = b.shape(node)
    if node.meta.get("dtype", torch.float32) not in (torch.float32, torch.float64):
        raise LacksError(f"gives {node.meta['dtype']} numbers")
    if _folded(b, node, fn, first, second) or (fn == "add" and _taken_in(b, node, first, second)):
        return
    orders = [(first, second, fn), (second, first, SWAPPED[fn])]
    full = [o for o in orders if isinstance(o[0], fx.Node) and b.shape(o[0]) == shape]
    main, other, name = next(
        (o for o in full if b.layout(o[0])), (full or orders[: isinstance(first, fx.Node)] or orders[1:])[0]
    )
    layout = (b.layout(main) if full else None) or views.usual_layout(shape)
    x = b.laid(main, layout) if full else b.placed(broadcast(b, main, shape), layout)
    m = b.maps[x]
    add = other_map(b, other, shape, layout, (m.h, m.w))
    b.emit(node, Op("binary", node.name, x, b.like(x), add=add, fn=name), layout)


def _folded(b: Builder, node: fx.Node, fn: str, first: Any, second: Any) -> bool:
    """Fold a number a row into the product that wrote the other operand: into its bias, or its rows."""
    x, numbers = (first, second) if isinstance(second, Tensor) else (second, first)
    if not isinstance(x, fx.Node) or not isinstance(numbers, Tensor) or b.shape(x) != b.shape(node):
        return False
    op, layout = b.writer(x), b.layout(x)
    if op is None or layout is None or op.y not in b.matrices or op.act or op.clamp != FREE or op.add is not None:
        return False
    if fn in ("sub", "div", "max", "min") and (x is second or fn in ("max", "min")):
        return False
    shape, rows = b.shape(x), layout.pixels if op.kind == "linear" else layout.planes
    sides = (1,) * (len(shape) - numbers.dim()) + tuple(numbers.shape)
    if any(count > 1 and axis not in rows for axis, count in enumerate(sides)):
        return False
    wide = numbers.double().reshape(sides).expand([count if axis in rows else 1 for axis, count in enumerate(shape)])
    others = [axis for axis in range(len(shape)) if axis not in rows]
    row = wide.permute(*others, *rows).reshape(-1).numpy()
    if fn in ("add", "sub"):
        op.bias = op.bias + (row if fn == "add" else -row)
    else:
        factor = row if fn == "mul" else 1 / row
        b.matrices[op.y], op.bias = b.matrices[op.y] * factor[:, None], np.asarray(op.bias) * factor
    b.gives(node, b.values[x])
    return True


def other_map(b: Builder, other: Any, shape: tuple[int, ...], layout: Layout, size: tuple[int, int]) -> int:
    """The map of a second operand: full, a number a plane, a number a pixel, or one number."""
    sides = tuple(other.shape) if isinstance(other, Tensor) else b.shape(other)
    sides = (1,) * (len(shape) - len(sides)) + sides
    varies = {axis for axis, count in enumerate(sides) if count > 1}
    if varies <= set(layout.planes) and len(varies) < len([*layout.planes, *layout.pixels]):
        kept = layout.planes if varies else ()
        over = tuple(count if axis in kept else 1 for axis, count in enumerate(shape))
        value = broadcast(b, other, over)
        a_vector = Layout((), kept)
        if value.before is None and views.fills(value.view, a_vector, b.maps[value.map]) and b.maps[value.map].c == 1:
            return value.map
        return b.placed(value, Layout(kept, ()), (1, 1))
    a_row_of_planes = (1, size[0] * size[1]) == (size[0], views.sizes(shape, layout)[0])  # would stand for planes
    if varies <= set(layout.pixels) and layout.planes and not a_row_of_planes:
        over = tuple(count if axis in layout.pixels else 1 for axis, count in enumerate(shape))
        return b.placed(broadcast(b, other, over), Layout((), layout.pixels), size)
    return b.placed(broadcast(b, other, shape), layout, size)


def broadcast(b: Builder, operand: Any, shape: tuple[int, ...]) -> MapView:
    """An operand under the shape that it is broadcast to."""
    if isinstance(operand, Tensor):
        numbers = operand.expand(shape)
        return b.written("constant", numbers, views.usual_layout(shape))
    value = b.resolved(operand)
    if value.shape == shape:
        return value
    return MapView(value.map, value.view.expand(shape))


def _taken_in(b: Builder, node: fx.Node, first: Any, second: Any) -> bool:
    """Have the product that was written last, one of the terms of a sum, add the other; whether it does."""
    if not all(isinstance(term, fx.Node) and b.shape(term) == b.shape(node) for term in (first, second)):
        return False
    for last, other in ((first, second), (second, first)):
        value, op, layout = b.value(other), b.writer(last), b.layout(last)
        if op is None or layout is None or b.ops[-1] is not op or op.kind not in ("conv", "pointwise"):
            continue
        m = b.maps[op.y]
        lies = value.before is None and views.fills(value.view, layout, b.maps[value.map])
        if op.add is None and op.clamp == FREE and not op.act and lies and value.map != op.y:
            if (b.maps[value.map].h, b.maps[value.map].w) == (m.h, m.w):
                op.add = value.map
                b.gives(node, b.values[last])
                return True
    return False


BINARY = {
    aten.add.Tensor: "add", aten.sub.Tensor: "sub", aten.mul.Tensor: "mul", aten.div.Tensor: "div",
    aten.add.Scalar: "add", aten.sub.Scalar: "sub", aten.mul.Scalar: "mul", aten.div.Scalar: "div",
    aten.div.Tensor_mode: "div", aten.maximum.default: "max", aten.minimum.default: "min",
}  # fmt: skip

LOWERINGS: dict[Any, Callable[[Builder, fx.Node], None]] = {
    **dict.fromkeys(SIMPLE, simple),
    **{target: binary(fn) for target, fn in BINARY.items()},
    aten.gelu.default: gelu, aten.elu.default: elu, aten.softplus.default: softplus,
    aten.leaky_relu.default: leaky, aten._prelu_kernel.default: prelu, aten.rsub.Scalar: rsub, aten.rsub.Tensor: rsub,
    aten.neg.default: negative, aten.reciprocal.default: reciprocal, aten.rsqrt.default: reciprocal_root,
    aten.pow.Tensor_Scalar: power,
    aten.relu.default: clamped, aten.hardtanh.default: clamped, aten.clamp.default: clamped,
    aten.clamp_min.default: clamped, aten.clamp_max.default: clamped, aten.clamp.Tensor: clamped,
    aten.clamp_min.Tensor: clamped, aten.clamp_max.Tensor: clamped,
}  # fmt: skip
