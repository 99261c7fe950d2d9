"""The engine's reference implementation in numpy: runs the same packed network, shares no code with the C engine.

A float that nothing wrote, between the planes of a map or where a move left out some, is NaN here.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided, sliding_window_view

from .packed import Int8Params, Map, Network, Op
from .tables import Const, Matmul, Norm, Pool, Resize, Strided


def run(network: Network, image: np.ndarray) -> np.ndarray:
    """The first output (C, H, W) of a network that takes one image."""
    return outputs(network, [image])[0]


def outputs(network: Network, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The network's outputs, each (C, H, W), for its inputs, each (C, H, W) or the first (H, W, C) if interleaved."""
    values = inputs(network, arrays)
    for op in network.ops:
        values[op.y] = step(op, network.maps, values)
    return [values[output] for output in network.outputs]


def inputs(network: Network, arrays: Sequence[np.ndarray]) -> dict[int, np.ndarray]:
    """The maps that hold the inputs, each (C, H, W)."""
    pairs = zip(network.inputs, arrays, strict=True)
    return {i: array.transpose(2, 0, 1) if network.maps[i].interleaved else array for i, array in pairs}


def step(op: Op, maps: Sequence[Map], values: dict[int, np.ndarray]) -> np.ndarray:
    """What an operator writes, (C', H', W'), from the maps so far, each (C, H, W)."""
    with np.errstate(all="ignore"):
        y = _COMPUTED[op.kind](op, maps, values) if op.kind in _COMPUTED else _convolution(op, maps[op.y], values)
        low, high = op.clamp
        return activated(op.act, y.astype(np.float32, copy=False).clip(np.float32(low), np.float32(high)), op.slopes)


# -- activations -------------------------------------------------------------------------------------------------------


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.where(x > 20, x, np.log1p(np.exp(x)))


def _erf(x: np.ndarray) -> np.ndarray:
    return torch.special.erf(torch.from_numpy(np.ascontiguousarray(x))).numpy()


_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "": lambda x: x,
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "hardsigmoid": lambda x: (x + 3).clip(0, 6) / 6,
    "hardswish": lambda x: x * (x + 3).clip(0, 6) / 6,
    "gelu": lambda x: x * 0.5 * (1 + _erf(x / np.float64(2) ** 0.5)),
    "gelu_tanh": lambda x: x * 0.5 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "tanh": np.tanh,
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "mish": lambda x: x * np.tanh(_softplus(x)),
    "softplus": _softplus,
    "exp": np.exp,
    "sqrt": np.sqrt,
    "round": np.rint,
}


def activated(name: str, x: np.ndarray, slopes: np.ndarray | None = None) -> np.ndarray:
    """act(x) of one of records.ACTS, x (C, H, W) and, for a prelu, slopes (C,): computed in fp64, float32 again."""
    if not name:
        return x
    wide = x.astype(np.float64)
    y = np.where(wide < 0, _per_channel(slopes) * wide, wide) if name == "prelu" else _ACTIVATIONS[name](wide)
    return y.astype(np.float32)


# -- products ----------------------------------------------------------------------------------------------------------


def _convolution(op: Op, out: Map, values: dict[int, np.ndarray]) -> np.ndarray:
    """A convolution of any kind, or a linear layer, with what is added to it."""
    x = values[op.x]
    if op.taps is not None:
        taps = op.taps.astype(np.float32).reshape(len(x), *op.k)
        x = np.einsum("cyxij,cij->cyx", _windows(x, op, out), taps) + _per_channel(op.taps_bias)
        if op.kind == "depthwise":
            return x
        x = activated(op.inner_act, x.clip(*op.inner))
    elif op.kind == "conv":
        x = _windows(x, op, out).transpose(0, 3, 4, 1, 2)  # (C, k, k, H', W')
    assert op.weights is not None  # a depthwise convolution alone has none
    y = product(op, x.reshape(op.weights.columns, -1)).reshape(out.c, out.h, out.w)
    return y if op.add is None else y + values[op.add]


