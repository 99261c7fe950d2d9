"""Numbers rounded to grids, as quantisation leaves them: of codes low .. high, which stand for (code - zero) * scale.

A product that reads them, and whose rows lie on grids of int8 too, is done in int8: its kernel rounds what it reads.
Where products alone read a grid, nothing else rounds to it; for all others x / scale is clamped, rounded and scaled.
Where convolutions alone read it, depthwise ones among them, it stays in codes, and their weights are scaled instead.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from .. import codes
from ..packed import Int8Params
from ..records import U8S8_MAX_COLUMNS
from .builder import Builder, LacksError, args_of, aten, called, is_renaming, source
from .elementwise import activated, clamp_to, entrywise, narrow

CODES = 256  # of a byte


@dataclass(frozen=True)
class Grid:
    """Scale and zero point, a number each or (C,) along an axis, and the least and the greatest code."""

    scale: Tensor
    zero: Tensor
    low: int
    high: int

    @property
    def is_byte(self) -> bool:
        """Whether its codes are bytes once the least is taken off, among them one for 0, which stands around maps."""
        zero = int(self.zero) if self.zero.numel() == 1 else self.low - 1
        return self.high - self.low < CODES and self.low <= zero <= self.high


def rounded(b: Builder, node: fx.Node) -> None:
    """torch.round, halves to even."""
    activated(b, node, "round")


def fake_quantised(b: Builder, node: fx.Node) -> None:
    """x rounded to a grid; where products alone read it, which round it themselves, clamped at most."""
    x, grid = args_of(node)[0], _grid(b, node)
    b.grids[node] = grid
    low, high = grid.low - grid.zero, grid.high - grid.zero
    if grid.is_byte and all(_rounds(b, node, user) for user in _readers(node)):
        if grid.high - grid.low < CODES - 1:
            clamp_to(b, node, float(low * grid.scale), float(high * grid.scale))
        else:
            b.gives(node, b.value(x))
        return
    _scaled(b, node, x, 1 / grid.scale)
    if grid.zero.numel() == 1:
        op = next(op for op in reversed(b.ops) if op.y == b.values[node].map)
        narrow(op, float(low), float(high))
        op.act = "round"
    else:
        for fn, limit in (("max", low), ("min", high)):
            entrywise(b, node, fn, node, limit)
        entrywise(b, node, "add", node, torch.tensor(0.0))
        b.ops[-1].act = "round"
    if grid.scale.numel() == 1 and all(_takes_scale(b, *reader) for reader in _readers(node)):
        b.in_codes.add(node)
    else:
        entrywise(b, node, "mul", node, grid.scale)


def _takes_scale(b: Builder, name: fx.Node, user: fx.Node) -> bool:
    """Whether what reads a node under a name is a convolution with weights that can be multiplied by its scale."""
    if called(user) is not aten.convolution.default:
        return False
    x, weight, bias, *_ = args_of(user)
    return x is name and name not in (weight, bias) and b.constant(weight) is not None


def scale_of(b: Builder, x: fx.Node) -> float:
    """What the numbers in a node's map are to be multiplied by: its scale where it lies in codes, else 1."""
    root = source(x)
    return float(b.grids[root].scale) if root in b.in_codes else 1.0


def _scaled(b: Builder, node: fx.Node, x: fx.Node, factor: Tensor) -> None:
    """x times a positive factor, by the product that wrote it if that has done nothing else than clamp."""
    op = b.writer(x)
    if op is None or op.act or op.add is not None or op.y not in b.matrices or factor.numel() > 1:
        entrywise(b, node, "mul", x, factor)
        return
    by = float(factor)
    b.matrices[op.y], op.bias = b.matrices[op.y] * by, np.asarray(op.bias) * by
    op.clamp = op.clamp[0] * by, op.clamp[1] * by
    b.gives(node, b.values[x])


def _grid(b: Builder, node: fx.Node) -> Grid:
    _, scale, zero, *rest = args_of(node)
    scale, zero = _numbers(b, scale), _numbers(b, zero)
    if called(node) is BY_TENSORS and not bool(_numbers(b, rest[0])):
        raise LacksError("is told by a tensor not to round")
    if not bool((scale > 0).all()):
        raise LacksError(f"rounds to steps of {float(scale.min()):g}")
    if called(node) is PER_CHANNEL:
        axis, rank = rest[0], len(b.shape(node))
        sides = [-1 if k == axis % rank else 1 for k in range(rank)]
        return Grid(scale.reshape(sides), zero.reshape(sides), *rest[-2:])
    return Grid(scale.reshape(()), zero.reshape(()), *rest[-2:])


def _numbers(b: Builder, part: Any) -> Tensor:
    numbers = b.constant(part) if isinstance(part, fx.Node) else torch.tensor(part)
    if numbers is None:
        raise LacksError("rounds to a grid that is computed")
    return numbers.detach().double()


def _readers(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """What reads a node under any name: the node that reads, and under which name."""
    for user in node.users:
        if is_renaming(user):
            yield from _readers(user)
        else:
            yield node, user


def _rounds(b: Builder, node: fx.Node, reader: tuple[fx.Node, fx.Node]) -> bool:
    """Whether a reader is a convolution that is done in int8."""
    name, user = reader
    if called(user) is not aten.convolution.default or args_of(user)[0] is not name or name in args_of(user)[1:3]:
        return False
    w, shape = b.constant(args_of(user)[1]), b.shape(name)
    *_, is_transposed, _, groups = args_of(user)
    if w is None or is_transposed or groups > 1 or w[0].numel() > U8S8_MAX_COLUMNS or max(shape[2:]) == 1:
        return False
    return codes.steps(w.detach().flatten(1).double().numpy()) is not None


def codes_of(b: Builder, x: fx.Node, matrix: np.ndarray) -> Int8Params | None:
    """How a product with a matrix (OC, columns) takes x as codes, its scales left out; None where it takes floats."""
    grid = b.grids.get(source(x))
    if grid is None or not grid.is_byte or matrix.shape[1] > U8S8_MAX_COLUMNS or codes.steps(matrix) is None:
        return None
    return Int8Params(scale_of(b, x) / float(grid.scale), int(grid.zero - grid.low), np.zeros(0, np.float32))


PER_TENSOR = aten.fake_quantize_per_tensor_affine_cachemask.default
BY_TENSORS = aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams.default
PER_CHANNEL = aten.fake_quantize_per_channel_affine_cachemask.default
LOWERINGS: dict[Any, Callable[[Builder, fx.Node], None]] = {
    **dict.fromkeys((PER_TENSOR, BY_TENSORS, PER_CHANNEL), fake_quantised), aten.round.default: rounded,
}  # fmt: skip
