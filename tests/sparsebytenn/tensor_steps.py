"""Steps of random networks that pool, join, cut, add and multiply values, in every spelling."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from .graphs import Draft, Unfit
from .layer_steps import short, windows

# -- pools -------------------------------------------------------------------------------------------------------------


def max_pool(d: Draft) -> int:
    i = d.value(4)
    k, stride, pad, dilation = windows(d, i)
    pad = [min(p, n // 2) for p, n in zip(pad, k, strict=True)]
    if any((n - 1) * far + 1 > s + 2 * p for n, far, s, p in zip(k, dilation, d.shape(i)[2:], pad, strict=True)):
        raise Unfit
    k, stride, pad, dilation = map(short, (k, stride, pad, dilation))
    stride, ceil = d.pick(stride, None), d.flag()
    given = (k, stride, pad, dilation)
    spelling = d.pick("module", "F", "torch")
    if spelling == "module":
        return d.module(nn.MaxPool2d(*given, ceil_mode=ceil), i)
    if spelling == "F":
        return d.step(f"F.max_pool2d{given}, ceil={ceil}", lambda net, x: F.max_pool2d(x, *given, ceil_mode=ceil), i)
    return d.step(
        f"torch.max_pool2d{given}, ceil={ceil}",
        lambda net, x: torch.max_pool2d(x, k, k if stride is None else stride, pad, dilation, ceil),
        i,
    )


def avg_pool(d: Draft) -> int:
    i = d.value(4)
    k, stride, pad, _ = windows(d, i)
    pad = [min(p, n // 2) for p, n in zip(pad, k, strict=True)]
    k, stride, pad = map(short, (k, stride, pad))
    given = (k, d.pick(stride, None), pad, d.flag(), d.flag(), d.pick(None, None, 1, 5))
    if d.flag():
        return d.module(nn.AvgPool2d(*given), i)
    return d.step(f"F.avg_pool2d{given}", lambda net, x: F.avg_pool2d(x, *given), i)


def adaptive(d: Draft) -> int:
    i = d.value(4)
    size = d.pick(1, (1, 1), d.int(1, 9), (d.int(1, 9), d.int(1, 9)), (None, d.int(1, 4)))
    name = d.pick("avg", "avg", "max")
    if d.flag():
        return d.module({"avg": nn.AdaptiveAvgPool2d, "max": nn.AdaptiveMaxPool2d}[name](size), i)
    pool = {"avg": F.adaptive_avg_pool2d, "max": F.adaptive_max_pool2d}[name]
    return d.step(f"F.adaptive_{name}_pool2d({size})", lambda net, x: pool(x, size), i)


def mean(d: Draft) -> int:
    i = d.value(3, 4)
    dims = d.pick((2, 3), [-1, -2], (2, 3)) if len(d.shape(i)) == 4 else d.pick(1, (1,), -2)
    keep = d.flag()
    if d.flag():
        return d.step(f"x.mean({dims}, {keep})", lambda net, x: x.mean(dims, keep), i)
    return d.step(f"torch.mean({dims}, {keep})", lambda net, x: torch.mean(x, dim=dims, keepdim=keep), i)


# -- joined and cut ----------------------------------------------------------------------------------------------------


def cat(d: Draft) -> int:
    i = d.value(2, 3, 4)
    shape = d.shape(i)
    dim = d.pick(1, 1, 1, len(shape) - 1)
    alike = lambda other: other[:dim] + other[dim + 1 :] == shape[:dim] + shape[dim + 1 :]  # noqa: E731
    others = [d.value(len(shape), where=alike) for _ in range(d.int(1, 3))]
    dim, first = d.pick(dim, dim - len(shape)), d.pick(True, True, False)
    if first:
        return d.step(f"cat({dim})", lambda net, *x: torch.cat(x, dim), i, *others)
    return d.step(f"concat(dim={dim})", lambda net, *x: torch.concat([*x], dim=dim), *others, i)


def stack(d: Draft) -> int:
    """Two values side by side on an axis of their own; of maps it joins that of the channels."""
    i = d.value(2, 3, 4)
    shape = d.shape(i)
    j, dim = d.value(len(shape), where=lambda other: other == shape), d.pick(1, 2, -1)
    if len(shape) == 4:
        return d.step(f"stack({dim}), flatten", lambda net, x, y: torch.stack((x, y), dim=dim).flatten(1, 2), i, j)
    return d.step(f"stack({dim})", lambda net, x, y: torch.stack([x, y], dim), i, j)


def chunk(d: Draft) -> int:
    i = d.value(2, 3, 4)
    shape = d.shape(i)
    dim = d.pick(1, 1, len(shape) - 1)
    n, method = d.int(2, 3), d.flag()
    parts = len(torch.empty(shape[dim]).chunk(n))
    call = (lambda x: x.chunk(n, dim)) if method else (lambda x: torch.chunk(x, n, dim=dim))
    return d.step(f"chunk({n}, {dim})", lambda net, x: tuple(call(x)[k] for k in range(parts)), i)


def split(d: Draft) -> int:
    i = d.value(2, 3, 4)
    shape = d.shape(i)
    dim = d.pick(1, 1, len(shape) - 1)
    if shape[dim] < 2:
        raise Unfit
    first = d.int(1, shape[dim] - 1)
    size = d.pick(first, [first, shape[dim] - first])
    parts, method = len(torch.empty(shape[dim]).split(size)), d.flag()
    call = (lambda x: x.split(size, dim)) if method else (lambda x: torch.split(x, size, dim=dim))
    return d.step(f"split({size}, {dim})", lambda net, x: tuple(call(x)[k] for k in range(parts)), i)


def cut(d: Draft) -> int:
    """A slice, however it is written."""
    i = d.value(2, 3, 4)
    shape = d.shape(i)
    dim = d.int(1, len(shape) - 1)
    start = d.int(0, shape[dim] - 1)
    length, step = d.int(1, shape[dim] - start), d.pick(1, 1, 2)
    index = (slice(None),) * dim + (slice(start, start + length, step),)
    forms = {
        f"x[{index}]": lambda net, x: x[index],
        f"x[..., {start}::{step}]": lambda net, x: x[..., min(start, shape[-1] - 1) :: step],
        f"x.narrow({dim}, {start}, {length})": lambda net, x: x.narrow(dim, start, length),
        f"x.select({dim}, {start})": lambda net, x: x.select(dim, start),
        f"x[..., {start}] at {dim}": lambda net, x: x[(slice(None),) * dim + (start,)],
        "every second": lambda net, x: x[:, :, ::2, 1::2] if len(shape) == 4 else x[:, 1::2],
        "all but the last": lambda net, x: x[:, :-1],
    }
    name = d.pick(*forms)
    return d.step(name, forms[name], i)


def pad(d: Draft) -> int:
    i = d.value(2, 3, 4)
    axes = d.int(1, len(d.shape(i)) - 1)
    amounts, fill = [d.int(0, 3) for _ in range(2 * axes)], d.pick(0, 0, 0.5, -2.0)
    spelling = d.pick("module", "zeros", "F", "F", "crop")
    if spelling == "crop":
        return d.step(f"F.pad({(-1, *amounts[1:])})", lambda net, x: F.pad(x, (-1, *amounts[1:])), i)
    if spelling == "module" and axes == 2:
        return d.module(nn.ConstantPad2d(tuple(amounts), fill), i)
    if spelling == "zeros" and axes == 2:
        return d.module(nn.ZeroPad2d(tuple(amounts)), i)
    return d.step(f"F.pad({amounts}, {fill})", lambda net, x: F.pad(x, amounts, "constant", fill), i)


# -- sums and products -------------------------------------------------------------------------------------------------

PAIRS = {
    "+": lambda x, y: x + y, "torch.add": torch.add, "x.add": lambda x, y: x.add(y), "-": lambda x, y: x - y,
    "torch.sub": torch.sub, "*": lambda x, y: x * y, "torch.mul": torch.mul, "x.mul": lambda x, y: x.mul(y),
    "add alpha": lambda x, y: torch.add(x, y, alpha=0.5), "sub alpha": lambda x, y: x.sub(y, alpha=2),
    "swapped -": lambda x, y: y - x,
}  # fmt: skip
WRITES = {
    "x.add_": lambda x, y: x.add_(y), "x.mul_": lambda x, y: x.mul_(y), "x.sub_": lambda x, y: x.sub_(y),
}  # fmt: skip
NUMBERS = {
    "x + 1": lambda x: x + 1, "2 * x": lambda x: 2 * x, "1 - x": lambda x: 1 - x, "x / 3": lambda x: x / 3,
    "x - 0.5": lambda x: x - 0.5, "torch.mul": lambda x: torch.mul(x, 0.7), "x.div": lambda x: x.div(2),
    "x.add_(0.1)": lambda x: x.add_(0.1), "x.mul_(0.5)": lambda x: x.mul_(0.5), "x + x": lambda x: x + x,
    "x * x": lambda x: x * x, "x - x / 2": lambda x: x - x / 2, "x.square": lambda x: x.square(),
}  # fmt: skip


def _enlarged(values: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a value of this shape is broadcast to another, and not that to it."""
    return len(values) == len(shape) and all(a in (1, b) for a, b in zip(values, shape, strict=True))


