"""Activations and norms that older files spell out, put together again: GELU, SiLU, Hardswish, Mish and layer norms."""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..graph.tracing import attribute

_CLOSE = 1e-4  # of a number that a file writes in float32, or short in decimals


def fused(graph: fx.GraphModule) -> None:
    """Replace what is spelt out by torch's own operator, in place; what is left without a reader is dead code."""
    for node in list(graph.graph.nodes):
        for find in (_gelu, _gated, _layer_norm):
            if (made := find(graph, node)) is not None:
                last, target, args, kwargs = made
                with graph.graph.inserting_before(last):
                    kind = "call_module" if isinstance(target, str) else "call_function"
                    new = graph.graph.create_node(kind, target, args, kwargs)
                last.replace_all_uses_with(new)
                break
    graph.graph.eliminate_dead_code()


def _is(node: Any, *targets: Callable) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def _number(graph: fx.GraphModule, value: Any) -> float | None:
    """A number, or a constant of one number."""
    if isinstance(value, fx.Node):
        held = attribute(graph, str(value.target)) if value.op == "get_attr" else None
        return float(held) if isinstance(held, Tensor) and held.numel() == 1 else None
    return float(value) if isinstance(value, (int, float)) else None


def _near(value: float | None, wanted: float) -> bool:
    return value is not None and abs(value - wanted) <= _CLOSE * abs(wanted)


def _with(graph: fx.GraphModule, node: Any, target: Callable, wanted: float) -> Any:
    """The tensor to which a node adds a number, or which it multiplies by one; None if it does not."""
    if not _is(node, target):
        return None
    a, b = node.args
    if _near(_number(graph, b), wanted):
        return a
    return b if _near(_number(graph, a), wanted) else None


def _scaled(graph: fx.GraphModule, node: Any, factor: float) -> Any:
    """The tensor that a node multiplies by this factor, or divides by its inverse."""
    if _is(node, torch.div) and _near(_number(graph, node.args[1]), 1 / factor):
        return node.args[0]
    return _with(graph, node, torch.mul, factor)


