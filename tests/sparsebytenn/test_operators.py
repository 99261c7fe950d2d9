"""Every operator over drawn shapes, windows and tables: torch, the numpy reference and each instruction set agree.

A case is a network of one operator, its inputs, and what torch computes of them; numbers that are none are among them.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lab.core import kernels
from lab.sparsebytenn import packed, reference
from lab.sparsebytenn.packed import Map, Network, Op
from lab.sparsebytenn.records import ACTS, FNS
from lab.sparsebytenn.runtime import Engine
from lab.sparsebytenn.tables import Const, Matmul, Norm, Part, Pool, Resize, Strided

ISAS = kernels.isas()
SIDES = st.integers(1, 6) | st.integers(1, 40)
TORCH_ACTS = {
    "": lambda x: x,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
    "round": torch.round,
    "elu": F.elu,
    "mish": F.mish,
    "softplus": F.softplus,
    "exp": torch.exp,
    "sqrt": torch.sqrt,
}


def numbers(draw, *shape, odd=True):
    """Normal numbers, among them at times some that are none."""
    g = np.random.default_rng(draw(st.integers(0, 999)))
    x = g.standard_normal(shape, np.float32)
    if odd and draw(st.integers(0, 3)) == 0:
        x *= 30
    if odd and draw(st.integers(0, 3)) == 0:
        x.reshape(-1)[g.integers(0, x.size, 2)] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    return x


def shape_of(draw, c=6):
    return draw(st.integers(1, c)), draw(SIDES), draw(SIDES)


def alone(op, arrays, y):
    """A network of one operator, which reads maps 0, 1, ... of these arrays and writes the last."""
    maps = [Map(*array.shape) for array in arrays] + [Map(*y.shape)]
    return Network(maps, [op], tuple(range(len(arrays))), (len(arrays),)), arrays, y


def computed(function, *arrays):
    with np.errstate(all="ignore"):
        return function(*map(torch.from_numpy, arrays)).numpy()


# -- a case of each kind -----------------------------------------------------------------------------------------------


def unary(draw):
    x = numbers(draw, *shape_of(draw))
    act = draw(st.sampled_from(ACTS))
    op = Op("unary", "", 0, 1, act=act, clamp=draw(st.sampled_from([(-np.inf, np.inf), (-1.5, 2.0), (0.0, np.inf)])))
    clamped = torch.from_numpy(x).clamp(*op.clamp)
    if act == "prelu":
        op.slopes = numbers(draw, len(x), odd=False)
        return alone(op, [x], F.prelu(clamped[None], torch.from_numpy(op.slopes))[0].numpy())
    return alone(op, [x], TORCH_ACTS[act](clamped).numpy())


TORCH_BINARY = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "max": torch.maximum,
    "min": torch.minimum, "rsub": lambda a, b: b - a, "rdiv": lambda a, b: b / a,
}  # fmt: skip


def binary(draw):
    c, h, w = shape_of(draw)
    spread = draw(st.sampled_from([(c, h, w), (c, 1, 1), (1, 1, c), (1, h, w), (1, 1, 1)]))
    if spread == (1, 1, c) and not (h == w == 1 or c > 1):
        spread = (1, 1, 1)
    a, b = numbers(draw, c, h, w), numbers(draw, *spread)
    fn = draw(st.sampled_from(FNS["binary"]))
    per_plane = c > 1 and spread == (1, 1, c) and spread != a.shape
    y = computed(TORCH_BINARY[fn], a, b.reshape(c, 1, 1) if per_plane else b)
    return alone(Op("binary", "", 0, 2, add=1, fn=fn), [a, b], y)


def pool(draw):
    """A window of any size, stride, dilation, with zeros around, or an adaptive size."""
    c, h, w = shape_of(draw, 3)
    x = numbers(draw, c, h, w)
    fn = draw(st.sampled_from(FNS["pool"]))
    if draw(st.booleans()):
        sizes = draw(st.integers(1, h)), draw(st.integers(1, w))
        ranges = [[(i * n // o, -(-(i + 1) * n // o)) for i in range(o)] for n, o in zip((h, w), sizes, strict=True)]
        call = F.adaptive_max_pool2d if fn == "max" else F.adaptive_avg_pool2d
        y, step = computed(lambda x: call(x, sizes), x), (1, 1)
        scales = [np.array([1 / (end - start) for start, end in side]) for side in ranges]
    else:
        k, y, ranges, step = _window(draw, fn, x)
        scales = [np.full(len(side), 1 / size) for side, size in zip(ranges, k, strict=True)]
    op = Op("pool", "", 0, 1, fn=fn, table=Pool(np.array(ranges[0]), np.array(ranges[1]), step, *scales))
    return alone(op, [x], y)


def _window(draw, fn, x):
    _, h, w = x.shape
    k = draw(st.integers(1, min(h, 7))), draw(st.integers(1, min(w, 7)))
    stride = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    pad = tuple(draw(st.integers(0, size // 2)) for size in k)
    ceil = draw(st.booleans())
    step = (
        (1, 1)
        if fn == "mean"
        else tuple(draw(st.integers(1, 2)) if (s - 1) * 2 < n else 1 for s, n in zip(k, (h, w), strict=True))
    )
    if fn == "max":
        y = F.max_pool2d(torch.from_numpy(x)[None], k, stride, pad, step, ceil)[0]
    else:
        y = F.avg_pool2d(torch.from_numpy(x)[None], k, stride, pad, False)[0]
    ranges = []
    for n, size, s, p, d, out in zip((h, w), k, stride, pad, step, y.shape[1:], strict=True):
        side = []
        for i in range(out):
            taps = [t for t in range(i * s - p, i * s - p + size * d, d) if 0 <= t < n]
            side.append((taps[0], taps[-1] + 1))
        ranges.append(side)
    return k, y.numpy(), ranges, step


def resize(draw):
    c, h, w = shape_of(draw, 3)
    x, sizes = numbers(draw, c, h, w), (draw(SIDES), draw(SIDES))
    if draw(st.booleans()):
        y = F.interpolate(torch.from_numpy(x)[None], sizes, mode="nearest")[0].numpy()
        sides = [
            np.minimum(np.arange(o, dtype=np.float32) * np.float32(n / o), n - 1).astype(int)
            for n, o in zip((h, w), sizes, strict=True)
        ]
        table = [(np.stack([side, side], 1), np.zeros(len(side))) for side in sides]
    else:
        x = np.nan_to_num(x, posinf=3, neginf=-3)
        y = F.interpolate(torch.from_numpy(x)[None], sizes, mode="bilinear", align_corners=False)[0].numpy()
        table = [_linear(n, o) for n, o in zip((h, w), sizes, strict=True)]
    return alone(Op("resize", "", 0, 1, table=Resize(*table[0], *table[1])), [x], y)


def _linear(n, o):
    at = np.maximum((np.arange(o) + 0.5) * (n / o) - 0.5, 0)
    first = np.minimum(at.astype(int), n - 1)
    second = np.minimum(first + 1, n - 1)
    return np.stack([first, second], 1), (at - first) * (second > first)


def softmax(draw):
    _, h, w = shape_of(draw)
    planes, groups = draw(st.integers(1, 40)), draw(st.integers(1, 3))
    x = numbers(draw, groups * planes, h, w)
    y = computed(lambda x: x.reshape(groups, planes, h, w).softmax(1).reshape(x.shape), x)
    return alone(Op("softmax", "", 0, 1, planes=planes), [x], y)


def norm(draw):
    fn = draw(st.sampled_from(FNS["norm"]))
    _, h, w = shape_of(draw)
    planes, groups = draw(st.integers(1, 40)), draw(st.integers(1, 3))
    x = numbers(draw, groups * planes, h, w) + np.float32(draw(st.sampled_from([0, 5])))
    weight, bias = (numbers(draw, len(x), odd=False) for _ in range(2))

    def exact(x, weight, bias):
        wide = x.double().reshape(groups, planes, h, w)
        axes = (1, 2, 3) if fn == "planes" else (1,)
        if fn in ("pixel", "planes"):
            wide = wide - wide.mean(axes, keepdim=True)
        if fn != "affine":
            wide = wide / (wide.square().mean(axes, keepdim=True) + 1e-2).sqrt()
        return (wide.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]).float()

    op = Op("norm", "", 0, 1, fn=fn, planes=planes, table=Norm(1e-2, weight, bias))
    return alone(op, [x], computed(exact, x, weight, bias))


def matmul(draw):
    """softmax(Q K) V's two products: a and b are planes of one pixel row each, a as it lies or turned."""
    b1, b2 = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    m, k, n = draw(st.integers(1, 9)), draw(st.integers(1, 40) | st.integers(120, 300)), draw(SIDES)
    turned = draw(st.booleans())
    a, b = numbers(draw, b1 * b2 * (k if turned else m), 1, m if turned else k), numbers(draw, b1 * b2 * k, 1, n)
    pitch_a, pitch_b = Map(*a.shape).pitch, Map(*b.shape).pitch
    a_strides = (b2 * k * pitch_a, k * pitch_a, 1, pitch_a) if turned else (b2 * m * pitch_a, m * pitch_a, pitch_a, 1)
    scale = draw(st.sampled_from([1.0, 0.125]))
    table = Matmul((b1, b2), m, k, n, 0, a_strides, 0, (b2 * k * pitch_b, k * pitch_b, pitch_b), scale)

    def exact(a, b):
        a = a.reshape(b1 * b2, k, m).mT if turned else a.reshape(b1 * b2, m, k)
        return (scale * (a @ b.reshape(b1 * b2, k, n))).reshape(b1 * b2 * m, 1, n)

    return alone(Op("matmul", "", 0, 2, add=1, table=table), [a, b], computed(exact, a, b))


