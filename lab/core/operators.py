"""ONNX forms of what classifiers do between their layers: pools, means, slices, zeros around, norms that stayed.

Each function writes one operator into the writer of `qdq` and gives the name of its output.
"""

import operator
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from .tracing import module_of, shape


def _source(writer: Any, node: fx.Node) -> str:
    return writer.names[node.all_input_nodes[0]]


def _two(value: Any) -> tuple[int, int]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def _pool(writer: Any, node: fx.Node) -> str:
    pool: Any = module_of(node)
    kernel, pad = _two(pool.kernel_size), _two(pool.padding)
    kind = {"kernel_shape": kernel, "strides": _two(pool.stride or kernel), "pads": [*pad, *pad],
            "ceil_mode": int(pool.ceil_mode)}  # fmt: skip
    if isinstance(pool, nn.AvgPool2d):
        return writer.emit(
            "AveragePool", [_source(writer, node)], node.name, **kind, count_include_pad=int(pool.count_include_pad)
        )
    return writer.emit("MaxPool", [_source(writer, node)], node.name, **kind, dilations=_two(pool.dilation))


def _adaptive(writer: Any, node: fx.Node) -> str:
    size: Any = module_of(node)
    if _two(size.output_size) != (1, 1):
        raise ValueError(f"{node.target}: adaptive pooling to {size.output_size}: only 1 has an ONNX form")
    return writer.emit("GlobalAveragePool", [_source(writer, node)], node.name)


def _mean(writer: Any, node: fx.Node) -> str:
    axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    chosen = [axes] if isinstance(axes, int) else list(axes or range(len(shape(node.all_input_nodes[0]))))
    return writer.emit("ReduceMean", [_source(writer, node)], node.name, axes=chosen, keepdims=int(bool(keep)))


def _flatten(writer: Any, node: fx.Node) -> str:
    module = module_of(node)
    start = module.start_dim if isinstance(module, nn.Flatten) else (*node.args, 0)[1] if len(node.args) > 1 else 0
    start = node.kwargs.get("start_dim", start)
    if start != 1 or len(shape(node)) != 2:
        raise ValueError(f"{node.name}: only flatten(x, 1) to (N, C) has an ONNX form here")
    return writer.emit("Flatten", [_source(writer, node)], node.name, axis=1)


def _slice(writer: Any, node: fx.Node) -> str:
    """x[..., a:b:c, d:e:f]."""
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    rank = len(shape(node.all_input_nodes[0]))
    at = index.index(Ellipsis) if Ellipsis in index else len(index)
    whole = (slice(None),) * (rank - len(index) + (Ellipsis in index))
    index = (*index[:at], *whole, *index[at + 1 :])
    if not all(isinstance(part, slice) for part in index):
        raise ValueError(f"{node.name}: indexing with {index} has no ONNX form here: take slices")
    rows = [(part.start or 0, 2**31 if part.stop is None else part.stop, axis, part.step or 1)
            for axis, part in enumerate(index) if part != slice(None)]  # fmt: skip
    names = ("starts", "ends", "axes", "steps")
    parts = [
        writer.constant(f"{node.name}.{name}", np.array(column))
        for name, column in zip(names, zip(*rows, strict=True), strict=True)
    ]
    return writer.emit("Slice", [_source(writer, node), *parts], node.name)


def _pad(writer: Any, node: fx.Node) -> str:
    """Zeros around; torch counts from the last axis, (before, after) each."""
    pads, rank = list(node.args[1]), len(shape(node))
    if (node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")) != "constant":
        raise ValueError(f"{node.name}: only padding with zeros has an ONNX form here")
    pads += [0] * (2 * rank - len(pads))
    before, after = pads[0::2][::-1], pads[1::2][::-1]
    return writer.emit("Pad", [_source(writer, node), writer.constant(f"{node.name}.pads", np.array(before + after))],
                       node.name)  # fmt: skip


def _norm(writer: Any, node: fx.Node) -> str:
    norm: Any = module_of(node)
    parts = {"scale": norm.weight, "bias": norm.bias, "mean": norm.running_mean, "var": norm.running_var}
    names = [writer.constant(f"{node.target}.{name}", value) for name, value in parts.items()]
    return writer.emit("BatchNormalization", [_source(writer, node), *names], node.name, epsilon=norm.eps)


def _six(writer: Any, node: fx.Node) -> str:
    ends = [writer.constant(f"number {end}", np.float32(end)) for end in (0, 6)]
    return writer.emit("Clip", [_source(writer, node), *ends], node.name)


MODULES = {
    nn.MaxPool2d: _pool, nn.AvgPool2d: _pool, nn.AdaptiveAvgPool2d: _adaptive, nn.Flatten: _flatten,
    nn.BatchNorm2d: _norm, nn.ReLU6: _six,
}  # fmt: skip
FUNCTIONS = {
    "mean": _mean, torch.mean: _mean, torch.flatten: _flatten, "flatten": _flatten, operator.getitem: _slice,
    F.pad: _pad,
}  # fmt: skip