def _reader(node: fx.Node) -> Any:
    """The one node that reads a node."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _gelu(graph: fx.GraphModule, node: Any) -> Any:
    """x (1 + erf(x / sqrt 2)) / 2, its factors in any order; or with tanh of a cubic."""
    if _is(node, torch.erf):
        x, approximate = _scaled(graph, node.args[0], 0.5**0.5), "none"
    elif _is(node, torch.tanh):
        x, approximate = _cubic(graph, node.args[0]), "tanh"
    else:
        return None
    gate = _reader(node)
    if x is None or _with(graph, gate, torch.add, 1.0) is not node:
        return None
    half, tensors, present = 1.0, 0, gate
    while half * 2 != 1 or tensors != 1:
        product = _reader(present)
        if not _is(product, torch.mul) or product.args[0] is product.args[1]:
            return None
        other = product.args[1] if product.args[0] is present else product.args[0]
        number = _number(graph, other)
        if number is not None:
            half *= number
        elif other is x:
            tensors += 1
        elif _with(graph, other, torch.mul, 0.5) is x:
            half, tensors = half / 2, tensors + 1
        else:
            return None
        if half not in (1.0, 0.5) or tensors > 1:
            return None
        present = product
    return present, F.gelu, (x,), {"approximate": approximate}


def _cubic(graph: fx.GraphModule, node: Any) -> Any:
    """The x of sqrt(2 / pi) (x + 0.044715 x^3)."""
    total = _scaled(graph, node, (2 / math.pi) ** 0.5)
    if not _is(total, torch.add):
        return None
    for x, term in (total.args, total.args[::-1]):
        cube = _with(graph, term, torch.mul, 0.044715)
        if cube is not None and ((_is(cube, torch.pow) and cube.args == (x, 3.0)) or _is_cube(cube, x)):
            return x
    return None


def _is_cube(node: Any, x: Any) -> bool:
    """x x x."""
    if not _is(node, torch.mul) or x not in node.args:
        return False
    square = node.args[1] if node.args[0] is x else node.args[0]
    return _is(square, torch.mul) and square.args == (x, x)


def _gated(graph: fx.GraphModule, node: Any) -> Any:
    """x sigmoid(x), x hardsigmoid(x), x tanh(softplus(x)), x clip(x + 3, 0, 6) / 6."""
    if not _is(node, torch.mul, torch.div):
        return None
    if (_near(_number(graph, node.args[1]), 6) and _is(node, torch.div)) or _near(_number(graph, node.args[1]), 1 / 6):
        return _hardswish(graph, node)
    if not _is(node, torch.mul):
        return None
    for x, gate in (node.args, node.args[::-1]):
        if _is(gate, torch.sigmoid) and gate.args[0] is x:
            return node, F.silu, (x,), {}
        if _is(gate, F.hardsigmoid) and gate.args[0] is x:
            return node, F.hardswish, (x,), {}
        if _is(gate, torch.tanh) and _is(gate.args[0], F.softplus) and gate.args[0].args[0] is x:
            return node, F.mish, (x,), {}
    return None


def _hardswish(graph: fx.GraphModule, node: Any) -> Any:
    product = node.args[0]
    if not _is(product, torch.mul):
        return None
    for x, gate in (product.args, product.args[::-1]):
        limits = gate.kwargs if _is(gate, torch.clamp) else {}
        if limits == {"min": 0.0, "max": 6.0} and _with(graph, gate.args[0], torch.add, 3.0) is x:
            return node, F.hardswish, (x,), {}
    return None


def _layer_norm(graph: fx.GraphModule, node: Any) -> Any:
    """(x - mean) / sqrt(variance + eps), times a weight, plus a bias of the last axes, as opsets before 17 say it."""
    if not _is(node, torch.div) or not _is(node.args[1], torch.sqrt):
        return None
    shifted, root = node.args[0], node.args[1].args[0]
    square, eps = _variance(graph, root)
    if eps is None or not _is(shifted, torch.sub) or not _is(square, torch.pow, torch.mul):
        return None
    is_square = square.args in ((shifted, 2.0), (shifted, 2), (shifted, shifted))
    x, mean = shifted.args
    if not is_square or not _is(mean, torch.mean) or mean.args[0] is not x or mean.args[1:] != root_axes(root):
        return None
    return _affine(graph, node, x, list(mean.args[1]), eps)


def _variance(graph: fx.GraphModule, root: Any) -> tuple[Any, float | None]:
    """What is averaged below a root, and the number that is added to it."""
    if not _is(root, torch.add):
        return None, None
    mean, eps = root.args[0], _number(graph, root.args[1])
    return (mean.args[0], eps) if _is(mean, torch.mean) else (None, None)


def root_axes(root: Any) -> tuple:
    """The axes over which a variance averages, and whether they stay."""
    return root.args[0].args[1:]


def _affine(graph: fx.GraphModule, node: fx.Node, x: fx.Node, axes: list[int], eps: float) -> Any:
    """The norm's module with the weight and the bias that follow it, if they are the last axes' own."""
    scaled = _reader(node)
    weight = _held(graph, scaled, node, torch.mul)
    total = _reader(scaled) if weight is not None else None
    bias = _held(graph, total, scaled, torch.add)
    if weight is None or bias is None or weight.shape != bias.shape or weight.dim() != len(axes):
        return None
    rank = node.meta["rank"] if "rank" in node.meta else None
    if rank is None or sorted(axes) != list(range(rank - len(axes), rank)):
        return None
    module = nn.LayerNorm(list(weight.shape), eps=eps, device="meta")
    module.weight, module.bias = _learned(weight), _learned(bias)
    name = f"{node.name}_norm"
    graph.add_submodule(name, module)
    return total, name, (x,), {}


def _held(graph: fx.GraphModule, node: Any, read: Any, target: Callable) -> Tensor | None:
    """The constant by which a node multiplies what it reads, or which it adds to that."""
    if not _is(node, target, {torch.mul: operator.mul, torch.add: operator.add}[target]):
        return None
    other = node.args[1] if node.args[0] is read else node.args[0]
    held = attribute(graph, str(other.target)) if isinstance(other, fx.Node) and other.op == "get_attr" else None
    return held if isinstance(held, Tensor) else None


def _learned(part: Tensor) -> nn.Parameter:
    return part if isinstance(part, nn.Parameter) else nn.Parameter(part)