def const(draw):
    y = numbers(draw, *shape_of(draw))
    x = np.zeros((1, 1, 1), np.float32)
    return alone(Op("const", "", 1, 1, table=Const(y)), [x], y)


def move(draw):
    """One of what moves are for."""
    return draw(st.sampled_from([concat, permute, cut, shuffle, padded, spread, flip]))(draw)


def _strides(array):
    """Floats from step to step along the axes of a map's pixels (c, h, w)."""
    m = Map(*array.shape)
    return m.pitch, m.w, 1


def _part(x, x_at, y_at, sizes, x_strides, y_strides):
    fill = (0,) * (6 - len(sizes))
    return Part(x, x_at, y_at, (1,) * (6 - len(sizes)) + tuple(sizes), fill + tuple(x_strides), fill + tuple(y_strides))


def concat(draw):
    _, h, w = shape_of(draw)
    arrays = [numbers(draw, draw(st.integers(1, 5)), h, w) for _ in range(draw(st.integers(1, 3)))]
    y, parts, at = np.concatenate(arrays), [], 0
    for i, array in enumerate(arrays):
        parts.append(_part(i, 0, at, array.shape, _strides(array), _strides(y)))
        at += len(array) * _strides(y)[0]
    return alone(Op("move", "", 0, len(arrays), table=Strided(None, tuple(parts))), arrays, y)


