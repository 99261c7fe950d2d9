"""A packed network with its products in int8: with VNNI or SDOT, four multiply-adds in the time of one in fp32.

    weights     int8, one scale a row of W, symmetric: q = round(w / s), s = max |w| / 127
    inputs      uint8, one scale and zero point a product, from the range that its input takes over a few images:
                x' = round(x * inv_scale) + zero, which is 0 to 255; behind a ReLU zero is 0
    product     y = clamp(scale * sum of q (x' - zero) + bias + add): a u8s8 product, its int32 sums exact everywhere
    left fp32   the maps themselves, depthwise convolutions, what reads the image, sums, the mean, linear layers
    blocks      4 rows x 4 columns, since these instructions multiply four inputs at once. A block is kept if any of
                its 16 weights is not 0: patterns of 4 x 1 fill up, only those of 4 x 4 keep all of their zeros

Measured on MobileNet-v1: twice as fast as fp32 with VNNI; without it at 0.8 to 0.95 of fp32's speed, where only the
file, less than half as large, is a reason. Nothing is trained. A NaN in a pixel of X gives NaN in all channels of that
pixel. A network whose inputs and weights lie on 8-bit grids already, as an ONNX file's do behind QuantizeLinear and
DequantizeLinear, has its products in int8 on these grids: `codes`.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from ..core import kernels
from . import packed, reference
from .codes import pack
from .packed import Int8Params, Map, Network, Op
from .records import PRODUCTS, U8S8_MAX_COLUMNS
from .runtime import arena_for, floats, placed


def quantised(network: Network, images: torch.Tensor | np.ndarray) -> Network:
    """The network with its products in int8, their ranges taken from images as its engine takes them, (N, ...).

    A few dozen images that look like those to come are enough. The network is left as it is; compile it and quantise
    it before `tuning.tuned`, which leaves these products alone.
    """
    images = _checked(network, images)
    products = [i for i, op in enumerate(network.ops) if _is_quantisable(op, network)]
    if not products:
        raise ValueError("the network has no product to do in int8: all of its operators stay in fp32")
    ops = list(network.ops)
    for i, (low, high) in zip(products, _ranges(*_unfused(network, products), images), strict=True):
        ops[i] = _quantised_op(ops[i], low, high)
    return replace(network, ops=ops)


def _checked(network: Network, images: torch.Tensor | np.ndarray) -> np.ndarray:
    if len(network.inputs) > 1:
        raise ValueError(f"the network takes {len(network.inputs)} inputs: in int8 it may take one, its images")
    shape = network.maps[network.inputs[0]].shape
    array = floats("images", images)
    if array.ndim != 4 or array.shape[1:] != shape or not len(array):
        raise ValueError(f"images has shape {array.shape}: give at least one as (N, {', '.join(map(str, shape))})")
    if not np.isfinite(array).all():
        raise ValueError("images holds NaN or infinity: give finite numbers, for the ranges of the products' inputs")
    return array


def _is_quantisable(op: Op, network: Network) -> bool:
    """Whether an operator's product is done in int8; what reads the image is small and needs its precision."""
    fits = op.kind in PRODUCTS and op.weights is not None and op.weights.columns <= U8S8_MAX_COLUMNS
    return fits and op.int8 is None and op.x not in network.inputs


def _quantised_op(op: Op, low: float, high: float) -> Op:
    """The operator in int8 for inputs from low to high, which hold 0."""
    assert op.weights is not None
    w = op.weights.to_dense()
    row_scale = np.abs(w).max(1, initial=0) / 127
    row_scale[row_scale == 0] = 1
    inv_scale = np.float32(255 / max(high - low, 1e-30))
    zero = int(np.rint(-low * inv_scale).clip(0, 255))
    weights = pack(np.rint(w / row_scale[:, None]).astype(np.int8))
    params = Int8Params(float(inv_scale), zero, (row_scale / inv_scale).astype(np.float32))
    return replace(op, weights=weights, int8=params)


# -- what range a product's input takes --------------------------------------------------------------------------------


def _unfused(network: Network, products: list[int]) -> tuple[Network, list[int]]:
    """The network with all maps whole and separable pairs cut in two, so that what lies between is seen.

    Returns too which of its operators the products are.
    """
    maps = [replace(m, buffer_rows=0) for m in network.maps]
    ops: list[Op] = []
    where = []
    for i, op in enumerate(network.ops):
        if op.kind == "separable":
            out = maps[op.y]
            maps.append(Map(maps[op.x].c, out.h, out.w))
            depthwise = replace(op, kind="depthwise", y=len(maps) - 1, clamp=op.inner, act=op.inner_act)
            ops.append(replace(depthwise, add=None, weights=None, bias=None))
            op = replace(op, kind="pointwise", x=len(maps) - 1, k=(1, 1), stride=(1, 1), pad=(0, 0), inner_act="")
            op.taps = op.taps_bias = None
        if i in products:
            where.append(len(ops))
        ops.append(op)
    return replace(network, maps=maps, ops=ops), where


def _ranges(network: Network, products: list[int], images: np.ndarray) -> list[tuple[float, float]]:
    """(low, high) of each of these operators: the least and the greatest number, and 0, that it reads."""
    ranges = np.zeros((len(products), 2))
    inputs = _inputs_c if kernels.backend() == "c" else _inputs_reference
    for i, x in inputs(network, images):
        if i in products:
            at = products.index(i)
            ranges[at] = min(ranges[at, 0], x.min()), max(ranges[at, 1], x.max())
    return [(low, high) for low, high in ranges]


def _inputs_reference(network: Network, images: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each operator's number and what it reads (C, pixels), image by image, computed by the reference."""
    for image in images:
        values = reference.inputs(network, [image])
        for i, op in enumerate(network.ops):
            if op.reads:
                yield i, values[op.x].reshape(len(values[op.x]), -1)
            values[op.y] = reference.step(op, network.maps, values)


def _inputs_c(network: Network, images: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each operator's number and what it reads (C, pixels), image by image, as it lies in the engine's arena."""
    file = placed(packed.write(network))
    arena = arena_for(file)
    model, memory = kernels.pointer(file), kernels.pointer(arena)
    for image in images:
        kernels.lib.engine_put(model, memory, kernels.pointer(image))
        for i, op in enumerate(network.ops):
            m = network.maps[op.x]
            if op.reads and not m.interleaved:
                yield i, arena[m.at : m.at + m.c * m.pitch].reshape(m.c, m.pitch)[:, : m.pixels]
            kernels.lib.engine_step(model, memory, kernels.isa(), i)
