"""The same network with its products in int8: with VNNI or SDOT, four multiply-adds in the time of one in fp32.

    weights     int8, one scale a row of W, symmetric: q = round(w / s), s = max |w| / 127
    inputs      bytes, one gain and zero a product, from the range that its input takes over a few pictures:
                x' = round(x * gain) + zero, which is 0 to 255; behind a ReLU zero is 0
    product     y = clamp(scale * sum of q (x' - zero) + bias + add), whole sums, exact on every machine
    left fp32   the maps themselves, depthwise convolutions, what reads the picture, sums, the mean, linear layers
    blocks      4 rows x 4 columns, since these instructions multiply four inputs at once. A block is kept if any of
                its 16 weights is not 0: patterns of 4 x 1 fill up, only those of 4 x 4 keep all of their zeros

Measured on MobileNet-v1: twice as fast as fp32 with VNNI; without it at 0.8 to 0.95 of fp32's speed, where only the
file, less than half as large, is a reason. Nothing is trained. A NaN in a pixel of X gives NaN in all channels of that
pixel.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from ..core import kernels
from . import packed, twin
from .engine import arena_for, floats, placed
from .packed import Bytes, Map, Network, Op, SparseBytes

RUN = 128  # fours of columns of X that stay in the first-level cache
WIDEST = 1 << 16  # columns whose products of bytes an int32 can sum
_KINDS = ("conv", "pointwise", "separable")


def quantised(network: Network, pictures: torch.Tensor | np.ndarray) -> Network:
    """The network with its products in int8, their ranges taken from pictures as its engine takes them, (N, ...).

    A few dozen pictures that look like those to come are enough. The network is left as it is; compile it and quantise
    it before `tuning.tuned`, which leaves these products alone.
    """
    wide = _checked(network, pictures)
    at = [i for i, op in enumerate(network.ops) if _can_be_bytes(op, network)]
    if not at:
        raise ValueError("the network has no product to do in int8: all of its operators stay in fp32")
    apart, inputs = _apart(network, at)
    ranges = _ranges(apart, inputs, wide)
    ops = list(network.ops)
    for i, (low, high) in zip(at, ranges, strict=True):
        ops[i] = _in_bytes(ops[i], low, high)
    return replace(network, ops=ops)


def _checked(network: Network, pictures: torch.Tensor | np.ndarray) -> np.ndarray:
    first = network.maps[network.input]
    shape = (first.h, first.w, first.c) if first.interleaved else (first.c, first.h, first.w)
    wide = floats("pictures", pictures)
    if wide.ndim != 4 or wide.shape[1:] != shape or not len(wide):
        raise ValueError(f"pictures has shape {wide.shape}: give at least one as (N, {', '.join(map(str, shape))})")
    if not np.isfinite(wide).all():
        raise ValueError("pictures holds NaN or infinity: their ranges would be none")
    return wide


def _can_be_bytes(op: Op, network: Network) -> bool:
    """Whether an operator's product is done in int8; what reads the picture is small and needs its precision."""
    fits = op.kind in _KINDS and op.weights is not None and op.weights.columns <= WIDEST
    return fits and op.bytes is None and op.x != network.input


def _in_bytes(op: Op, low: float, high: float) -> Op:
    """The operator in int8 for inputs from low to high, which hold 0."""
    assert op.weights is not None
    w = op.weights.to_dense()
    row = np.abs(w).max(1, initial=0) / 127
    row[row == 0] = 1
    gain = np.float32(255 / max(high - low, 1e-30))
    zero = int(np.rint(-low * gain).clip(0, 255))
    weights = pack(np.rint(w / row[:, None]).astype(np.int8), chunk=RUN)
    return replace(op, weights=weights, bytes=Bytes(float(gain), zero, (row / gain).astype(np.float32)))


def pack(w: np.ndarray, *, chunk: int = RUN) -> SparseBytes:
    """w (rows, columns) of int8 in its 4 x 4 blocks that are not zero, or in all where there are few others."""
    rows, columns = w.shape
    padded = np.pad(w, ((0, -rows % 4), (0, -columns % 4)))
    blocks = padded.reshape(len(padded) // 4, 4, padded.shape[1] // 4, 4).swapaxes(1, 2)
    keep = (blocks != 0).any((2, 3))
    dense = keep.mean() > 0.97 if keep.size else True
    keep |= dense
    runs = [slice(start, start + chunk) for start in range(0, keep.shape[1], chunk)]
    count = np.concatenate([keep[:, run].sum(1) for run in runs])
    col = None if dense else np.concatenate([np.nonzero(keep[:, run])[1] for run in runs])
    kept = np.concatenate([blocks[:, run][keep[:, run]] for run in runs])
    return SparseBytes(rows, columns, chunk, count, col, kept)


# -- what range a product's input takes --------------------------------------------------------------------------------


def _apart(network: Network, at: list[int]) -> tuple[Network, list[int]]:
    """The network with all maps whole and separable pairs cut in two, so that what lies between is seen; where the
    products then are."""
    maps = [replace(m, part=0) for m in network.maps]
    ops: list[Op] = []
    inputs = []
    for i, op in enumerate(network.ops):
        if op.kind == "separable":
            out = maps[op.y]
            maps.append(Map(maps[op.x].c, out.h, out.w))
            first = replace(op, kind="depthwise", y=len(maps) - 1, clamp=op.inner)
            ops.append(replace(first, add=None, weights=None, bias=None))
            op = replace(op, kind="pointwise", x=len(maps) - 1, k=1, stride=1, pad=0, taps=None, taps_bias=None)
        if i in at:
            inputs.append(len(ops))
        ops.append(op)
    return replace(network, maps=maps, ops=ops), inputs


def _ranges(network: Network, inputs: list[int], pictures: np.ndarray) -> list[tuple[float, float]]:
    """The least and the greatest number, and 0, that each of these operators reads."""
    ranges = np.zeros((len(inputs), 2))
    run = _run_c if kernels.backend() == "c" else _run_twin
    for read in run(network, pictures):
        i, x = read
        if i in inputs:
            at = inputs.index(i)
            ranges[at] = min(ranges[at, 0], x.min()), max(ranges[at, 1], x.max())
    return [(low, high) for low, high in ranges]


def _run_twin(network: Network, pictures: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each operator's number and what it reads (C, pixels), picture by picture."""
    for picture in pictures:
        values = {network.input: picture.transpose(2, 0, 1) if network.maps[network.input].interleaved else picture}
        for i, op in enumerate(network.ops):
            yield i, values[op.x].reshape(len(values[op.x]), -1)
            values[op.y] = twin.step(op, network.maps[op.y], values[op.x], None if op.add is None else values[op.add])


def _run_c(network: Network, pictures: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The same by the engine, whose arena holds each map while it is read."""
    file = placed(packed.write(network))
    arena = arena_for(file)
    model, memory = kernels.pointer(file), kernels.pointer(arena)
    for picture in pictures:
        kernels.lib.engine_put(model, memory, kernels.pointer(picture))
        for i, op in enumerate(network.ops):
            m = network.maps[op.x]
            if not m.interleaved:
                yield i, arena[m.at : m.at + m.c * m.pitch].reshape(m.c, m.pitch)[:, : m.pixels]
            kernels.lib.engine_step(model, memory, kernels.isa(), i)