def permute(draw):
    x, axes = numbers(draw, *shape_of(draw, 30)), draw(st.permutations(range(3)))
    y = x.transpose(axes).copy()
    part = _part(0, 0, 0, y.shape, [_strides(x)[axis] for axis in axes], _strides(y))
    return alone(Op("move", "", 0, 1, table=Strided(None, (part,))), [x], y)


def cut(draw):
    """x[c0 : c1 : step, ...]."""
    x = numbers(draw, *shape_of(draw))
    slices = []
    for n in x.shape:
        start = draw(st.integers(0, n - 1))
        slices.append(slice(start, draw(st.integers(start + 1, n)), draw(st.integers(1, 3))))
    y = x[tuple(slices)].copy()
    at = sum(s.start * stride for s, stride in zip(slices, _strides(x), strict=True))
    steps = [s.step * stride for s, stride in zip(slices, _strides(x), strict=True)]
    return alone(Op("move", "", 0, 1, table=Strided(None, (_part(0, at, 0, y.shape, steps, _strides(y)),))), [x], y)


def shuffle(draw):
    """Pixel shuffle: (c r r, h, w) -> (c, h r, w r)."""
    (c, h, w), r = shape_of(draw, 3), draw(st.integers(2, 3))
    x = numbers(draw, c * r * r, h, w)
    y = F.pixel_shuffle(torch.from_numpy(x), r).numpy()
    (p, row, _), (py, rowy, _) = _strides(x), _strides(y)
    part = _part(0, 0, 0, (c, h, r, w, r), (r * r * p, row, r * p, 1, p), (py, r * rowy, rowy, r, 1))
    return alone(Op("move", "", 0, 1, table=Strided(None, (part,))), [x], y)