def pair(d: Draft) -> int:
    """Two values, of one shape or one broadcast to the other, on either side."""
    i = d.value(2, 3, 4)
    shape = d.shape(i)
    j = d.value(len(shape), where=lambda other: _enlarged(other, shape))
    name = d.pick(*PAIRS)
    reads = (i, j) if d.flag() else (j, i)
    return d.step(name, lambda net, x, y: PAIRS[name](x, y), *reads)


def written(d: Draft) -> int:
    """A value into which another is added, which is itself or lies elsewhere."""
    i = d.value(2, 3, 4)
    j = d.value(where=lambda other: _enlarged(other, d.shape(i)))
    if i != j and d.values[i].untyped_storage().data_ptr() == d.values[j].untyped_storage().data_ptr():
        raise Unfit
    name = d.pick(*WRITES)
    return d.step(name, lambda net, x, y: WRITES[name](x, y), i, j)


def number(d: Draft) -> int:
    name = d.pick(*NUMBERS)
    return d.step(name, lambda net, x: NUMBERS[name](x), d.value())


def constant(d: Draft) -> int:
    """A learned number a channel, a pixel, a place or a network."""
    i = d.value(2, 3, 4)
    shape = d.shape(i)
    sizes = d.pick(shape, shape[1:], (1, shape[1], *[1] * (len(shape) - 2)), shape[-1:], (1,), (1, 1, *shape[2:]))
    name, w = d.pick(*PAIRS), d.net.held(torch.randn(sizes))
    return d.step(f"{name} with a constant {sizes}", lambda net, x: PAIRS[name](x, getattr(net, w)), i)


