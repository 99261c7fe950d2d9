"""ONNX forms of what stands between layers, in float: arithmetic, activations, pools, means, padding, interpolation.

Each function writes one operator into the writer of `qdq` and gives the name of its output. What an operator is asked
for is read by name, so that modules, functions and methods, keywords and positions come out alike.
"""

import inspect
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from ..graph.calls import arguments, asked, bounds, of_axes, two
from ..graph.tracing import module_of, shape
from .shapes import no_form, numbers, settings, source

_PAD_MODES = {"constant": "constant", "zeros": "constant", "reflect": "reflect", "replicate": "edge"}


def _number(writer: Any, value: float) -> str:
    return writer.constant(f"number {value}", np.float32(value))


def _operand(writer: Any, node: fx.Node, value: Any) -> str:
    if isinstance(value, fx.Node) and value in writer.names:
        return writer.names[value]
    value = numbers(writer, node, value)
    if not isinstance(value, (int, float)):
        raise no_form(node, f"arithmetic with {value!r}", "take tensors and real numbers")
    return _number(writer, value)


def _promoted(writer: Any, node: fx.Node, value: Any) -> str:
    """An operand as float32 where torch takes it as such beside another: truth and integers."""
    name = _operand(writer, node, value)
    kinds = [part.meta["tensor_meta"].dtype for part in (value, node) if isinstance(part, fx.Node) and shape(part)]
    if len(kinds) < 2 or kinds[0] == kinds[1] or kinds[1] != torch.float32:
        return name
    return writer.emit("Cast", [name], f"{node.name}.{name}", to=1)


def _arithmetic(kind: str) -> Callable:
    """An operator of two tensors, or of a tensor and a number, in their order."""

    def make(writer: Any, node: fx.Node) -> str:
        args = arguments(node)
        if args.get("rounding_mode"):
            raise no_form(node, f"division with rounding_mode={args['rounding_mode']!r}", "divide plainly")
        a, b = (_promoted(writer, node, args[name]) for name in ("input", "other"))
        if (alpha := args.get("alpha", 1)) != 1:
            b = writer.emit("Mul", [b, _number(writer, alpha)], f"{node.name}.alpha")
        return writer.emit(kind, [a, b], node.name)

    return make


def _simple(kind: str, **attributes: str) -> Callable:
    """An operator of one tensor; its ONNX attributes by what torch calls them."""

    def make(writer: Any, node: fx.Node) -> str:
        wanted = asked(node)
        values = {name: wanted[torch_name] for name, torch_name in attributes.items()}
        return writer.emit(kind, [source(writer, node)], node.name, **values)

    return make


def clamp(writer: Any, node: fx.Node) -> str:
    """ReLU, or a clip to whatever numbers a node clamps to."""
    low, high = bounds(node) or (-math.inf, math.inf)
    if (low, high) == (0, math.inf):
        return writer.emit("Relu", [source(writer, node)], node.name)
    ends = [_number(writer, end) if math.isfinite(end) else "" for end in (low, high)]
    return writer.emit("Clip", [source(writer, node), *ends], node.name)


def _silu(writer: Any, node: fx.Node) -> str:
    x = source(writer, node)
    return writer.emit("Mul", [x, writer.emit("Sigmoid", [x], f"{node.name}.gate")], node.name)


def _mish(writer: Any, node: fx.Node) -> str:
    x = source(writer, node)
    gate = writer.emit("Tanh", [writer.emit("Softplus", [x], f"{node.name}.softplus")], f"{node.name}.gate")
    return writer.emit("Mul", [x, gate], node.name)


def _gelu(writer: Any, node: fx.Node) -> str:
    """x (1 + erf(x / sqrt 2)) / 2, or with tanh of a cubic in its place; opset 17 has no operator for it."""
    x, name = source(writer, node), node.name
    if asked(node)["approximate"] == "none":
        gate = writer.emit("Erf", [writer.emit("Div", [x, _number(writer, 2**0.5)], f"{name}.scaled")], f"{name}.erf")
    else:
        cube = writer.emit("Mul", [writer.emit("Mul", [x, x], f"{name}.square"), x], f"{name}.cube")
        cubic = writer.emit(
            "Add", [x, writer.emit("Mul", [cube, _number(writer, 0.044715)], f"{name}.term")], f"{name}.sum"
        )
        scaled = writer.emit("Mul", [cubic, _number(writer, (2 / math.pi) ** 0.5)], f"{name}.scaled")
        gate = writer.emit("Tanh", [scaled], f"{name}.tanh")
    twice = writer.emit("Mul", [x, writer.emit("Add", [gate, _number(writer, 1.0)], f"{name}.gate")], f"{name}.twice")
    return writer.emit("Mul", [twice, _number(writer, 0.5)], name)


