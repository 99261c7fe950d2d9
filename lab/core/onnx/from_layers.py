"""Layers of an ONNX file: nodes whose weights are constants become modules of torch, so that what cuts them finds them.

Each function reads one node: it takes the reader, the node's inputs (None where one is left out) and its attributes.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..graph.operators import CONVS, INSTANCE_NORMS, TRANSPOSED
from .values import FreeSize, OnnxReader, OnnxValue, UnreadError, agreed, constant, fixed

Attributes = dict[str, Any]
_BATCH = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def names(inputs: list, about: Attributes) -> tuple[str, ...]:
    """What a layer is called after: its weight, its bias, or its node."""
    return (*(value.name for value in inputs[1:] if value is not None), about["name"])


def settings_of(about: Attributes) -> tuple:
    """Attributes as a key, without the node's own name."""
    return tuple((key, str(value)) for key, value in sorted(about.items()) if key not in ("name", "gives", "outputs"))


def _key(value: OnnxValue | None) -> int:
    return 0 if value is None else value.key


def filled(reader: OnnxReader, module: Any, **parts: OnnxValue | None) -> nn.Module:
    """A module whose parameters, made without storage, are a file's constants."""
    for name, value in parts.items():
        if value is not None:
            setattr(module, name, reader.parameter(value))
    return module


# -- padding -----------------------------------------------------------------------------------------------------------


def padding(x: OnnxValue, about: Attributes, kernel: Sequence[int]) -> tuple[list[int], list[int]]:
    """The padding before and after each axis, which `auto_pad` takes from the lengths of x."""
    axes = len(kernel)
    kind = about.get("auto_pad", "NOTSET")
    if kind == "NOTSET":
        pads = list(about.get("pads", [0] * 2 * axes))
        return pads[:axes], pads[axes:]
    if kind == "VALID":
        return [0] * axes, [0] * axes
    totals = []
    for axis, k in enumerate(kernel):
        stride, dilation = about.get("strides", [1] * axes)[axis], about.get("dilations", [1] * axes)[axis]
        each = [_same(run.shape[axis + 2], (k - 1) * dilation + 1, stride) for run in x.runs]
        totals.append(fixed(agreed(tuple(each)), f"the padding of axis {axis + 2}"))
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (large, small) if kind == "SAME_LOWER" else (small, large)


def _same(length: int, window: int, stride: int) -> int:
    """How much padding gives length / stride outputs, rounded up."""
    return max((math.ceil(length / stride) - 1) * stride + window - length, 0)


def padded(
    reader: OnnxReader, x: OnnxValue, before: Sequence[int], after: Sequence[int], fill: float = 0.0
) -> OnnxValue:
    """A tensor with numbers around its last axes; x itself where there are none."""
    around = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
    return reader.call(F.pad, x, around, "constant", fill) if any(around) else x


# -- convolutions ------------------------------------------------------------------------------------------------------


