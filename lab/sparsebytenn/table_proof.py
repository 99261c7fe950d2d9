"""What the operators that are no product must prove: shapes that go together, tables that stay within their maps.

Each check takes the file, the operator, its maps x and y, and gives 0 or the number in records.WRONG. ckernels/check.c
asks the same in the same order.
"""

import numpy as np

from ..core import kernels
from .records import HEADER, MAX_SIDE, NONE, PART, File, Head, MapRecord, OpRecord, round_up
from .tables import Part, part_of


def extent(m: MapRecord) -> int:
    """Floats of the arena that a map takes."""
    return round_up(m.h * m.w * m.c, 16) + 16 if m.interleaved else round_up(m.c, 4) * m.pitch


def is_inside(h: Head, at: int, size: int) -> bool:
    """Whether so many bytes from `at` on lie in the file, behind its header, on a multiple of 4."""
    return at % 4 == 0 and HEADER.size <= at <= h.size and size <= h.size - at


def leaves_arena(h: Head, o: OpRecord, floats: int) -> int:
    """Whether an operator's workspace of so many floats lies in the arena."""
    return 10 if o.work % 16 or o.work + floats > h.arena else 0


def check_binary(f: File, o: OpRecord, x: MapRecord, y: MapRecord) -> int:
    """The sum, product, ... of two maps, the second of which may be spread over planes or pixels."""
    if o.add == NONE or (x.c, x.h, x.w, x.pitch) != (y.c, y.h, y.w, y.pitch):
        return 7
    return 0 if spread(y, f.maps[o.add]) else 7


def spread(y: MapRecord, b: MapRecord) -> str:
    """How the second term of a binary operator meets y: "all", a number a "plane", a "pixel", "one"; "" if not."""
    if (b.c, b.h, b.w, b.pitch) == (y.c, y.h, y.w, y.pitch):
        return "all"
    if y.c > 1 and (b.c, b.h, b.w) in ((y.c, 1, 1), (1, 1, y.c)):
        return "plane"
    if (b.c, b.h, b.w) == (1, y.h, y.w):
        return "pixel"
    return "one" if (b.c, b.h, b.w) == (1, 1, 1) else ""


def check_unary(f: File, o: OpRecord, x: MapRecord, y: MapRecord) -> int:
    """y = act(clamp(x))."""
    return 0 if (x.c, x.h, x.w) == (y.c, y.h, y.w) else 7


def _table(f: File, o: OpRecord, n: int) -> int:
    """Whether a table has n words, all of them in the file."""
    if o.n_args != n:
        return 7
    return 0 if is_inside(f.head, o.args, 4 * n) else 8


def check_pool(f: File, o: OpRecord, x: MapRecord, y: MapRecord) -> int:
    """Windows that are not empty and lie in x."""
    if x.c != y.c:
        return 7
    wrong = _table(f, o, 3 * y.h + 3 * y.w + 2)
    if wrong:
        return wrong
    args = f.args(o)
    rows, columns = args[: 2 * y.h].reshape(-1, 2), args[2 * y.h : 2 * (y.h + y.w)].reshape(-1, 2)
    step = args[2 * (y.h + y.w) :][:2]
    for ranges, side in ((rows, x.h), (columns, x.w)):
        if (ranges[:, 0] >= ranges[:, 1]).any() or (ranges[:, 1] > side).any():
            return 15
    if (step < 1).any() or (step > MAX_SIDE).any():
        return 15
    return leaves_arena(f.head, o, kernels.line_workspace(x.w, y.w))


def check_resize(f: File, o: OpRecord, x: MapRecord, y: MapRecord) -> int:
    """Rows and columns that lie in x."""
    if x.c != y.c:
        return 7
    wrong = _table(f, o, 3 * (y.h + y.w))
    if wrong:
        return wrong
    args = f.args(o)
    if (args[: 2 * y.h] >= x.h).any() or (args[3 * y.h : 3 * y.h + 2 * y.w] >= x.w).any():
        return 15
    return leaves_arena(f.head, o, kernels.line_workspace(x.w, y.w))