def excited(d: Draft) -> int:
    """Squeeze and excite: a map times a number a channel."""
    i = d.value(4)
    c = d.shape(i)[1]
    squeeze, excite = (d.net.held(nn.Conv2d(*ends, 1)) for ends in ((c, 3), (3, c)))
    gate = d.pick(torch.sigmoid, F.hardsigmoid)
    return d.step(
        f"{squeeze}, {excite} excite with {gate.__name__}",
        lambda net, x: x * gate(getattr(net, excite)(F.relu(getattr(net, squeeze)(F.adaptive_avg_pool2d(x, 1))))),
        i,
    )


def residual(d: Draft) -> int:
    """Convolution, norm and rectifier, and the value added that they read."""
    i = d.value(4)
    c = d.shape(i)[1]
    name = d.net.held(nn.Sequential(nn.Conv2d(c, c, 3, 1, 1, bias=False), nn.BatchNorm2d(c)))
    if d.flag():
        return d.step(f"{name} residual", lambda net, x: F.relu(getattr(net, name)(x) + x), i)

    def call(net, x):
        y = getattr(net, name)(x)
        y += x
        return y.relu_()

    return d.step(f"{name} residual in place", call, i)


# -- multiplied --------------------------------------------------------------------------------------------------------


def matmul(d: Draft) -> int:
    i = d.value(3, 4)
    shape, plain = d.shape(i), d.flag()
    j = d.value(len(shape), where=lambda other: other[:-2] == shape[:-2] and other[-2 if plain else -1] == shape[-1])
    turned = (lambda y: y) if plain else (lambda y: y.transpose(-1, -2))
    forms = {
        "x @ y": lambda net, x, y: x @ turned(y),
        "torch.matmul": lambda net, x, y: torch.matmul(x, turned(y)) * shape[-1] ** -0.5,
        "x.matmul": lambda net, x, y: x.matmul(turned(y)),
        "torch.bmm": lambda net, x, y: torch.bmm(x, turned(y)) if len(shape) == 3 else x @ turned(y),
    }
    name = d.pick(*forms)
    return d.step(name if plain else f"{name}, turned", forms[name], i, j)


