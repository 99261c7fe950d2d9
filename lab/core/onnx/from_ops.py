"""What stands between the layers of an ONNX file: arithmetic, activations, pools, sums over axes, resizing, grids."""

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .from_layers import padded, padding
from .from_resize import resize
from .from_shapes import given, known
from .values import OnnxReader, OnnxValue, UnreadError, agreed, constant, fixed, scalar

Attributes = dict[str, Any]
_CODES = {
    torch.uint8: (0, 255), torch.int8: (-128, 127), torch.int16: (-(2**15), 2**15 - 1),
    torch.int32: (-(2**31), 2**31 - 1),
}  # fmt: skip


# -- arithmetic --------------------------------------------------------------------------------------------------------


def _number(value: OnnxValue, other: OnnxValue) -> Any:
    """A constant of one number as such, where it leaves the other's shape and type; else the tensor."""
    is_number = value.is_constant and value.runs[0].numel() == 1 and value.rank <= other.rank
    is_alike = value.runs[0].dtype == other.runs[0].dtype
    return scalar(value) if is_number and is_alike and other.node is not None else value


def _binary(function: Callable) -> Callable:
    """An operator of two tensors; a number behind is written as such."""

    def read(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
        a, b = inputs
        return reader.call(function, a, _number(b, a))

    return read


def _add(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    """A sum; one that a layer has as its bias is that layer's output."""
    a, b = inputs
    for value in inputs:
        if value.name in reader.biased:
            return value
    a, b = (b, a) if isinstance(_number(a, b), (int, float)) else (a, b)
    return reader.call(torch.add, a, _number(b, a))


def _mul(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    a, b = inputs
    a, b = (b, a) if isinstance(_number(a, b), (int, float)) else (a, b)
    return reader.call(torch.mul, a, _number(b, a))


def _sub(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    a, b = inputs
    number = _number(a, b)
    return (
        reader.call(torch.rsub, b, number)
        if isinstance(number, (int, float))
        else reader.call(torch.sub, a, _number(b, a))
    )


def _div(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    """A quotient; of integers it is cut at the point."""
    a, b = inputs
    if not a.runs[0].is_floating_point():
        return reader.call(torch.div, a, b, rounding_mode="trunc")
    number = _number(a, b)
    if isinstance(number, (int, float)):
        inverse = reader.call(torch.reciprocal, b)
        return inverse if number == 1 else reader.call(torch.mul, inverse, number)
    return reader.call(torch.div, a, _number(b, a))


def _power(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    """The type is that of the base."""
    a, b = inputs
    exponent = scalar(b) if b.is_constant and b.runs[0].numel() == 1 and b.rank <= a.rank else b
    power = reader.call(torch.pow, a, exponent)
    kind = a.runs[0].dtype
    return power if power.runs[0].dtype == kind else reader.call("to", power, kind)


def _modulo(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    return reader.call(torch.fmod if about.get("fmod", 0) else torch.remainder, *inputs)


def _of_many(function: Callable, is_mean: bool = False) -> Callable:
    """Sums, means and extremes of any number of tensors."""

    def read(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
        total = reduce(lambda a, b: reader.call(function, a, b), inputs)
        return reader.call(torch.div, total, len(inputs)) if is_mean and len(inputs) > 1 else total

    return read


def _where(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    return reader.call(torch.where, *inputs)


def _einsum(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    return reader.call(torch.einsum, about["equation"].replace(" ", ""), *inputs)


# -- activations -------------------------------------------------------------------------------------------------------


def _simple(function: Callable, **fixed_settings: Any) -> Callable:
    """A function of one tensor."""

    def read(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
        return reader.call(function, inputs[0], **fixed_settings)

    return read


def _with(function: Callable, **names: tuple[str, Any]) -> Callable:
    """A function with settings: torch's names of them, each with ONNX's and its default."""

    def read(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
        return reader.call(function, inputs[0], **{key: about.get(*pair) for key, pair in names.items()})

    return read


def _clip(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    low, high = (_limit(inputs, at, about.get(name)) for at, name in ((1, "min"), (2, "max")))
    return inputs[0] if low is None and high is None else reader.call(torch.clamp, inputs[0], min=low, max=high)


def _limit(inputs: list, at: int, value: float | None) -> float | None:
    if len(inputs) > at and inputs[at] is not None:
        value = scalar(inputs[at])
    largest = float(np.finfo(np.float32).max)
    return None if value is None or abs(value) >= largest else value


def _hard_sigmoid(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    """clip(alpha x + beta, 0, 1); torch's is that of 1/6 and 1/2."""
    alpha, beta = about.get("alpha", 0.2), about.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return reader.call(F.hardsigmoid, inputs[0])
    line = reader.call(torch.add, reader.call(torch.mul, inputs[0], alpha), beta)
    return reader.call(torch.clamp, line, min=0.0, max=1.0)


def _gelu(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    return reader.call(F.gelu, inputs[0], approximate=about.get("approximate", "none"))


def _selu(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    alpha, gamma = about.get("alpha", 1.6732632423543772), about.get("gamma", 1.0507009873554805)
    return reader.call(torch.mul, reader.call(F.elu, inputs[0], alpha), gamma)


def _thresholded(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    return reader.call(F.threshold, inputs[0], about.get("alpha", 1.0), 0.0)


def _softmax(function: Callable) -> Callable:
    """Over one axis; before opset 13 over all axes from one on."""

    def read(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
        x, axis = inputs[0], about.get("axis", -1 if reader.opset >= 13 else 1)
        axis %= max(x.rank, 1)
        if reader.opset >= 13 or all(length == 1 for length in x.shape[axis + 1 :]):
            return reader.call(function, x, axis)
        flat = reader.call(torch.flatten, x, axis)
        return reader.call(torch.reshape, reader.call(function, flat, axis), x.shape)

    return read


# -- pools and sums ----------------------------------------------------------------------------------------------------


def _window(x: OnnxValue, about: Attributes) -> dict[str, Any]:
    """Window, stride and dilation, and padding; `more` is what ceil_mode adds behind where padding comes in front."""
    kernel = list(about["kernel_shape"])
    ones = [1] * len(kernel)
    before, after = padding(x, about, kernel)
    return {
        "kernel": kernel,
        "stride": list(about.get("strides", ones)),
        "dilation": list(about.get("dilations", ones)),
        "before": before,
        "after": after,
        "ceil": bool(about.get("ceil_mode", 0)),
    }


def _is_torchs(w: dict[str, Any]) -> bool:
    """Whether torch's pools take this padding: as much on both sides, at most half a window."""
    return w["before"] == w["after"] and all(2 * p <= k for p, k in zip(w["before"], w["kernel"], strict=True))


def _behind(x: OnnxValue, w: dict[str, Any]) -> list[int]:
    """The padding behind each axis with which whole windows are as many as ceil_mode asks for."""
    if not w["ceil"]:
        return w["after"]
    ends = []
    for axis, (k, s, d, p, q) in enumerate(
        zip(w["kernel"], w["stride"], w["dilation"], w["before"], w["after"], strict=True)
    ):
        each = []
        for run in x.runs:
            length, window = run.shape[axis + 2], (k - 1) * d + 1
            count = -(-(length + p + q - window) // s) + 1
            count -= (count - 1) * s >= length + p  # none begins behind all numbers
            each.append((count - 1) * s + window - length - p)
        ends.append(fixed(agreed(tuple(each)), f"the padding of axis {axis + 2}"))
    return ends


def _max_pool(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    x, w = inputs[0], _window(inputs[0], about)
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(w["kernel"]) - 1]
    if _is_torchs(w):
        return reader.call(pool, x, w["kernel"], w["stride"], w["before"], w["dilation"], w["ceil"])
    x = padded(reader, x, w["before"], _behind(x, w), -math.inf)
    return reader.call(pool, x, w["kernel"], w["stride"], 0, w["dilation"])


def _average_pool(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    x, w, counted = inputs[0], _window(inputs[0], about), bool(about.get("count_include_pad", 0))
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(w["kernel"]) - 1]
    if set(w["dilation"]) == {1} and _is_torchs(w):
        return reader.call(pool, x, w["kernel"], w["stride"], w["before"], w["ceil"], counted)
    behind = _behind(x, w)
    means = _means(reader, padded(reader, x, w["before"], behind), w)
    share = agreed_share(x, w, behind, counted)
    if bool((share == 1).all()):
        return means
    return reader.call(torch.div, means, known([share] * len(x.runs)))


def _means(reader: OnnxReader, x: OnnxValue, w: dict[str, Any]) -> OnnxValue:
    """The means of whole windows; of those with gaps by a convolution of each channel."""
    axes = len(w["kernel"])
    if set(w["dilation"]) == {1}:
        return reader.call((F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[axes - 1], x, w["kernel"], w["stride"])
    channels = x.length(1)
    weight = torch.full((channels, 1, *w["kernel"]), 1 / math.prod(w["kernel"]))
    convolution = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    each = known([weight] * len(x.runs))
    return reader.call(convolution, x, each, None, w["stride"], 0, w["dilation"], channels)


def agreed_share(x: OnnxValue, w: dict[str, Any], behind: list[int], counted: bool) -> Tensor:
    """Which share of each window's places counts, (1, 1, *sides): those inside, or inside and in the padding."""
    share = torch.ones(())
    for axis, (k, s, d) in enumerate(zip(w["kernel"], w["stride"], w["dilation"], strict=True)):
        length, p, q = x.length(axis + 2), w["before"][axis], w["after"][axis]
        places = torch.zeros(p + length + behind[axis])
        places[: p + length + q] = 1.0 if counted else 0.0
        places[p : p + length] = 1.0
        starts = torch.arange(0, len(places) - (k - 1) * d, s)
        means = torch.stack([places[starts + j * d] for j in range(k)]).mean(0)
        share = share[..., None] * means
    return share[None, None]


def _global(name: str) -> Callable:
    def read(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
        x = inputs[0]
        return reader.call(getattr(F, f"adaptive_{name}_pool{x.rank - 2}d"), x, 1)

    return read


def _reduce(function: Callable) -> Callable:
    """A mean, sum, extreme or norm over some axes, or all."""

    def read(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
        x, axes = inputs[0], given(inputs, 1, about, "axes")
        if not axes and about.get("noop_with_empty_axes", 0):
            return x
        over = [axis % x.rank for axis in axes] if axes else list(range(x.rank))
        return reader.call(function, x, over, bool(about.get("keepdims", 1)))

    return read


def _composed(before: Callable | None, total: Callable, after: Callable | None) -> Callable:
    """A sum over axes of what a function gives, and what another gives of that."""

    def read(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
        first = inputs[0] if before is None else reader.call(before, inputs[0])
        y = _reduce(total)(reader, [first, *inputs[1:]], about)
        return y if after is None else reader.call(after, y)

    return read


def _argument(function: Callable) -> Callable:
    def read(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
        if about.get("select_last_index", 0):
            raise UnreadError("asks for the last of equal numbers, torch gives the first")
        return reader.call(function, inputs[0], about.get("axis", 0), bool(about.get("keepdims", 1)))

    return read


# -- grids -------------------------------------------------------------------------------------------------------------


def _quantise(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    """The codes of a tensor; of one that depends on the input they are read where they become numbers again."""
    x, scale, zero = (*inputs, None)[:3]
    step = constant(scale)
    point = torch.zeros_like(step, dtype=torch.uint8) if zero is None else constant(zero)
    if point.dtype not in _CODES:
        raise UnreadError(f"gives codes of type {point.dtype}")
    grid = (step, point, about.get("axis", 1))
    if x.node is not None:
        reader.coded[about["gives"]] = (x, grid)
        return OnnxValue(
            about["gives"], tuple(torch.empty(r.shape, dtype=point.dtype, device="meta") for r in x.runs), x.node
        )
    low, high = _CODES[point.dtype]
    each, offset = (_along(part.float(), x.rank, grid[2]) for part in (step, point))
    codes = torch.clamp(torch.round(constant(x) / each) + offset, low, high).to(point.dtype)
    return known([codes] * len(x.runs))


def _dequantise(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    """The numbers of codes: of constants at once, of what QuantizeLinear gives as one rounding of torch."""
    codes, scale, zero = (*inputs, None)[:3]
    step, axis = constant(scale), about.get("axis", 1)
    point = torch.zeros_like(step, dtype=torch.int32) if zero is None else constant(zero)
    if codes.node is None:
        held = constant(codes)
        if block := about.get("block_size", 0):
            each, offset = (
                part.repeat_interleave(block, axis).narrow(axis, 0, held.shape[axis]) for part in (step, point)
            )
        else:
            each, offset = (_along(part, held.dim(), axis) for part in (step, point))
        exact = (held.to(torch.int64) - offset.to(torch.int64)).to(step.dtype) * each
        return known([exact] * len(codes.runs))
    x, (other, zeros, _) = reader.coded.get(codes.name, (None, (step, point, axis)))
    if x is None or not torch.equal(other, step) or not torch.equal(zeros.int(), point.int()):
        raise UnreadError("reads codes that no QuantizeLinear of the same grid gives")
    low, high = _CODES[zeros.dtype]
    if step.numel() == 1:
        return reader.alike(torch.fake_quantize_per_tensor_affine, x, step.item(), int(point.item()), low, high)
    parts = (known([part] * len(x.runs)) for part in (step, point.int()))
    return reader.alike(torch.fake_quantize_per_channel_affine, x, *parts, axis % x.rank, low, high)


def _along(part: Tensor, rank: int, axis: int) -> Tensor:
    """A number, or one for each entry of an axis, as it meets a tensor."""
    if part.numel() == 1:
        return part.reshape(())
    return part.reshape([-1 if k == axis % rank else 1 for k in range(rank)])


FORMS: dict[str, Callable] = {
    "Add": _add, "Sub": _sub, "Mul": _mul, "Div": _div, "Pow": _power, "Mod": _modulo, "Where": _where,
    "Max": _of_many(torch.maximum), "Min": _of_many(torch.minimum), "Sum": _of_many(torch.add),
    "Mean": _of_many(torch.add, is_mean=True), "Einsum": _einsum,
    "Equal": _binary(torch.eq), "Greater": _binary(torch.gt), "GreaterOrEqual": _binary(torch.ge),
    "Less": _binary(torch.lt), "LessOrEqual": _binary(torch.le), "And": _binary(torch.logical_and),
    "Or": _binary(torch.logical_or), "Xor": _binary(torch.logical_xor), "Not": _simple(torch.logical_not),
    "Neg": _simple(torch.neg), "Reciprocal": _simple(torch.reciprocal), "Exp": _simple(torch.exp),
    "Sqrt": _simple(torch.sqrt), "Erf": _simple(torch.erf), "Abs": _simple(torch.abs), "Log": _simple(torch.log),
    "Floor": _simple(torch.floor), "Ceil": _simple(torch.ceil), "Round": _simple(torch.round),
    "Sign": _simple(torch.sign), "Sin": _simple(torch.sin), "Cos": _simple(torch.cos),
    "Relu": _simple(F.relu), "Sigmoid": _simple(torch.sigmoid), "Tanh": _simple(torch.tanh), "Mish": _simple(F.mish),
    "HardSwish": _simple(F.hardswish), "Softplus": _simple(F.softplus), "Softsign": _simple(F.softsign),
    "LeakyRelu": _with(F.leaky_relu, negative_slope=("alpha", 0.01)), "Elu": _with(F.elu, alpha=("alpha", 1.0)),
    "Celu": _with(F.celu, alpha=("alpha", 1.0)), "Clip": _clip, "HardSigmoid": _hard_sigmoid, "Gelu": _gelu,
    "Selu": _selu, "ThresholdedRelu": _thresholded, "Softmax": _softmax(torch.softmax),
    "LogSoftmax": _softmax(torch.log_softmax), "MaxPool": _max_pool, "AveragePool": _average_pool,
    "GlobalAveragePool": _global("avg"), "GlobalMaxPool": _global("max"), "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum), "ReduceMax": _reduce(torch.amax), "ReduceMin": _reduce(torch.amin),
    "ReduceL1": _composed(torch.abs, torch.sum, None), "ReduceL2": _composed(torch.square, torch.sum, torch.sqrt),
    "ReduceSumSquare": _composed(torch.square, torch.sum, None), "ReduceLogSumExp": _reduce(torch.logsumexp),
    "ArgMax": _argument(torch.argmax), "ArgMin": _argument(torch.argmin), "Resize": resize, "Upsample": resize,
    "QuantizeLinear": _quantise, "DequantizeLinear": _dequantise,
}  # fmt: skip
