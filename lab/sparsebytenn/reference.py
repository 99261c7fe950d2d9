"""The engine's reference implementation in numpy: runs the same packed network, shares no code with the C engine."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .packed import Int8Params, Map, Network, Op


def run(network: Network, image: np.ndarray) -> np.ndarray:
    """The network's output (C, H, W) for one image."""
    values = {network.input: planes(network, image)}
    for op in network.ops:
        add = None if op.add is None else values[op.add]
        values[op.y] = step(op, network.maps[op.y], values[op.x], add)
    return values[network.output]


def planes(network: Network, image: np.ndarray) -> np.ndarray:
    """An image as the network takes it, (C, H, W) or (H, W, C) -> (C, H, W)."""
    return image.transpose(2, 0, 1) if network.maps[network.input].interleaved else image


def step(op: Op, out: Map, x: np.ndarray, add: np.ndarray | None) -> np.ndarray:
    """One operator: x (C, H, W) -> (C', H', W')."""
    if op.kind == "mean":
        return x.mean((1, 2), dtype=np.float32).reshape(1, 1, -1).clip(*op.clamp)
    if op.kind == "add":
        return (x + add).clip(*op.clamp)
    if op.taps is not None:
        inner = op.clamp if op.kind == "depthwise" else op.inner
        taps = op.taps.astype(np.float32).reshape(len(x), op.k, op.k)
        x = (np.einsum("cyxij,cij->cyx", _windows(x, op), taps) + _per_channel(op.taps_bias)).clip(*inner)
        if op.kind == "depthwise":
            return x
    elif op.kind == "conv":
        x = _windows(x, op).transpose(0, 3, 4, 1, 2)  # (C, k, k, H', W')
    assert op.weights is not None  # every other kind has returned
    columns = x.reshape(op.weights.columns, -1)  # (K, H' W')
    y = product(op, columns).reshape(out.c, out.h, out.w)
    return (y if add is None else y + add).clip(*op.clamp)


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


def _windows(x: np.ndarray, op: Op) -> np.ndarray:
    """What each output pixel sees: (C, H, W) -> (C, H', W', k, k)."""
    padded = np.pad(x, ((0, 0), (op.pad, op.pad), (op.pad, op.pad)))
    return sliding_window_view(padded, (op.k, op.k), (1, 2))[:, :: op.stride, :: op.stride]


def _per_channel(v: np.ndarray | None) -> np.ndarray:
    """(C,) -> (C, 1, 1)."""
    return np.asarray(v, np.float32)[:, None, None]