def _embedding(writer: Any, node: fx.Node) -> str:
    """Rows of a table by their numbers."""
    module: Any = module_of(node)
    if module.max_norm is not None:
        raise no_form(node, "an embedding with max_norm", "leave it out")
    return writer.emit(
        "Gather", [writer.constant(f"{node.target}.weight", module.weight), source(writer, node)], node.name
    )


def _where(writer: Any, node: fx.Node) -> str:
    """One tensor or number where a mask holds, the other elsewhere; `masked_fill` has them the other way round."""
    args = list(arguments(node).values())
    mask, a, b = (args[1], args[2], args[0]) if "mask" in arguments(node) else args[:3]
    return writer.emit("Where", [_operand(writer, node, part) for part in (mask, a, b)], node.name)


def _square(writer: Any, node: fx.Node) -> str:
    return writer.emit("Mul", [source(writer, node)] * 2, node.name)


def _rsqrt(writer: Any, node: fx.Node) -> str:
    return writer.emit("Reciprocal", [writer.emit("Sqrt", [source(writer, node)], f"{node.name}.root")], node.name)


def _power(writer: Any, node: fx.Node) -> str:
    given = list(arguments(node).values())
    a, b = (_operand(writer, node, value) for value in given[:2])
    return writer.emit("Pow", [a, b], node.name)


def _same(writer: Any, node: fx.Node) -> str:
    if module_of(node) is None and arguments(node).get("training", arguments(node).get("train")):
        raise no_form(node, "dropout that goes on dropping in eval mode", "write F.dropout(x, p, self.training)")
    return source(writer, node)


def _softmax(kind: str) -> Callable:
    def make(writer: Any, node: fx.Node) -> str:
        if (axis := asked(node)["dim"]) is None:
            raise no_form(node, "softmax without an axis", "write softmax(x, dim)")
        return writer.emit(kind, [source(writer, node)], node.name, axis=axis)

    return make


def _hard_sigmoid(writer: Any, node: fx.Node) -> str:
    return writer.emit("HardSigmoid", [source(writer, node)], node.name, alpha=1 / 6, beta=0.5)


def _softplus(writer: Any, node: fx.Node) -> str:
    """log(1 + exp(b x)) / b; where b x is past torch's threshold both are x as far as float32 can tell."""
    x, beta = source(writer, node), asked(node)["beta"]
    if beta == 1:
        return writer.emit("Softplus", [x], node.name)
    scaled = writer.emit("Mul", [x, _number(writer, beta)], f"{node.name}.scaled")
    return writer.emit(
        "Div", [writer.emit("Softplus", [scaled], f"{node.name}.soft"), _number(writer, beta)], node.name
    )


_MEANS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
_MAXIMA = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d,
    torch.max_pool2d, torch.max_pool3d,
)  # fmt: skip
_REFLECTIONS = (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d)
_REPLICATIONS = (nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d)
_ADAPTIVE_MEANS = (
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d,
    F.adaptive_avg_pool3d,
)  # fmt: skip
_ADAPTIVE_MAXIMA = (
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, F.adaptive_max_pool1d, F.adaptive_max_pool2d,
    F.adaptive_max_pool3d,
)  # fmt: skip


def _pool(writer: Any, node: fx.Node) -> str:
    """Pooling of any number of axes."""
    wanted, is_mean, axes = settings(writer, node), _is_called(node, _MEANS), len(shape(node)) - 2
    kernel, pad = of_axes(wanted["kernel_size"], axes), of_axes(wanted["padding"], axes)
    if wanted.get("divisor_override") or wanted.get("return_indices"):
        raise no_form(node, "pooling with divisor_override or return_indices", "leave them out")
    window = {
        "kernel_shape": kernel,
        "strides": of_axes(wanted["stride"] or kernel, axes),
        "pads": [*pad, *pad],
        "ceil_mode": int(wanted["ceil_mode"]),
    }
    if is_mean:
        counts_padding = int(wanted["count_include_pad"])
        return writer.emit("AveragePool", [source(writer, node)], node.name, **window, count_include_pad=counts_padding)
    return writer.emit(
        "MaxPool", [source(writer, node)], node.name, **window, dilations=of_axes(wanted["dilation"], axes)
    )