def conv(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    """A convolution of one to three axes; padding that differs before and after is made in front of it."""
    x, weight, bias = (*inputs, None)[:3]
    kernel = [fixed(length, "the kernel's size") for length in weight.shape[2:]]
    axes = len(kernel)
    before, after = padding(x, about, kernel)
    if before != after:
        x, before = padded(reader, x, before, after), [0] * axes
    options = {
        "stride": tuple(about.get("strides", [1] * axes)),
        "padding": tuple(before),
        "dilation": tuple(about.get("dilations", [1] * axes)),
        "groups": about.get("group", 1),
    }
    if not weight.is_constant or (bias is not None and not bias.is_constant):
        return reader.call((F.conv1d, F.conv2d, F.conv3d)[axes - 1], x, weight, bias, **options)
    outs, ins = weight.length(0), weight.length(1) * options["groups"]

    def build() -> nn.Module:
        kind: Any = CONVS[axes - 1]
        module = kind(ins, outs, tuple(kernel), bias=bias is not None, device="meta", **options)
        return filled(reader, module, weight=weight, bias=bias)

    return reader.layer(names(inputs, about), ("conv", weight.key, _key(bias), str(options)), build, x)


def conv_transpose(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    """A transposed convolution; padding that differs before and after is cut off behind it."""
    x, weight, bias = (*inputs, None)[:3]
    kernel = [fixed(length, "the kernel's size") for length in weight.shape[2:]]
    axes = len(kernel)
    stride, dilation = (tuple(about.get(name, [1] * axes)) for name in ("strides", "dilations"))
    more = list(about.get("output_padding", [0] * axes))
    windows = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    before, after = _cut(x, about, windows, stride, more)
    both = [min(pair) for pair in zip(before, after, strict=True)]
    options = {"stride": stride, "dilation": dilation, "groups": about.get("group", 1)}
    options |= {"padding": tuple(max(n, 0) for n in both), "output_padding": tuple(more)}
    if not weight.is_constant or (bias is not None and not bias.is_constant):
        functions = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
        y = reader.call(functions[axes - 1], x, weight, bias, **options)
    else:
        ins, outs = weight.length(0), weight.length(1) * options["groups"]

        def build() -> nn.Module:
            kind: Any = TRANSPOSED[axes - 1]
            module = kind(ins, outs, tuple(kernel), bias=bias is not None, device="meta", **options)
            return filled(reader, module, weight=weight, bias=bias)

        y = reader.layer(names(inputs, about), ("turned", weight.key, _key(bias), str(options)), build, x)
    rest = [[p - q for p, q in zip(part, options["padding"], strict=True)] for part in (before, after)]
    return padded(reader, y, [-n for n in rest[0]], [-n for n in rest[1]])


def _cut(x: OnnxValue, about: Attributes, windows: list[int], stride: Sequence[int], more: list[int]) -> tuple:
    """How much of each axis of the whole output is cut off before and behind: ONNX's pads, or what a size asks for."""
    wanted = about.get("output_shape")
    if wanted is None and not about.get("auto_pad", "NOTSET").startswith("SAME"):
        return padding(x, about, windows)
    totals = []
    for axis, window in enumerate(windows):
        length = x.length(axis + 2)
        size = wanted[axis - len(windows)] if wanted else length * stride[axis]
        totals.append(stride[axis] * (length - 1) + more[axis] + window - size)
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    is_upper = about.get("auto_pad", "NOTSET") == "SAME_UPPER"
    return (small, large) if is_upper else (large, small)


# -- products ----------------------------------------------------------------------------------------------------------


def gemm(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    """alpha A B + beta C: a linear layer where B and C are constants."""
    a, b, c = (*inputs, None)[:3]
    alpha, beta = about.get("alpha", 1.0), about.get("beta", 1.0)
    a = reader.call(torch.t, a) if about.get("transA", 0) else a
    outs = b.length(0 if about.get("transB", 0) else 1)
    is_bias = c is None or (c.is_constant and c.runs[0].numel() in (1, outs) and c.rank < 3 and _rows(c) == 1)
    if a.node is not None and b.is_constant and is_bias:
        weight = b if about.get("transB", 0) else reader.call(torch.t, b)
        return linear(reader, (a, _times(reader, weight, alpha), _bias(reader, c, beta, outs)), inputs, about)
    b = reader.call(torch.t, b) if about.get("transB", 0) else b
    product = _times(reader, reader.call(torch.matmul, a, b), alpha)
    return product if c is None else reader.call(torch.add, product, _times(reader, c, beta))


def _rows(c: OnnxValue) -> int:
    return c.length(0) if c.rank == 2 else 1


def _times(reader: OnnxReader, value: OnnxValue, factor: float) -> OnnxValue:
    return value if factor == 1 else reader.call(torch.mul, value, factor)


def _bias(reader: OnnxReader, c: OnnxValue | None, beta: float, outs: int) -> OnnxValue | None:
    if c is None:
        return None
    if c.rank == 1 and c.length(0) == outs:
        return _times(reader, c, beta)
    flat = reader.call(torch.reshape, c, [-1])
    return _times(reader, reader.call(torch.clone, reader.call(torch.broadcast_to, flat, [outs])), beta)


def matmul(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    """A product: a linear layer where the second is a constant matrix, with the bias that alone is added to it.

    So exporters write a linear layer on more than two axes.
    """
    a, b = inputs
    if a.node is None or a.rank < 2 or not b.is_constant or b.rank != 2:
        return reader.call(torch.matmul, a, b)
    bias = reader.values.get(reader.sums.get(about["gives"], ""))
    if bias is not None and bias.is_constant and bias.rank == 1 and bias.length(0) == b.length(1):
        reader.biased.add(about["gives"])
        return linear(reader, (a, reader.call(torch.t, b), bias), [a, b, bias], about)
    return linear(reader, (a, reader.call(torch.t, b), None), inputs, about)


def linear(reader: OnnxReader, parts: tuple, inputs: list, about: Attributes) -> OnnxValue:
    x, weight, bias = parts

    def build() -> nn.Module:
        held = OnnxValue(weight.name, (constant(weight).contiguous(),) * len(weight.runs))
        module = nn.Linear(weight.length(1), weight.length(0), bias=bias is not None, device="meta")
        return filled(reader, module, weight=held, bias=bias)

    key = ("linear", *map(_key, inputs[1:]), settings_of(about))
    return reader.layer(names(inputs, about), key, build, x)


# -- norms -------------------------------------------------------------------------------------------------------------


def batch_norm(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    x, *parts = inputs
    if about.get("training_mode", 0):
        raise UnreadError("is in training mode: export the network in eval mode")
    if x.node is None or x.rank not in _BATCH or not all(part.is_constant for part in parts):
        scale, bias, mean, var = (_over(reader, part, x.rank) for part in parts)
        root = reader.call(torch.sqrt, reader.call(torch.add, var, about.get("epsilon", 1e-5)))
        scaled = reader.call(torch.div, reader.call(torch.sub, x, mean), root)
        return reader.call(torch.add, reader.call(torch.mul, scaled, scale), bias)
    scale, bias, mean, var = parts

    def build() -> nn.Module:
        module: Any = _BATCH[x.rank](scale.length(0), eps=about.get("epsilon", 1e-5), device="meta")
        module.running_mean, module.running_var = constant(mean).clone(), constant(var).clone()
        module.num_batches_tracked = torch.tensor(0)
        return filled(reader, module, weight=scale, bias=bias)

    return reader.layer(names(inputs, about), ("batch", *map(_key, parts), settings_of(about)), build, x)


def _over(reader: OnnxReader, part: OnnxValue, rank: int) -> OnnxValue:
    """A number a channel, over the axes behind it."""
    return reader.call(torch.reshape, part, [-1, *[1] * (rank - 2)])


def layer_norm(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    x, scale, bias = (*inputs, None)[:3]
    axis = about.get("axis", -1) % x.rank
    over = [x.length(k) for k in range(axis, x.rank)]
    eps = about.get("epsilon", 1e-5)
    if not all(part is None or part.is_constant for part in (scale, bias)):
        return reader.call(F.layer_norm, x, over, scale, bias, eps)

    def build() -> nn.Module:
        parts = {name: _shaped(part, over) for name, part in {"weight": scale, "bias": bias}.items()}
        module = nn.LayerNorm(over, eps=eps, bias=bias is not None, device="meta")
        return filled(reader, module, **parts)

    return reader.layer(names(inputs, about), ("layer", scale.key, _key(bias), axis, eps, *over), build, x)


def _shaped(part: OnnxValue | None, over: list[int]) -> OnnxValue | None:
    if part is None or list(constant(part).shape) == over:
        return part
    return OnnxValue(part.name, (torch.broadcast_to(constant(part), over).contiguous(),) * len(part.runs))


def group_norm(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    """As of opset 21; the older one, of a scale a group, is no valid operator any more."""
    x, scale, bias = inputs
    groups, eps = about["num_groups"], about.get("epsilon", 1e-5)

    def build() -> nn.Module:
        module = nn.GroupNorm(groups, scale.length(0), eps=eps, device="meta")
        return filled(reader, module, weight=scale, bias=bias)

    return reader.layer(names(inputs, about), ("group", scale.key, _key(bias), groups, eps), build, x)


def instance_norm(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    x, scale, bias = inputs
    kind = INSTANCE_NORMS[x.rank - 3]

    def build() -> nn.Module:
        module = kind(scale.length(0), eps=about.get("epsilon", 1e-5), affine=True, device="meta")
        return filled(reader, module, weight=scale, bias=bias)

    key = ("instance", kind, scale.key, _key(bias), settings_of(about))
    return reader.layer(names(inputs, about), key, build, x)


# -- others with weights -----------------------------------------------------------------------------------------------


def prelu(reader: OnnxReader, inputs: list, about: Attributes) -> OnnxValue:
    """A slope a channel, or one; other slopes by their own shape."""
    x, slope = inputs
    held = constant(slope) if slope.is_constant else None
    lengths = [] if held is None else [1] * (x.rank - held.dim()) + list(held.shape)
    is_layer = held is not None and x.rank > 1 and held.numel() == lengths[1] and held.numel() in (1, _channels(x))
    if not is_layer:
        zero = reader.call(torch.clamp, x, max=0.0)
        return reader.call(torch.add, reader.call(F.relu, x), reader.call(torch.mul, slope, zero))

    def build() -> nn.Module:
        flat = OnnxValue(slope.name, (constant(slope).flatten(),) * len(slope.runs))
        return filled(reader, nn.PReLU(flat.length(0), device="meta"), weight=flat)

    return reader.layer(names(inputs, about), ("prelu", slope.key), build, x)


def _channels(x: OnnxValue) -> int:
    length = x.shape[1]
    return -1 if isinstance(length, FreeSize) else length


FORMS: dict[str, Callable] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": matmul,
    "BatchNormalization": batch_norm,
    "LayerNormalization": layer_norm,
    "GroupNormalization": group_norm,
    "InstanceNormalization": instance_norm,
    "PRelu": prelu,
}
