"""The tables of operators that are no product: what they read, from where, with which numbers; and their words.

A table's words are its fields one after another, float32 as their bits. ckernels/engine.h reads them by their place.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from itertools import chain
from typing import Any

import numpy as np

from .records import PART


@dataclass(frozen=True, eq=False)
class Pool:
    """Windows that are read: rows (h, 2) and columns (w, 2) of each output row and column, [from, to) in x.

    `step`: from one row, and one column, of a window to its next. A sum is multiplied by row_scale (h,) and
    column_scale (w,).
    """

    rows: np.ndarray
    columns: np.ndarray
    step: tuple[int, int]
    row_scale: np.ndarray
    column_scale: np.ndarray


@dataclass(frozen=True)
class Part:
    """Floats that are moved from map x: y[y_at + sum i_k y_strides_k] = x[x_at + sum i_k x_strides_k], i over sizes.

    Places and strides count floats of the maps' own storage; strides may be 0, of x, and negative.
    """

    x: int
    x_at: int
    y_at: int
    sizes: tuple[int, ...]
    x_strides: tuple[int, ...]
    y_strides: tuple[int, ...]


@dataclass(frozen=True)
class Strided:
    """Parts that make up a map; with `fill`, what none of them writes is that number."""

    fill: float | None
    parts: tuple[Part, ...]


@dataclass(frozen=True, eq=False)
class Resize:
    """rows (h, 2) and columns (w, 2): the two of x between which each output row and column lies, the weight (h,),
    (w,) of the second. Where it is 0 the first alone counts.
    """

    rows: np.ndarray
    row_weight: np.ndarray
    columns: np.ndarray
    column_weight: np.ndarray


@dataclass(frozen=True, eq=False)
class Norm:
    """What a variance is no smaller than, and the weight (c,) and bias (c,) of each plane."""

    eps: float
    weight: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class Matmul:
    """`batch` (b1, b2) products of a (m, k), anywhere in map x, and b (k, n), rows of unit stride in map `add`.

    a_strides (b1, b2, m, k) and b_strides (b1, b2, k) count floats of the maps' storage; products are times `scale`.
    """

    batch: tuple[int, int]
    m: int
    k: int
    n: int
    a_at: int
    a_strides: tuple[int, int, int, int]
    b_at: int
    b_strides: tuple[int, int, int]
    scale: float = 1.0


@dataclass(frozen=True, eq=False)
class Const:
    """A map's numbers, (c, h, w)."""

    values: np.ndarray


KINDS = {"pool", "move", "resize", "norm", "matmul", "const"}  # of the operators that have one
Table = Pool | Strided | Resize | Norm | Matmul | Const


def words(table: Table) -> np.ndarray:
    """A table as the file has it: (n_args,) uint32."""
    return np.concatenate([_bits(field) for field in _fields(table)])


def _fields(table: Table) -> Iterator[Any]:
    """Its numbers in order, floats as float32."""
    match table:
        case Pool():
            yield from (np.uint32(table.rows), np.uint32(table.columns), np.array(table.step, np.uint32))
            yield from (np.float32(table.row_scale), np.float32(table.column_scale))
        case Strided():
            yield from (np.uint32(table.fill is not None), np.float32(0 if table.fill is None else table.fill))
            for part in table.parts:
                head = part.x, part.x_at, part.y_at
                yield np.array([*head, *part.sizes, *part.x_strides, *part.y_strides], np.int64).astype(np.uint32)
        case Resize():
            yield from (np.uint32(table.rows), np.float32(table.row_weight))
            yield from (np.uint32(table.columns), np.float32(table.column_weight))
        case Norm():
            yield from (np.float32(table.eps), np.float32(table.weight), np.float32(table.bias))
        case Matmul():
            *integers, scale = astuple(table)
            flat = chain.from_iterable(n if isinstance(n, Sequence) else (n,) for n in integers)
            yield from (np.array([*flat], np.uint32), np.float32(scale))
        case Const():
            yield np.asarray(table.values, np.float32)


def _bits(field: Any) -> np.ndarray:
    return np.ascontiguousarray(field).reshape(-1).view(np.uint32)


def from_words(kind: str, args: np.ndarray, shape: tuple[int, int, int]) -> Table:
    """The table of an operator of a kind that has one, and that writes a map of shape (c, h, w)."""
    read: dict[str, Callable[..., Table]]
    read = {"pool": _pool, "move": _move, "resize": _resize, "norm": _norm, "matmul": _matmul, "const": _const}
    return read[kind](args, shape)


def _pool(args: np.ndarray, shape: tuple[int, int, int]) -> Pool:
    _, h, w = shape
    rows, columns, step, row_scale, column_scale = np.split(args, np.cumsum([2 * h, 2 * w, 2, h]))
    scales = row_scale.view(np.float32), column_scale.view(np.float32)
    return Pool(rows.reshape(h, 2), columns.reshape(w, 2), (int(step[0]), int(step[1])), *scales)


def _move(args: np.ndarray, shape: tuple[int, int, int]) -> Strided:
    fill = float(args[1:2].view(np.float32)[0]) if args[0] else None
    return Strided(fill, tuple(part_of(row) for row in args[2:].reshape(-1, PART)))


def part_of(row: np.ndarray) -> Part:
    """A part from its words (21,)."""
    x, x_at, y_at, *sizes = row[:9].tolist()
    strides = row[9:].view(np.int32).tolist()
    return Part(x, x_at, y_at, tuple(sizes), tuple(strides[:6]), tuple(strides[6:]))


def _resize(args: np.ndarray, shape: tuple[int, int, int]) -> Resize:
    _, h, w = shape
    rows, row_weight, columns, column_weight = np.split(args, np.cumsum([2 * h, h, 2 * w]))
    weights = row_weight.view(np.float32), column_weight.view(np.float32)
    return Resize(rows.reshape(h, 2), weights[0], columns.reshape(w, 2), weights[1])


def _norm(args: np.ndarray, shape: tuple[int, int, int]) -> Norm:
    numbers = args.view(np.float32)
    return Norm(float(numbers[0]), numbers[1 : 1 + shape[0]], numbers[1 + shape[0] :])


def _matmul(args: np.ndarray, shape: tuple[int, int, int]) -> Matmul:
    b1, b2, m, k, n, a_at, *rest = args[:14].tolist()
    a_strides, b_at, b_strides = rest[:4], rest[4], rest[5:]
    scale = float(args[14:].view(np.float32)[0])
    return Matmul((b1, b2), m, k, n, a_at, tuple(a_strides), b_at, tuple(b_strides), scale)


def _const(args: np.ndarray, shape: tuple[int, int, int]) -> Const:
    return Const(args.view(np.float32).reshape(shape))