def gram(d: Draft) -> int:
    """A value times itself, turned."""
    i = d.value(3, 4)
    if d.flag():
        return d.step("x @ x.T", lambda net, x: x @ x.transpose(-2, -1) / x.shape[-1], i)
    return d.step("x.T @ x", lambda net, x: 0.3 * torch.matmul(x.transpose(-1, -2), x), i)


def projected(d: Draft) -> int:
    i = d.value(2, 3, 4)
    w = d.net.held(torch.randn(d.shape(i)[-1], d.int(1, 8)))
    return d.step(f"x @ {w}", lambda net, x: x @ getattr(net, w), i)


def attention(d: Draft) -> int:
    """Self-attention of one or two heads over tokens, or over a map's pixels: torch's module, its function, by hand."""
    i = d.value(3, 4)
    shape = d.shape(i)
    c = shape[2] if len(shape) == 3 else shape[1]
    heads = 2 if c % 2 == 0 and d.flag() else 1
    spelling = d.pick("module", "function", "function", "by hand")
    attend = _attention(d, c, heads, spelling)
    if len(shape) == 3:
        return d.step(f"attention of {heads}, {spelling}", attend, i)
    return d.step(
        f"attention of {heads} over pixels, {spelling}",
        lambda net, x: attend(net, x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape[0], c, *shape[2:]),
        i,
    )


def _attention(d: Draft, c: int, heads: int, spelling: str) -> Callable:
    if spelling == "module":
        name = d.net.held(nn.MultiheadAttention(c, heads, batch_first=True))
        return lambda net, x: getattr(net, name)(x, x, x, need_weights=False)[0]
    name = d.net.held(nn.Linear(c, 3 * c))

    def attend(net, x):
        n, t, _ = x.shape
        q, k, v = getattr(net, name)(x).reshape(n, t, 3, heads, c // heads).permute(2, 0, 3, 1, 4).unbind(0)
        if spelling == "function":
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-2, -1) * (c // heads) ** -0.5).softmax(-1) @ v
        return y.transpose(1, 2).reshape(n, t, c)

    return attend


def again(d: Draft) -> int:
    return d.again()


KINDS = (
    max_pool, avg_pool, adaptive, mean, cat, cat, stack, chunk, split, cut, pad, pair, pair, pair, written, number,
    constant, excited, residual, matmul, gram, projected, attention, again, again,
)  # fmt: skip