def check_softmax(f: File, o: OpRecord, x: MapRecord, y: MapRecord) -> int:
    """Whole groups of planes."""
    if (x.c, x.h, x.w) != (y.c, y.h, y.w):
        return 7
    return 0 if o.planes and x.c % o.planes == 0 else 7


def check_norm(f: File, o: OpRecord, x: MapRecord, y: MapRecord) -> int:
    """Whole groups of planes, a weight and a bias for each plane."""
    return check_softmax(f, o, x, y) or _table(f, o, 1 + 2 * x.c)


def check_const(f: File, o: OpRecord, x: MapRecord, y: MapRecord) -> int:
    """A number for each pixel."""
    return _table(f, o, y.c * y.h * y.w)


def check_matmul(f: File, o: OpRecord, x: MapRecord, y: MapRecord) -> int:
    """Rows of a and b within their maps; whole vectors of b may be read, which end in the arena."""
    if o.add == NONE:
        return 7
    wrong = _table(f, o, 15)
    if wrong:
        return wrong
    b1, b2, m, k, n, a_at, *rest = f.args(o)[:14].tolist()
    if not all(1 <= side <= MAX_SIDE for side in (b1, b2, m, k)) or b1 * b2 * m != y.c or y.h * y.w != n:
        return 7
    b = f.maps[o.add]
    a_end = a_at + sum((size - 1) * stride for size, stride in zip((b1, b2, m, k), rest[:4], strict=True))
    b_end = rest[4] + sum((size - 1) * stride for size, stride in zip((b1, b2, k), rest[5:], strict=True)) + n
    if a_end >= extent(x) or b_end > extent(b) or b.at + b_end + 16 > f.head.arena:
        return 15
    return leaves_arena(f.head, o, kernels.matmul_workspace(m, k, n))


def check_move(f: File, o: OpRecord, x: MapRecord, y: MapRecord) -> int:
    """Parts within their maps, none of which writes a float twice; without a fill, as many as y has."""
    if o.n_args < 2 + PART or (o.n_args - 2) % PART:
        return 7
    if not is_inside(f.head, o.args, 4 * o.n_args):
        return 8
    args = f.args(o)
    moved = 0
    for row in args[2:].reshape(-1, PART):
        part = part_of(row)
        wrong = _part(f, o, part, y)
        if wrong:
            return wrong
        moved += int(np.prod(part.sizes, dtype=object))
    if args[0] > 1 or args[2] != o.x:
        return 6
    return 0 if args[0] or moved == y.c * y.h * y.w else 7


def _part(f: File, o: OpRecord, part: Part, y: MapRecord) -> int:
    """Whether a part of a move reads a whole map other than y and stays within both."""
    if part.x >= f.head.n_maps or part.x == o.y:
        return 6
    x = f.maps[part.x]
    if x.interleaved:
        return 7
    if not all(1 <= size <= MAX_SIDE for size in part.sizes):
        return 15
    ends = ((part.x_at, part.x_strides, extent(x)), (part.y_at, part.y_strides, extent(y)))
    for at, strides, floats in ends:
        steps = [(size - 1) * stride for size, stride in zip(part.sizes, strides, strict=True)]
        if at + sum(step for step in steps if step < 0) < 0 or at + sum(step for step in steps if step > 0) >= floats:
            return 15
    return 0 if _is_apart(part) else 15


def _is_apart(part: Part) -> bool:
    """Whether a part writes no float twice: each axis steps over all that those with shorter steps reach."""
    axes = sorted((abs(stride), size) for stride, size in zip(part.y_strides, part.sizes, strict=True) if size > 1)
    reach = 0
    for stride, size in axes:
        if stride <= reach:
            return False
        reach += (size - 1) * stride
    return True


CHECKS = {
    "binary": check_binary,
    "unary": check_unary,
    "pool": check_pool,
    "move": check_move,
    "resize": check_resize,
    "softmax": check_softmax,
    "norm": check_norm,
    "matmul": check_matmul,
    "const": check_const,
}
