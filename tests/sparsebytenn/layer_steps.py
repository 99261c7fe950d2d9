"""Steps of random networks that compute within a value: convolutions, norms, activations, in every spelling."""

import math
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from .graphs import Draft, Unfit


def _fits(size: int, k: int, pad: int, dilation: int) -> bool:
    return (k - 1) * dilation + 1 <= size + 2 * pad


def windows(d: Draft, i: int, longest: int = 5) -> tuple[list, list, list, list]:
    """A window that fits a map: kernel size, stride, padding, dilation, each (rows, columns)."""
    square, parts = d.flag(), []
    for size in d.shape(i)[2:]:
        k, stride, dilation = d.int(1, longest), d.pick(1, 1, 2, 3), d.pick(1, 1, 1, 2, 3)
        pad = d.pick(0, k // 2, k // 2, d.int(0, k + 1))
        while not _fits(size, k, pad, dilation):
            k, dilation = (k, 1) if dilation > 1 else (k - 1, 1)
        parts.append((k, stride, pad, dilation))
    sizes = d.shape(i)[2:]
    if square and all(_fits(size, parts[0][0], parts[0][2], parts[0][3]) for size in sizes):
        parts[1] = parts[0]
    return tuple([a, b] for a, b in zip(*parts, strict=True))


def short(pair: list) -> int | tuple:
    """A pair as people write it: one number where both are equal."""
    return pair[0] if pair[0] == pair[1] else tuple(pair)


# -- convolutions ------------------------------------------------------------------------------------------------------


def conv(d: Draft) -> int:
    i = d.value(4)
    c = d.shape(i)[1]
    groups = d.pick(1, 1, *(g for g in (2, 3, 4) if c % g == 0), c)
    outside = groups * d.int(1, max(1, 9 // groups))
    k, stride, pad, dilation = map(short, windows(d, i, d.pick(1, 3, 5, 7)))
    spelling, bias = d.pick("module", "module", "same", "function", "keywords"), d.flag()
    if spelling == "module":
        return d.module(nn.Conv2d(c, outside, k, stride, pad, dilation, groups, bias), i)
    if spelling == "same":
        return d.module(nn.Conv2d(c, outside, k, 1, "same", dilation, groups, bias), i)
    layer = nn.Conv2d(c, outside, k, bias=bias, groups=groups)
    w, b = d.net.held(layer.weight.detach()), d.net.held(layer.bias.detach()) if bias else None
    given = {"stride": stride, "padding": pad, "dilation": dilation, "groups": groups}
    if spelling == "keywords":
        call = lambda net, x: F.conv2d(weight=getattr(net, w), input=x, bias=b and getattr(net, b), **given)  # noqa: E731
    else:
        call = lambda net, x: torch.conv2d(  # noqa: E731
            x, getattr(net, w), b and getattr(net, b), stride, pad, dilation, groups
        )
    return d.step(f"conv2d({c}, {outside}, {k}, {given}, bias={bias})", call, i)


def depthwise(d: Draft) -> int:
    i = d.value(4)
    c = d.shape(i)[1]
    k, stride = d.pick(3, 3, 5, 7), d.pick(1, 2)
    return d.module(nn.Conv2d(c, c * d.pick(1, 1, 1, 2), k, stride, k // 2, groups=c, bias=d.flag()), i)


def pointwise(d: Draft) -> int:
    i = d.value(4)
    return d.module(nn.Conv2d(d.shape(i)[1], d.int(1, 12), 1, bias=d.flag()), i)


def transposed(d: Draft) -> int:
    i = d.value(4)
    c = d.shape(i)[1]
    groups = d.pick(1, 1, 1, c)
    outside = groups * d.int(1, max(1, 6 // groups))
    k, stride, dilation = [d.int(1, 4), d.int(1, 4)], [d.int(1, 3), d.int(1, 3)], [d.pick(1, 1, 2), d.pick(1, 1, 2)]
    pad = [d.int(0, (k[n] - 1) * dilation[n]) for n in range(2)]
    more = [d.int(0, max(stride[n], dilation[n]) - 1) for n in range(2)]
    if d.flag():
        k, stride, pad, more, dilation = [d.pick(2, 4)] * 2, [2, 2], [0, 0], [0, 0], [1, 1]
    k, stride, pad, more, dilation = map(short, (k, stride, pad, more, dilation))
    if d.flag():
        return d.module(nn.ConvTranspose2d(c, outside, k, stride, pad, more, groups, d.flag(), dilation), i)
    w = d.net.held(nn.ConvTranspose2d(c, outside, k, groups=groups).weight.detach())
    given = (stride, pad, more, groups, dilation)
    return d.step(
        f"conv_transpose2d({c}, {outside}, {k}, None, {given})",
        lambda net, x: F.conv_transpose2d(x, getattr(net, w), None, *given),
        i,
    )


def linear(d: Draft) -> int:
    i = d.value(2, 3, 4)
    inside, outside = d.shape(i)[-1], d.int(1, 12)
    layer = nn.Linear(inside, outside, bias=d.flag())
    if d.pick(True, True, False):
        return d.module(layer, i)
    w = d.net.held(layer.weight.detach())
    return d.step(f"linear({inside}, {outside})", lambda net, x: F.linear(x, getattr(net, w)), i)


# -- norms -------------------------------------------------------------------------------------------------------------


def batch_norm(d: Draft) -> int:
    i = d.value(4)
    return d.module(nn.BatchNorm2d(d.shape(i)[1], affine=d.pick(True, True, False)), i)


def group_norm(d: Draft) -> int:
    i = d.value(3, 4)
    c = d.shape(i)[1]
    groups = d.pick(1, c, *(g for g in (2, 3, 4) if c % g == 0))
    if math.prod(d.shape(i)) == groups:
        raise Unfit
    if d.flag():
        return d.module(nn.GroupNorm(groups, c, affine=d.flag()), i)
    return d.step(f"group_norm({groups})", lambda net, x: F.group_norm(x, groups, eps=1e-3), i)


def instance_norm(d: Draft) -> int:
    i = d.value(4, where=lambda shape: shape[2] * shape[3] > 1)
    return d.module(nn.InstanceNorm2d(d.shape(i)[1], affine=d.flag()), i)


def layer_norm(d: Draft) -> int:
    i = d.value(2, 3, 4)
    shape = d.shape(i)
    sizes = shape[-d.pick(1, 1, len(shape) - 1) :]
    if math.prod(sizes) == 1:
        raise Unfit
    if d.flag():
        return d.module(nn.LayerNorm(sizes, elementwise_affine=d.flag(), eps=d.pick(1e-5, 1e-6)), i)
    return d.step(f"layer_norm({sizes})", lambda net, x: F.layer_norm(x, sizes), i)


def layer_norm_of_planes(d: Draft) -> int:
    """ConvNeXt's: over the channels of a map."""
    i = d.value(4, where=lambda shape: shape[1] > 1)
    name = d.net.held(nn.LayerNorm(d.shape(i)[1]))
    return d.step(
        f"{name} LayerNorm of channels", lambda net, x: getattr(net, name)(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), i
    )


# -- activations -------------------------------------------------------------------------------------------------------

MODULES = (
    nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.GELU, nn.Tanh, nn.ELU, nn.Mish,
    nn.Softplus, nn.LeakyReLU, nn.Identity, partial(nn.GELU, "tanh"), partial(nn.LeakyReLU, 0.3),
    partial(nn.Hardtanh, -0.5, 0.7),
)  # fmt: skip
IN_PLACE = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.LeakyReLU, nn.ELU)
FUNCTIONS = {
    "F.relu": F.relu, "torch.relu": torch.relu, "F.relu6": F.relu6, "torch.sigmoid": torch.sigmoid, "F.silu": F.silu,
    "F.hardswish": F.hardswish, "F.hardsigmoid": F.hardsigmoid, "F.gelu": F.gelu, "torch.tanh": torch.tanh,
    "F.gelu(tanh)": lambda x: F.gelu(x, approximate="tanh"), "F.leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "F.hardtanh": lambda x: F.hardtanh(x, -0.4, 0.6), "F.mish": F.mish, "F.softplus": F.softplus, "F.elu": F.elu,
    "torch.clamp(max)": lambda x: torch.clamp(x, max=0.5), "torch.clip": lambda x: torch.clip(x, -0.3, 0.8),
    "2 * F.dropout": lambda x: 2 * F.dropout(x, 0.5, False), "F.relu(inplace)": lambda x: F.relu(x, inplace=True),
    "F.silu(inplace)": lambda x: F.silu(x, inplace=True), "torch.relu_": torch.relu_,
    "x * sigmoid": lambda x: x * torch.sigmoid(x), "hard swish": lambda x: x * F.relu6(x + 3) / 6,
}  # fmt: skip
METHODS = {
    "x.relu()": lambda x: x.relu(), "x.sigmoid()": lambda x: x.sigmoid(), "x.tanh()": lambda x: x.tanh(),
    "x.relu_()": lambda x: x.relu_(), "x.sigmoid_()": lambda x: x.sigmoid_(), "x.clamp(min)": lambda x: x.clamp(min=0),
    "x.clamp": lambda x: x.clamp(-0.6, 0.4), "x.clamp_": lambda x: x.clamp_(-0.6, 0.4), "x.neg": lambda x: -x,
    "x.clamp_min": lambda x: x.clamp_min(0.1), "x.clone": lambda x: x.clone(), "x.contiguous": lambda x: x.contiguous(),
}  # fmt: skip


def activation(d: Draft) -> int:
    i, spelling = d.value(), d.pick("module", "module", "in place", "function", "function", "method")
    if spelling == "module":
        return d.module(d.pick(*MODULES)(), i)
    if spelling == "in place":
        return d.module(d.pick(*IN_PLACE)(inplace=True), i)
    table = FUNCTIONS if spelling == "function" else METHODS
    name = d.pick(*table)
    return d.step(name, lambda net, x: table[name](x), i)


def dropout(d: Draft) -> int:
    """A dropout, and a product: what is written into a dropout's output is no network that trains."""
    name = d.net.held(d.pick(nn.Dropout, nn.Dropout2d)(0.3))
    return d.step(f"{name} dropout, halved", lambda net, x: getattr(net, name)(x) * 0.5, d.value(4))


def prelu(d: Draft) -> int:
    i = d.value(2, 3, 4)
    slopes = d.pick(1, d.shape(i)[1])
    if d.flag():
        return d.module(nn.PReLU(slopes, init=0.3), i)
    w = d.net.held(torch.rand(slopes))
    return d.step(f"prelu({slopes})", lambda net, x: F.prelu(x, getattr(net, w)), i)


def softmax(d: Draft) -> int:
    i = d.value(2, 3, 4)
    dim = d.pick(1, -1, len(d.shape(i)) - 1)
    spelling = d.pick("module", "function", "torch", "method")
    if spelling == "module":
        return d.module(nn.Softmax(dim), i)
    call = {
        "function": lambda net, x: F.softmax(x, dim),
        "torch": lambda net, x: torch.softmax(x, dim=dim),
        "method": lambda net, x: x.softmax(dim),
    }
    return d.step(f"softmax({dim}), {spelling}", call[spelling], i)


KINDS = (
    conv, conv, conv, depthwise, pointwise, pointwise, transposed, linear, linear, batch_norm, group_norm,
    instance_norm, layer_norm, layer_norm_of_planes, activation, activation, activation, activation, dropout, prelu,
    softmax,
)  # fmt: skip
