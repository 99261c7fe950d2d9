"""ONNX forms of what stands between layers, in float: arithmetic, pools, means, slices, padding, norms that stayed.

Each function writes one operator into the writer of `qdq` and gives the name of its output. What an operator is asked
for is read by name, so that modules, functions and methods, keywords and positions come out alike.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from ..graph.calls import arguments, asked, bounds, two
from ..graph.tracing import module_of, shape

_PAD_MODES = {"constant": "constant", "zeros": "constant", "reflect": "reflect", "replicate": "edge"}


def source(writer: Any, node: fx.Node) -> str:
    """The name of the one tensor that a node reads."""
    return writer.names[node.all_input_nodes[0]]


def no_form(node: fx.Node, what: str, remedy: str) -> ValueError:
    """The one line that an operator without an ONNX form ends in."""
    return ValueError(
        f"{node.target if node.op == 'call_module' else node.name}: {what} has no ONNX form here: {remedy}"
    )


def _number(writer: Any, value: float) -> str:
    return writer.constant(f"number {value}", np.float32(value))


def _operand(writer: Any, node: fx.Node, value: Any) -> str:
    if isinstance(value, fx.Node):
        return writer.names[value]
    if not isinstance(value, (int, float)):
        raise no_form(node, f"arithmetic with {value!r}", "take tensors and real numbers")
    return _number(writer, value)


def _arithmetic(kind: str) -> Callable:
    """An operator of two tensors, or of a tensor and a number, in their order."""

    def make(writer: Any, node: fx.Node) -> str:
        args = arguments(node)
        if args.get("rounding_mode"):
            raise no_form(node, f"division with rounding_mode={args['rounding_mode']!r}", "divide plainly")
        a, b = (_operand(writer, node, args[name]) for name in ("input", "other"))
        if (alpha := args.get("alpha", 1)) != 1:
            b = writer.emit("Mul", [b, _number(writer, alpha)], f"{node.name}.alpha")
        return writer.emit(kind, [a, b], node.name)

    return make


def _simple(kind: str, **attributes: str) -> Callable:
    """An operator of one tensor; its ONNX attributes by what torch calls them."""

    def make(writer: Any, node: fx.Node) -> str:
        settings = asked(node)
        values = {name: settings[torch_name] for name, torch_name in attributes.items()}
        return writer.emit(kind, [source(writer, node)], node.name, **values)

    return make


def clamp(writer: Any, node: fx.Node) -> str:
    """ReLU, or a clip to whatever numbers a node clamps to."""
    low, high = bounds(node) or (-math.inf, math.inf)
    if (low, high) == (0, math.inf):
        return writer.emit("Relu", [source(writer, node)], node.name)
    ends = [_number(writer, end) if math.isfinite(end) else "" for end in (low, high)]
    return writer.emit("Clip", [source(writer, node), *ends], node.name)


def _same(writer: Any, node: fx.Node) -> str:
    if module_of(node) is None and arguments(node).get("training", arguments(node).get("train")):
        raise no_form(node, "dropout that goes on dropping in eval mode", "write F.dropout(x, p, self.training)")
    return source(writer, node)


def _softmax(writer: Any, node: fx.Node) -> str:
    if (axis := asked(node)["dim"]) is None:
        raise no_form(node, "softmax without an axis", "write softmax(x, dim)")
    return writer.emit("Softmax", [source(writer, node)], node.name, axis=axis)


def _concat(writer: Any, node: fx.Node) -> str:
    args = arguments(node)
    return writer.emit("Concat", [writer.names[part] for part in args["tensors"]], node.name, axis=args["dim"])


def _pool(writer: Any, node: fx.Node) -> str:
    settings, is_mean = asked(node), isinstance(module_of(node), nn.AvgPool2d) or node.target is F.avg_pool2d
    kernel, pad = two(settings["kernel_size"]), two(settings["padding"])
    if settings.get("divisor_override") or settings.get("return_indices"):
        raise no_form(node, "pooling with divisor_override or return_indices", "leave them out")
    window = {
        "kernel_shape": kernel,
        "strides": two(settings["stride"] or kernel),
        "pads": [*pad, *pad],
        "ceil_mode": int(settings["ceil_mode"]),
    }
    if is_mean:
        counts_padding = int(settings["count_include_pad"])
        return writer.emit("AveragePool", [source(writer, node)], node.name, **window, count_include_pad=counts_padding)
    return writer.emit("MaxPool", [source(writer, node)], node.name, **window, dilations=two(settings["dilation"]))


def _adaptive(writer: Any, node: fx.Node) -> str:
    if two(size := asked(node)["output_size"]) != (1, 1):
        raise no_form(node, f"adaptive pooling to {size}", "pool to 1")
    return writer.emit("GlobalAveragePool", [source(writer, node)], node.name)


def _mean(writer: Any, node: fx.Node) -> str:
    args = arguments(node)
    dim, rank = args.get("dim"), len(shape(node.all_input_nodes[0]))
    if args["dtype"] not in (None, torch.float32):
        raise no_form(node, f"a mean in {args['dtype']}", "take float32")
    axes = [dim] if isinstance(dim, int) else list(dim or range(rank))
    keepdims = int(bool(args.get("keepdim")))
    return writer.emit("ReduceMean", [source(writer, node)], node.name, axes=axes, keepdims=keepdims)


def _flatten(writer: Any, node: fx.Node) -> str:
    if asked(node)["start_dim"] % len(shape(node.all_input_nodes[0])) != 1 or len(shape(node)) != 2:
        raise no_form(node, f"flattening to {len(shape(node))} axes", "flatten(x, 1) to (N, C)")
    return writer.emit("Flatten", [source(writer, node)], node.name, axis=1)


def _slice(writer: Any, node: fx.Node) -> str:
    """x[..., a:b:c, d:e:f]."""
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    rank = len(shape(node.all_input_nodes[0]))
    at = next((k for k, part in enumerate(index) if part is Ellipsis), len(index))
    full_axes = (slice(None),) * (rank - len(index) + (at < len(index)))
    index = (*index[:at], *full_axes, *index[at + 1 :])
    if not all(isinstance(part, slice) and _is_by_numbers(part) for part in index):
        raise no_form(node, f"indexing with {index}", "take slices by numbers")
    rows = [
        (part.start or 0, 2**31 if part.stop is None else part.stop, axis, part.step or 1)
        for axis, part in enumerate(index)
        if part != slice(None)
    ]
    if not rows:
        return source(writer, node)
    parts = [
        writer.constant(f"{node.name}.{name}", np.array(column))
        for name, column in zip(("starts", "ends", "axes", "steps"), zip(*rows, strict=True), strict=True)
    ]
    return writer.emit("Slice", [source(writer, node), *parts], node.name)


def _is_by_numbers(part: slice) -> bool:
    return all(isinstance(end, (int, type(None))) for end in (part.start, part.stop, part.step))


def _pad(writer: Any, node: fx.Node) -> str:
    settings, module = asked(node), module_of(node)
    modes: dict[type, str] = {nn.ReflectionPad2d: "reflect", nn.ReplicationPad2d: "replicate"}
    mode = settings["mode"] if module is None else modes.get(type(module), "constant")
    pads = settings["pad"] if module is None else settings["padding"]
    return padded(writer, node, list(pads), mode, settings.get("value") or 0.0)


def padded(writer: Any, node: fx.Node, pads: list[int], mode: str, value: float = 0.0) -> str:
    """What a node reads with `pads` around it; torch counts from the last axis, (before, after) each."""
    if mode not in _PAD_MODES or not all(isinstance(pad, int) for pad in pads):
        raise no_form(node, f"padding {mode!r} by {pads}", "pad by numbers with a value, 'reflect' or 'replicate'")
    pads = pads + [0] * (2 * len(shape(node.all_input_nodes[0])) - len(pads))
    sizes = writer.constant(f"{node.name}.pads", np.array(pads[0::2][::-1] + pads[1::2][::-1]))
    inputs = [source(writer, node), sizes, *([_number(writer, value)] if value else [])]
    return writer.emit("Pad", inputs, f"{node.name}.pad", mode=_PAD_MODES[mode])


def _norm(writer: Any, node: fx.Node) -> str:
    norm: Any = module_of(node)
    if norm.running_var is None:
        raise no_form(node, "a batch norm without running statistics", "train it with track_running_stats=True")
    scale = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight
    bias = torch.zeros_like(norm.running_var) if norm.bias is None else norm.bias
    parts = {"scale": scale, "bias": bias, "mean": norm.running_mean, "var": norm.running_var}
    names = [writer.constant(f"{node.target}.{name}", value) for name, value in parts.items()]
    return writer.emit("BatchNormalization", [source(writer, node), *names], node.name, epsilon=norm.eps)


def _shuffle(writer: Any, node: fx.Node) -> str:
    factor = asked(node)["upscale_factor"]
    return writer.emit("DepthToSpace", [source(writer, node)], node.name, blocksize=factor, mode="CRD")


def _enlarge(writer: Any, node: fx.Node) -> str:
    settings = asked(node)
    mode, factor = settings["mode"], settings["scale_factor"]
    rounds_size = settings.get("recompute_scale_factor") and any(k % 1 for k in two(factor))
    if factor is None or mode not in ("nearest", "bilinear", "bicubic") or settings.get("antialias") or rounds_size:
        what = f"interpolation {mode!r} with scale_factor={factor}"
        raise no_form(node, what, "give nearest, bilinear or bicubic, and a scale_factor")
    coordinates = "align_corners" if settings.get("align_corners") else "half_pixel"
    sizes = writer.constant(f"{node.name}.factors", np.array([1, 1, *two(factor)], np.float32))
    kind = {"nearest": "nearest", "bilinear": "linear", "bicubic": "cubic"}[mode]
    if mode == "nearest":
        extra: dict[str, Any] = {"nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    else:
        extra = {"coordinate_transformation_mode": coordinates, "cubic_coeff_a": -0.75}
    return writer.emit("Resize", [source(writer, node), "", sizes], node.name, mode=kind, **extra)


def _prelu(writer: Any, node: fx.Node) -> str:
    module: Any = module_of(node)
    slope = module.weight.view(-1, *[1] * (len(shape(node)) - 2))
    return writer.emit("PRelu", [source(writer, node), writer.constant(f"{node.target}.slope", slope)], node.name)


_KINDS: dict[Callable, tuple] = {
    _arithmetic("Add"): (operator.add, torch.add, "add"),
    _arithmetic("Sub"): (operator.sub, torch.sub, "sub"),
    _arithmetic("Mul"): (operator.mul, torch.mul, "mul"),
    _arithmetic("Div"): (operator.truediv, torch.div, "div"),
    _simple("Sigmoid"): (nn.Sigmoid, torch.sigmoid, F.sigmoid, "sigmoid"),
    _simple("Tanh"): (nn.Tanh, torch.tanh, F.tanh, "tanh"),
    _simple("Abs"): (torch.abs, operator.abs, "abs"),
    _simple("LeakyRelu", alpha="negative_slope"): (nn.LeakyReLU, F.leaky_relu),
    _softmax: (nn.Softmax, F.softmax, torch.softmax, "softmax"),
    _concat: (torch.cat, torch.concat, torch.concatenate),
    _pool: (nn.MaxPool2d, nn.AvgPool2d, F.max_pool2d, torch.max_pool2d, F.avg_pool2d),
    _adaptive: (nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d),
    _mean: (torch.mean, "mean"),
    _flatten: (nn.Flatten, torch.flatten, "flatten"),
    _slice: (operator.getitem,),
    _pad: (nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, F.pad),
    _norm: (nn.BatchNorm2d,),
    _shuffle: (nn.PixelShuffle, F.pixel_shuffle),
    _enlarge: (nn.Upsample, F.interpolate),
    _prelu: (nn.PReLU,),
    _same: (nn.Identity, nn.Dropout, nn.Dropout2d, F.dropout, F.dropout2d, torch.dropout, "contiguous"),
}
FORMS: dict[Any, Callable] = {target: make for make, targets in _KINDS.items() for target in targets}