def product(op: Op, x: np.ndarray) -> np.ndarray:
    """W x + bias, W (OC, K), x (K, n) -> (OC, n); in int8 where the operator is, its sums exact as the kernels' are."""
    assert op.weights is not None
    bias = np.asarray(op.bias, np.float32)[:, None]
    if op.int8 is None:
        return op.weights.to_dense() @ x + bias
    sums = op.weights.to_dense().astype(np.float64) @ (quantise(op.int8, x) - float(op.int8.zero))
    y = sums.astype(np.float32) * np.asarray(op.int8.scale, np.float32)[:, None] + bias
    y[:, np.isnan(x).any(0)] = np.nan  # a byte cannot be one
    return y


def quantise(params: Int8Params, x: np.ndarray) -> np.ndarray:
    """x as uint8, halves to even."""
    large = np.float32(1 << 23)  # such a float has no fraction: the sum is rounded as the kernels round
    clipped = (x * np.float32(params.inv_scale)).clip(np.float32(-params.zero), np.float32(255 - params.zero))
    return (np.nan_to_num(clipped) + (large + np.float32(params.zero)) - large).astype(np.uint8)


def _windows(x: np.ndarray, op: Op, out: Map) -> np.ndarray:
    """What each output pixel sees: (C, H, W) -> (C, H', W', k, k); zeros above and to the left, and as many below."""
    sides = []
    for side, size, k, stride, pad, dilation in zip(
        x.shape[1:], (out.h, out.w), op.k, op.stride, op.pad, op.dilation, strict=True
    ):
        sides.append((pad, max(0, (size - 1) * stride + (k - 1) * dilation + 1 - pad - side)))
    padded = np.pad(x, ((0, 0), *sides))
    span = tuple((k - 1) * dilation + 1 for k, dilation in zip(op.k, op.dilation, strict=True))
    windows = sliding_window_view(padded, span, (1, 2))[:, :: op.stride[0], :: op.stride[1]]
    return windows[:, : out.h, : out.w, :: op.dilation[0], :: op.dilation[1]]


def _per_channel(v: np.ndarray | None) -> np.ndarray:
    """(C,) -> (C, 1, 1)."""
    return np.asarray(v, np.float32)[:, None, None]


# -- all others --------------------------------------------------------------------------------------------------------


def _mean(op: Op, maps: Sequence[Map], values: dict[int, np.ndarray]) -> np.ndarray:
    return values[op.x].mean((1, 2), dtype=np.float32).reshape(1, 1, -1)


def _unary(op: Op, maps: Sequence[Map], values: dict[int, np.ndarray]) -> np.ndarray:
    return values[op.x]


_BINARY: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
    "rsub": lambda a, b: b - a,
    "rdiv": lambda a, b: b / a,
}


def _binary(op: Op, maps: Sequence[Map], values: dict[int, np.ndarray]) -> np.ndarray:
    """a and b, b (1, 1, C) a number a plane where a has more than one plane."""
    assert op.add is not None
    a, b = values[op.x], values[op.add]
    is_per_plane = len(a) > 1 and b.shape == (1, 1, len(a)) and b.shape != a.shape
    return _BINARY[op.fn](a, b.reshape(-1, 1, 1) if is_per_plane else b)


def _pool(op: Op, maps: Sequence[Map], values: dict[int, np.ndarray]) -> np.ndarray:
    """Rows first, then columns: the greatest, or sums times the scales of row and column."""
    t, x = op.table, values[op.x]
    assert isinstance(t, Pool)
    reduce = np.max if op.fn == "max" else np.sum
    rows = [reduce(x[:, start : end : t.step[0]], 1) for start, end in t.rows]  # each (C, W)
    lines = np.stack(rows, 1)
    y = np.stack([reduce(lines[..., start : end : t.step[1]], 2) for start, end in t.columns], 2)
    return y if op.fn == "max" else y * (t.row_scale[:, None] * t.column_scale)