def padded(draw):
    x = numbers(draw, *shape_of(draw))
    fill = draw(st.sampled_from([0.0, -np.inf, 2.5]))
    before = tuple(draw(st.integers(0, 3)) for _ in range(3))
    y = np.pad(x, [(n, draw(st.integers(0, 3))) for n in before], constant_values=fill)
    at = sum(n * stride for n, stride in zip(before, _strides(y), strict=True))
    return alone(
        Op("move", "", 0, 1, table=Strided(fill, (_part(0, 0, at, x.shape, _strides(x), _strides(y)),))), [x], y
    )


def spread(draw):
    """A number a plane, or a pixel, over all of them: a stride of 0."""
    c, h, w = shape_of(draw)
    x = numbers(draw, *draw(st.sampled_from([(c, 1, 1), (1, h, w), (1, 1, w), (1, h, 1)])))
    y = np.broadcast_to(x, (c, h, w)).copy()
    steps = [stride if n > 1 else 0 for n, stride in zip(x.shape, _strides(x), strict=True)]
    return alone(Op("move", "", 0, 1, table=Strided(None, (_part(0, 0, 0, y.shape, steps, _strides(y)),))), [x], y)


def flip(draw):
    x = numbers(draw, *shape_of(draw))
    _, _, w = x.shape
    plane, row, _ = _strides(x)
    part = _part(0, w - 1, 0, x.shape, (plane, row, -1), _strides(x))
    return alone(Op("move", "", 0, 1, table=Strided(None, (part,))), [x], x[..., ::-1].copy())