def _adaptive(writer: Any, node: fx.Node) -> str:
    """Pooling to 1 with any picture; to more with pictures as large as the example."""
    is_mean, axes = _is_called(node, _ADAPTIVE_MEANS), len(shape(node)) - 2
    if of_axes(settings(writer, node)["output_size"], axes) == (1,) * axes:
        return writer.emit(f"Global{'Average' if is_mean else 'Max'}Pool", [source(writer, node)], node.name)
    reads, gives = shape(node.all_input_nodes[0])[2:], shape(node)[2:]
    writer.is_fixed = True
    if all(a % b == 0 for a, b in zip(reads, gives, strict=True)):
        kernel = [a // b for a, b in zip(reads, gives, strict=True)]
        kind = "AveragePool" if is_mean else "MaxPool"
        return writer.emit(kind, [source(writer, node)], node.name, kernel_shape=kernel, strides=kernel)
    if not is_mean or axes > 2:
        kind = "mean" if is_mean else "max"
        raise no_form(node, f"adaptive {kind} pooling of {reads} to {gives}", "pool to sizes that divide the picture's")
    *rows, columns = (_means(a, b) for a, b in zip(reads, gives, strict=True))
    right = [source(writer, node), writer.constant(f"{node.name}.columns", columns.T)]
    if not rows:
        return writer.emit("MatMul", right, node.name)
    left = writer.constant(f"{node.name}.rows", rows[0])
    return writer.emit("MatMul", [left, writer.emit("MatMul", right, f"{node.name}.x")], node.name)


def _is_called(node: fx.Node, kinds: tuple[Any, ...]) -> bool:
    """Whether a node calls one of these modules or functions."""
    return isinstance(module_of(node), tuple(filter(inspect.isclass, kinds))) or node.target in kinds


def _means(reads: int, gives: int) -> np.ndarray:
    """What adaptive pooling of one axis multiplies: window k of `gives` is floor(k r / g) to ceil((k + 1) r / g)."""
    matrix = np.zeros((gives, reads), np.float32)
    for k, row in enumerate(matrix):
        start, end = k * reads // gives, -(-(k + 1) * reads // gives)
        row[start:end] = 1 / (end - start)
    return matrix


def _reduced(kind: str) -> Callable:
    """A mean, sum or extreme over some axes, or all."""

    def make(writer: Any, node: fx.Node) -> str:
        args = arguments(node)
        if args.get("dtype") not in (None, torch.float32):
            raise no_form(node, f"a {kind.removeprefix('Reduce').lower()} in {args['dtype']}", "take float32")
        dim, rank = args.get("dim"), len(shape(node.all_input_nodes[0]))
        axes = [dim] if isinstance(dim, int) else list(dim or range(rank))
        return writer.reduce(kind, source(writer, node), node.name, axes, bool(args.get("keepdim")))

    return make


def _pad(writer: Any, node: fx.Node) -> str:
    wanted, module = settings(writer, node), module_of(node)
    padding = "reflect" if isinstance(module, _REFLECTIONS) else "constant"
    padding = "replicate" if isinstance(module, _REPLICATIONS) else padding
    mode = wanted["mode"] if module is None else padding
    pads = wanted["pad"] if module is None else wanted["padding"]
    return padded(writer, node, list(pads), mode, wanted.get("value") or 0.0)


def padded(writer: Any, node: fx.Node, pads: list[int], mode: str, value: float = 0.0) -> str:
    """What a node reads with `pads` around it; torch counts from the last axis, (before, after) each."""
    if mode not in _PAD_MODES or not all(isinstance(pad, int) for pad in pads):
        raise no_form(node, f"padding {mode!r} by {pads}", "pad by numbers with a value, 'reflect' or 'replicate'")
    pads = pads + [0] * (2 * len(shape(node.all_input_nodes[0])) - len(pads))
    sizes = writer.constant(f"{node.name}.pads", np.array(pads[0::2][::-1] + pads[1::2][::-1]))
    inputs = [source(writer, node), sizes, *([_number(writer, value)] if value else [])]
    return writer.emit("Pad", inputs, f"{node.name}.pad", mode=_PAD_MODES[mode])


def _shuffle(writer: Any, node: fx.Node) -> str:
    factor = settings(writer, node)["upscale_factor"]
    return writer.emit("DepthToSpace", [source(writer, node)], node.name, blocksize=factor, mode="CRD")


def _enlarge(writer: Any, node: fx.Node) -> str:
    wanted = settings(writer, node)
    mode, factor, size = wanted["mode"], wanted["scale_factor"], wanted["size"]
    rounds_size = wanted.get("recompute_scale_factor") and any(k % 1 for k in two(factor))
    if mode not in ("nearest", "bilinear", "bicubic") or wanted.get("antialias") or rounds_size:
        what = f"interpolation {mode!r} with scale_factor={factor}"
        raise no_form(node, what, "give nearest, bilinear or bicubic, and a scale_factor")
    coordinates = "align_corners" if wanted.get("align_corners") else "half_pixel"
    kind = {"nearest": "nearest", "bilinear": "linear", "bicubic": "cubic"}[mode]
    if mode == "nearest":
        extra: dict[str, Any] = {"nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    else:
        extra = {"coordinate_transformation_mode": coordinates, "cubic_coeff_a": -0.75}
    reads = source(writer, node)
    if size is None:
        to = ["", writer.constant(f"{node.name}.factors", np.array([1, 1, *two(factor)], np.float32))]
    else:  # the batch and the channels as they are
        first = writer.emit("Shape", [reads], f"{node.name}.first", start=0, end=2)
        to = ["", "", writer.emit("Concat", [first, writer.integers(two(size))], f"{node.name}.size", axis=0)]
    return writer.emit("Resize", [reads, *to], node.name, mode=kind, **extra)


def _prelu(writer: Any, node: fx.Node) -> str:
    module: Any = module_of(node)
    slope = module.weight.view(-1, *[1] * (len(shape(node)) - 2))
    return writer.emit("PRelu", [source(writer, node), writer.constant(f"{node.target}.slope", slope)], node.name)


_KINDS: dict[Callable, tuple] = {
    _arithmetic("Add"): (operator.add, torch.add, "add"),
    _arithmetic("Sub"): (operator.sub, torch.sub, "sub"),
    _arithmetic("Mul"): (operator.mul, torch.mul, torch.multiply, "mul", "multiply"),
    _arithmetic("Div"): (operator.truediv, torch.div, torch.divide, "div", "divide"),
    _arithmetic("Max"): (torch.maximum, "maximum"),
    _arithmetic("Min"): (torch.minimum, "minimum"),
    _embedding: (nn.Embedding,),
    _where: (torch.where, "where", torch.masked_fill, "masked_fill"),
    _simple("Not"): (operator.invert, torch.logical_not, "logical_not"),
    _power: (operator.pow, torch.pow, "pow"),
    _square: (torch.square, "square"),
    _rsqrt: (torch.rsqrt, "rsqrt"),
    _simple("Neg"): (operator.neg, torch.neg, "neg"),
    _simple("Exp"): (torch.exp, "exp"),
    _simple("Log"): (torch.log, "log"),
    _simple("Sqrt"): (torch.sqrt, "sqrt"),
    _simple("Abs"): (torch.abs, operator.abs, "abs"),
    _simple("Sigmoid"): (nn.Sigmoid, torch.sigmoid, F.sigmoid, "sigmoid"),
    _simple("Tanh"): (nn.Tanh, torch.tanh, F.tanh, "tanh"),
    _simple("Softsign"): (nn.Softsign, F.softsign),
    _simple("HardSwish"): (nn.Hardswish, F.hardswish),
    _hard_sigmoid: (nn.Hardsigmoid, F.hardsigmoid),
    _simple("LeakyRelu", alpha="negative_slope"): (nn.LeakyReLU, F.leaky_relu),
    _simple("Elu", alpha="alpha"): (nn.ELU, F.elu),
    _silu: (nn.SiLU, F.silu),
    _mish: (nn.Mish, F.mish),
    _gelu: (nn.GELU, F.gelu),
    _softplus: (nn.Softplus, F.softplus),
    _softmax("Softmax"): (nn.Softmax, F.softmax, torch.softmax, "softmax"),
    _softmax("LogSoftmax"): (nn.LogSoftmax, F.log_softmax, torch.log_softmax, "log_softmax"),
    _pool: (*_MEANS, *_MAXIMA),
    _adaptive: (*_ADAPTIVE_MEANS, *_ADAPTIVE_MAXIMA),
    _reduced("ReduceMean"): (torch.mean, "mean"),
    _reduced("ReduceSum"): (torch.sum, "sum"),
    _reduced("ReduceMax"): (torch.amax, "amax"),
    _reduced("ReduceMin"): (torch.amin, "amin"),
    _pad: (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d, *_REFLECTIONS, *_REPLICATIONS, F.pad),
    _shuffle: (nn.PixelShuffle, F.pixel_shuffle, torch.pixel_shuffle),
    _enlarge: (nn.Upsample, F.interpolate),
    _prelu: (nn.PReLU,),
    _same: (
        nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, F.dropout, F.dropout1d, F.dropout2d, torch.dropout,
        nn.Dropout3d, F.dropout3d,
        "contiguous",
    ),
}  # fmt: skip
FORMS: dict[Any, Callable] = {target: make for make, targets in _KINDS.items() for target in targets}