def _storage(m: Map, value: np.ndarray | None) -> np.ndarray:
    """A map's floats as they lie in the arena, NaN where no pixel lies."""
    floats = np.full((-(-m.c // 4) * 4, m.pitch), np.nan, np.float32)
    if value is not None:
        floats[: m.c, : m.pixels] = value.reshape(m.c, m.pixels)
    return floats.reshape(-1)


def _strided(floats: np.ndarray, at: int, sizes: Sequence[int], strides: Sequence[int]) -> np.ndarray:
    return as_strided(floats[at:], sizes, [4 * stride for stride in strides])


def _move(op: Op, maps: Sequence[Map], values: dict[int, np.ndarray]) -> np.ndarray:
    out, table = maps[op.y], op.table
    assert isinstance(table, Strided)
    y = _storage(out, None)
    if table.fill is not None:
        y[:] = table.fill
    for part in table.parts:
        x = _storage(maps[part.x], values[part.x])
        moved = _strided(x, part.x_at, part.sizes, part.x_strides)
        _strided(y, part.y_at, part.sizes, part.y_strides)[...] = moved
    return _pixels(y, out)


def _pixels(floats: np.ndarray, m: Map) -> np.ndarray:
    """A map (C, H, W) out of its floats."""
    return floats.reshape(-1, m.pitch)[: m.c, : m.pixels].reshape(m.c, m.h, m.w).copy()


def _resize(op: Op, maps: Sequence[Map], values: dict[int, np.ndarray]) -> np.ndarray:
    t, x = op.table, values[op.x]
    assert isinstance(t, Resize)
    rows = _between(x[:, t.rows[:, 0]], x[:, t.rows[:, 1]], t.row_weight[:, None])
    return _between(rows[..., t.columns[:, 0]], rows[..., t.columns[:, 1]], t.column_weight)


def _between(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The first where its weight is 0, whatever the second is."""
    return np.where(weight == 0, a, a + weight * (b - a))


def _softmax(op: Op, maps: Sequence[Map], values: dict[int, np.ndarray]) -> np.ndarray:
    x = values[op.x]
    groups = x.reshape(-1, op.planes, *x.shape[1:])
    exponents = np.exp(groups - groups.max(1, keepdims=True))
    return (exponents / exponents.sum(1, keepdims=True)).reshape(x.shape)


def _norm(op: Op, maps: Sequence[Map], values: dict[int, np.ndarray]) -> np.ndarray:
    """(x - mean) / sqrt(variance + eps) * weight + bias over `planes` planes: at each pixel, or over all pixels too."""
    t, x = op.table, values[op.x]
    assert isinstance(t, Norm)
    groups = x.reshape(-1, op.planes, *x.shape[1:])
    axes = {"pixel": (1,), "rms": (1,), "planes": (1, 2, 3), "affine": ()}[op.fn]
    if op.fn in ("pixel", "planes"):
        groups = groups - groups.mean(axes, keepdims=True)
    if axes:
        groups = groups / np.sqrt(np.square(groups).mean(axes, keepdims=True) + np.float32(t.eps))
    return groups.reshape(x.shape) * _per_channel(t.weight) + _per_channel(t.bias)


def _matmul(op: Op, maps: Sequence[Map], values: dict[int, np.ndarray]) -> np.ndarray:
    t, out = op.table, maps[op.y]
    assert isinstance(t, Matmul) and op.add is not None
    a = _strided(_storage(maps[op.x], values[op.x]), t.a_at, (*t.batch, t.m, t.k), t.a_strides)
    b = _strided(_storage(maps[op.add], values[op.add]), t.b_at, (*t.batch, t.k, t.n), (*t.b_strides, 1))
    return (np.float32(t.scale) * (a @ b)).reshape(out.c, out.h, out.w)


def _const(op: Op, maps: Sequence[Map], values: dict[int, np.ndarray]) -> np.ndarray:
    assert isinstance(op.table, Const)
    return op.table.values


_COMPUTED = {
    "mean": _mean,
    "binary": _binary,
    "unary": _unary,
    "pool": _pool,
    "move": _move,
    "resize": _resize,
    "softmax": _softmax,
    "norm": _norm,
    "matmul": _matmul,
    "const": _const,
}