def conv(draw):
    """A convolution of any window; zeros below and to the right as the drawn size asks for."""
    c, h, w = draw(st.integers(1, 4)), draw(st.integers(1, 14)), draw(st.integers(1, 24))
    k, stride = (draw(st.integers(1, 4)), draw(st.integers(1, 5))), (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    pad, dilation = (
        (draw(st.integers(0, 4)), draw(st.integers(0, 6))),
        (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
    )
    more = draw(st.integers(0, 4)), draw(st.integers(0, 4))
    x = numbers(draw, c, h, w)
    weight = numbers(draw, draw(st.integers(1, 9)), c, *k, odd=False)
    bias = numbers(draw, len(weight), odd=False)
    y = _convolved(x, weight, bias, stride, pad, dilation, more)
    if y is None:
        x, k = x[:, :, :], (1, 1)
        weight, y = weight[..., :1, :1], _convolved(x, weight[..., :1, :1], bias, stride, pad, dilation, more)
    op = Op("conv", "", 0, 1, k=k, stride=stride, pad=pad, dilation=dilation, bias=bias)
    op.weights = kernels.pack(weight.reshape(len(weight), -1), k_tile=draw(st.integers(1, 40)))
    op.tile_rows = draw(st.integers(1, y.shape[1]))
    op.act = draw(st.sampled_from(["", "silu"]))
    return alone(op, [x], TORCH_ACTS[op.act](torch.from_numpy(y)).numpy())


def _convolved(x, weight, bias, stride, pad, dilation, more, groups=1):
    """torch's convolution with `pad` zeros above and to the left and `more` below and to the right; None if it has no
    pixel.
    """
    padded = F.pad(torch.from_numpy(x)[None], (pad[1], more[1], pad[0], more[0]))
    span = [(n - 1) * d + 1 for n, d in zip(weight.shape[2:], dilation, strict=True)]
    if any(n < s for n, s in zip(padded.shape[2:], span, strict=True)):
        return None
    y = F.conv2d(padded, torch.from_numpy(weight), torch.from_numpy(bias), stride, 0, dilation, groups)
    return y[0].numpy()


def depthwise(draw):
    k, stride = draw(st.sampled_from([3, 5, 7])), draw(st.integers(1, 2))
    pad, more = (tuple(draw(st.integers(0, k - 1)) for _ in range(2)) for _ in range(2))
    c = draw(st.integers(1, 4))
    h, w = (
        draw(st.integers(max(1, k - p - m), 12) | st.integers(max(1, k - p - m), 60))
        for p, m in zip(pad, more, strict=True)
    )
    x = numbers(draw, c, h, w)
    taps, bias = numbers(draw, c, 1, k, k, odd=False), numbers(draw, c, odd=False)
    y = _convolved(x, taps, bias, (stride, stride), pad, (1, 1), more, groups=c)
    op = Op("depthwise", "", 0, 1, k=(k, k), stride=(stride, stride), pad=pad, taps=taps.reshape(c, -1), taps_bias=bias)
    op.tile_rows = draw(st.integers(1, y.shape[1]))
    op.act, op.clamp = draw(st.sampled_from([("", (0.0, 6.0)), ("hardswish", (-np.inf, np.inf))]))
    y = TORCH_ACTS[op.act](torch.from_numpy(y).clamp(*op.clamp)).numpy()
    if draw(st.booleans()):
        return alone(op, [x], y)
    weight, after = numbers(draw, draw(st.integers(1, 9)), c, odd=False), draw(st.sampled_from(["", "sigmoid"]))
    op.kind, op.inner, op.clamp, op.inner_act, op.act = "separable", op.clamp, (-np.inf, np.inf), op.act, after
    op.weights, op.bias = kernels.pack(weight, k_tile=2), np.zeros(len(weight))
    y = computed(lambda y, w: TORCH_ACTS[after](torch.einsum("oc,chw->ohw", w, y)), y, weight)
    return alone(op, [x], y)


CASES = {case.__name__: case for case in
         (unary, binary, pool, resize, softmax, norm, matmul, const, move, conv, depthwise)}  # fmt: skip


# -- they agree --------------------------------------------------------------------------------------------------------


def assert_same(found, exact, name, arrays):
    """Alike, but for what rounding the numbers that went in and came out may do; numbers that are none the same."""
    size = max(np.abs(a[np.isfinite(a)]).max(initial=1.0) for a in (exact, *arrays))
    np.testing.assert_allclose(found, exact, rtol=2e-5, atol=3e-6 * size, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_set_computes_what_the_reference_and_torch_compute(kind, data):
    network, arrays, exact = CASES[kind](data.draw)
    file = packed.write(network)
    (y,) = reference.outputs(packed.read(file), arrays)
    assert_same(y, exact, "reference", arrays)
    assert packed.write(packed.read(file)) == file
    for isa in ISAS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LAB_ISA", isa)
            assert_same(Engine(file)._run([np.ascontiguousarray(array) for array in arrays])[0], exact, isa, arrays)
