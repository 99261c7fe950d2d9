"""Weights and inputs that lie on grids of 8 bits: the steps of their rows, their codes in blocks."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from ..core.quantisation.qparams import QParams, is_quantiser
from .packed import Network, Op, SparseInt8

NEAR = 2**-14  # of a step: so far from an integer may what float32 leaves of a code times a step be
K_TILE = 128  # fours of columns of W whose rows of X stay in the first-level cache


class _Rounded(nn.Module):
    """A quantiser's grid as torch's own operator, which the engine knows for one."""

    def __init__(self, grid: QParams) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fake_quantize_per_tensor_affine(x, self.grid.scale, 0, self.grid.qmin, self.grid.qmax)


def with_grids(model: nn.Module) -> nn.Module:
    """A copy in which the lab's quantisers are torch's operator; the network itself where it has none."""
    quantisers = [name for name, module in model.named_modules() if name and is_quantiser(module)]
    if not quantisers:
        return model
    copy = deepcopy(model)
    for name in quantisers:
        copy.set_submodule(name, _Rounded(copy.get_submodule(name).qparams()))  # type: ignore[operator]
    return copy


def on_grids(network: Network) -> Network:
    """The network with those products in int8 that its lowering marked, whose rows and inputs lie on grids as they are.

    Rows keep their grids exactly; products whose rows have none stay in fp32.
    """
    return replace(network, ops=[_on_grid(op) if op.int8 and not op.int8.scale.size else op for op in network.ops])


def _on_grid(op: Op) -> Op:
    assert op.weights is not None and op.int8 is not None
    w = op.weights.to_dense().astype(np.float64)
    row_scale = steps(w)
    if row_scale is None:
        return replace(op, int8=None)
    scale = (row_scale / op.int8.inv_scale).astype(np.float32)
    codes = np.rint(w / row_scale[:, None]).astype(np.int8)
    return replace(op, weights=pack(codes), int8=replace(op.int8, scale=scale))


def steps(w: np.ndarray) -> np.ndarray | None:
    """The step of each row of w (rows, columns) whose numbers are integers of int8 times it; None where a row has none.

    (rows,), 1 for a row of zeros.
    """
    largest = np.abs(w).max(1, initial=0)
    step = np.where(largest == 0, 1.0, 0.0)
    few = w[:, :: max(1, w.shape[1] // 32)]  # which rule out most steps
    for most in (127, 128, *range(126, 0, -1)):
        rows = np.flatnonzero(step == 0)
        tried = largest[rows] / most
        fits = _fits(few[rows], tried)
        rows, tried = rows[fits], tried[fits]
        fits = _fits(w[rows], tried)
        step[rows[fits]] = tried[fits]
    return step if step.all() else None


def _fits(w: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Whether rows of w (rows, columns) are integers of int8 times a step, as far as floats say: (rows,)."""
    codes = w / step[:, None]
    integers = np.rint(codes)
    return (np.abs(codes - integers) < NEAR).all(1) & (integers >= -128).all(1) & (integers <= 127).all(1)


def pack(w: np.ndarray, *, k_tile: int = K_TILE) -> SparseInt8:
    """w (rows, columns) of int8 in its 4 x 4 blocks that are not zero, or in all where there are few others."""
    rows, columns = w.shape
    padded = np.pad(w, ((0, -rows % 4), (0, -columns % 4)))
    blocks = padded.reshape(len(padded) // 4, 4, padded.shape[1] // 4, 4).swapaxes(1, 2)  # (groups, fours, 4, 4)
    keep = (blocks != 0).any((2, 3))
    dense = keep.mean() > 0.97 if keep.size else True
    keep |= dense
    tiles = [slice(start, start + k_tile) for start in range(0, keep.shape[1], k_tile)]
    count = np.concatenate([keep[:, tile].sum(1) for tile in tiles])
    col = None if dense else np.concatenate([np.nonzero(keep[:, tile])[1] for tile in tiles])
    kept = np.concatenate([blocks[:, tile][keep[:, tile]] for tile in tiles])
    return SparseInt8(rows, columns, k_tile, count, col, kept)
