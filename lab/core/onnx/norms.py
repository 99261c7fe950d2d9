"""ONNX forms of what transformers add, in float: norms over channels and matrix products.

Also the batch norms that no convolution took in.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from ..graph.calls import arguments, asked
from ..graph.tracing import module_of, shape
from .shapes import no_form, numbers, permuted, shaped, source

# -- norms -------------------------------------------------------------------------------------------------------------


def _norm(writer: Any, node: fx.Node) -> str:
    norm: Any = module_of(node)
    if norm.running_var is None:
        raise no_form(node, "a batch norm without running statistics", "train it with track_running_stats=True")
    scale = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight
    bias = torch.zeros_like(norm.running_var) if norm.bias is None else norm.bias
    parts = {"scale": scale, "bias": bias, "mean": norm.running_mean, "var": norm.running_var}
    names = [writer.constant(f"{node.target}.{name}", value) for name, value in parts.items()]
    return writer.emit("BatchNormalization", [source(writer, node), *names], node.name, epsilon=norm.eps)


def _part(writer: Any, node: fx.Node, name: str, shaped_as: tuple[int, ...], value: float) -> str:
    """A norm's weight or bias; without one a constant that does nothing."""
    module = module_of(node)
    part = arguments(node)[name] if module is None else getattr(module, name)
    if isinstance(part, fx.Node):
        return writer.names[part]
    if part is None:
        return writer.constant(f"{value} {shaped_as}", np.full(shaped_as, value, np.float32))
    return writer.constant(f"{node.target}.{name}", part)


def _layer_norm(writer: Any, node: fx.Node) -> str:
    settings = asked(node)
    over = tuple(numbers(writer, node, settings["normalized_shape"]))
    parts = [_part(writer, node, "weight", over, 1.0), _part(writer, node, "bias", over, 0.0)]
    reads = writer.names[settings["input"]] if module_of(node) is None else source(writer, node)
    return writer.emit("LayerNormalization", [reads, *parts], node.name, axis=-len(over), epsilon=settings["eps"])


def _rms_norm(writer: Any, node: fx.Node) -> str:
    """x over the root of the mean of its squares, times a weight."""
    settings = asked(node)
    over = tuple(numbers(writer, node, settings["normalized_shape"]))
    eps = torch.finfo(torch.float32).eps if settings["eps"] is None else settings["eps"]
    x, name = (writer.names[settings["input"]] if module_of(node) is None else source(writer, node)), node.name
    square = writer.emit("Mul", [x, x], f"{name}.square")
    mean = writer.reduce("ReduceMean", square, f"{name}.mean", list(range(-len(over), 0)), True)
    shifted = writer.emit("Add", [mean, writer.constant(f"number {eps}", np.float32(eps))], f"{name}.shifted")
    scaled = writer.emit("Div", [x, writer.emit("Sqrt", [shifted], f"{name}.root")], f"{name}.scaled")
    return writer.emit("Mul", [scaled, _part(writer, node, "weight", over, 1.0)], name)


def _group_norm(writer: Any, node: fx.Node) -> str:
    """Each group as one channel of an instance norm, then in its own shape times a weight and plus a bias a channel."""
    settings, (_, channels, *rest) = asked(node), shape(node)
    x, name, groups = source(writer, node), node.name, settings["num_groups"]
    ones, zeros = (writer.constant(f"{v} {groups}", np.full(groups, v, np.float32)) for v in (1.0, 0.0))
    flat = shaped(writer, x, [0, groups, -1], f"{name}.groups")
    normed = writer.emit("InstanceNormalization", [flat, ones, zeros], f"{name}.normed", epsilon=settings["eps"])
    out = writer.emit("Reshape", [normed, writer.emit("Shape", [x], f"{name}.shape")], f"{name}.again")
    for part, kind, neutral in (("weight", "Mul", 1.0), ("bias", "Add", 0.0)):
        row = _part(writer, node, part, (channels,), neutral)
        column = shaped(writer, row, [channels, *(1 for _ in rest)], f"{name}.{part}")
        out = writer.emit(kind, [out, column], f"{name}.{kind}")
    return out


def _instance_norm(writer: Any, node: fx.Node) -> str:
    settings, channels = asked(node), shape(node)[1]
    if settings.get("track_running_stats") or settings.get("running_var") is not None:
        raise no_form(node, "an instance norm with running statistics", "leave track_running_stats off")
    parts = [_part(writer, node, "weight", (channels,), 1.0), _part(writer, node, "bias", (channels,), 0.0)]
    return writer.emit("InstanceNormalization", [source(writer, node), *parts], node.name, epsilon=settings["eps"])


# -- products ----------------------------------------------------------------------------------------------------------


def _matmul(writer: Any, node: fx.Node) -> str:
    a, b = list(arguments(node).values())[:2]
    return writer.emit("MatMul", [writer.names[a], writer.names[b]], node.name)


def _einsum(writer: Any, node: fx.Node) -> str:
    names = [writer.names[part] for part in tree_leaves(node.args) if isinstance(part, fx.Node)]
    return writer.emit("Einsum", names, node.name, equation=str(node.args[0]).replace(" ", ""))


def _linear(writer: Any, node: fx.Node) -> str:
    """F.linear with a weight that no module holds: in float."""
    args = arguments(node)
    weight = permuted(writer, writer.names[args["weight"]], (1, 0), f"{node.name}.weight")
    out = writer.emit("MatMul", [writer.names[args["input"]], weight], f"{node.name}.product")
    return out if args["bias"] is None else writer.emit("Add", [out, writer.names[args["bias"]]], node.name)


def _attention(writer: Any, node: fx.Node) -> str:
    """What could not be written out as products and a softmax."""
    remedy = "leave out dropout_p, add_bias_kv and add_zero_attn in eval mode"
    raise no_form(node, "attention that drops shares out or attends to a learned key", remedy)


_KINDS: dict[Callable, tuple] = {
    _norm: (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    _layer_norm: (nn.LayerNorm, F.layer_norm, torch.layer_norm),
    _rms_norm: (nn.RMSNorm, F.rms_norm, torch.rms_norm),
    _group_norm: (nn.GroupNorm, F.group_norm, torch.group_norm),
    _instance_norm: (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, F.instance_norm),
    _matmul: (torch.matmul, operator.matmul, "matmul", torch.bmm, "bmm"),
    _einsum: (torch.einsum,),
    _linear: (F.linear,),
    _attention: (F.scaled_dot_product_attention, nn.MultiheadAttention),
}
FORMS: dict[Any, Callable] = {target: make for make, targets in _KINDS.items() for target in targets}
