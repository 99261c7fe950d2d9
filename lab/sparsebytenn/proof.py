"""The records of a packed file, and what they must prove before it runs.

ckernels/check.c asks the same questions in the same order, for programs and browsers without Python; this is asked
where the C kernels are not built, too. Tests hold both to the same answers.
"""

import re
import zlib
from itertools import pairwise

import numpy as np

from ..core import kernels
from . import table_proof
from .records import (
    ACTS,
    FNS,
    HEADER,
    INDEXED,
    KINDS,
    MAGIC,
    MAP,
    MAX_ENDS,
    MAX_FLOATS,
    MAX_OPS,
    MAX_SIDE,
    MAX_WINDOW,
    NONE,
    OP,
    PART,
    PRODUCTS,
    U8S8,
    U8S8_MAX_COLUMNS,
    VERSION,
    File,
    Head,
    MapRecord,
    OpRecord,
    round_up,
)
from .table_proof import extent, is_inside, leaves_arena

_MAX_FP32 = float(np.finfo(np.float32).max)
_PRELU = ACTS.index("prelu")

# The description: one JSON object of integers, strings and lists of them, written as json.dumps does.
_STRING, _INTEGER = rb'"(?:[ !#-\[\]-~]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*"', rb"-?(?:0|[1-9][0-9]{0,14})"
_ITEM = rb"(?:%s|%s)" % (_STRING, _INTEGER)
_ENTRY = rb'"[a-z]*": (?:%s|\[(?:%s(?:, %s)*)?\])' % (_ITEM, _ITEM, _ITEM)
DESCRIPTION = re.compile(rb"\{%s(?:, %s)*\}" % (_ENTRY, _ENTRY))


def check(data: bytes) -> int:
    """0 for a packed network that may be run, else the number in WRONG of the first thing that is wrong with it."""
    return _envelope(data) or _network(File(data))


def _envelope(data: bytes) -> int:
    """Whether it is a whole file of this version, and its tables lie in it."""
    if len(data) < HEADER.size:
        return 1
    h = Head(*HEADER.unpack_from(data))
    if h.magic != MAGIC:
        return 2
    if h.version != VERSION or h.unused or h.unused_2:
        return 3
    if h.size != len(data):
        return 1
    if zlib.crc32(data[16:]) != h.crc:
        return 4
    tables = ((h.maps, MAP.size * h.n_maps), (h.ops, OP.size * h.n_ops), (h.meta, h.meta_size))
    return 0 if all(is_inside(h, *table) for table in tables) else 8


def _network(f: File) -> int:
    h = f.head
    wrong = _ends(f)
    if wrong:
        return wrong
    if h.n_ops > MAX_OPS:
        return 6
    if h.arena > MAX_FLOATS:
        return 11
    return (
        next(filter(None, (_map(h, m) for m in f.maps)), 0)
        or next(filter(None, (_op(f, o) for o in f.ops)), 0)
        or next(filter(None, (_buffers(f, i) for i in range(h.n_ops))), 0)
        or (11 if h.arena > round_up(_end(f), 16) else 0)
        or (0 if _is_in_order(f) else 12)
        or (0 if _is_described(f) else 14)
    )


def _ends(f: File) -> int:
    """Whether inputs and outputs are whole maps, with their channels apart but for the first input."""
    n_inputs, n_outputs = f.head.n_ends & 0xFFFF, f.head.n_ends >> 16
    if not (1 <= n_inputs <= MAX_ENDS and 1 <= n_outputs <= MAX_ENDS):
        return 5
    if not is_inside(f.head, f.head.ends, 4 * (n_inputs + n_outputs)):
        return 8
    for i, end in enumerate(f.inputs + f.outputs):
        if end >= f.head.n_maps or f.maps[end].buffer_rows or (f.maps[end].interleaved and i > 0):
            return 5
    return 0


def _end(f: File) -> int:
    """The float of the arena behind all that lies in it."""
    works = [o.work + floats for o in f.ops if (floats := _work_floats(f, o))]
    return max(0, *works, *(m.at + extent(m) for m in f.maps))


def _map(h: Head, m: MapRecord) -> int:
    pixels = (m.buffer_rows or m.h) * m.w
    if not all(1 <= side <= MAX_SIDE for side in (m.c, m.h, m.w)) or m.interleaved > 1:
        return 5
    if m.buffer_rows and (m.buffer_rows > m.h or m.interleaved):
        return 5
    if m.h * m.w > 1 << 28 or m.at % 16 or (not m.interleaved and m.pitch != kernels.pitch_for(pixels)):
        return 5
    return 0 if m.at + extent(m) <= h.arena else 10


def _op(f: File, o: OpRecord) -> int:
    n = f.head.n_maps
    kind = next((name for name, number in KINDS.items() if number == o.kind), "")
    if o.x >= n or o.y >= n or (o.add != NONE and o.add >= n) or (o.x == o.y) != (kind == "const"):
        return 6
    x, y = f.maps[o.x], f.maps[o.y]
    a = y if o.add == NONE else f.maps[o.add]
    if y.interleaved or a.interleaved or (x.interleaved and kind != "conv"):
        return 7
    if o.add != NONE and kind not in PRODUCTS | {"binary", "matmul"}:
        return 6
    if kind in PRODUCTS and (a.c, a.h, a.w, a.pitch) != (y.c, y.h, y.w, y.pitch):
        return 7
    if not o.lo <= o.hi or (kind == "separable" and not o.inner_lo <= o.inner_hi):
        return 6
    fns = len(FNS.get(kind, ()))
    if o.act >= len(ACTS) or o.inner_act >= _PRELU or not min(fns, 1) <= o.fn <= fns:
        return 6
    if o.act == _PRELU and not is_inside(f.head, o.slopes, 4 * y.c):
        return 8
    return _CHECKS[kind](f, o, x, y) if kind else 6


def _conv(f: File, o: OpRecord, x: MapRecord, y: MapRecord) -> int:
    wrong = _window(o, y)
    columns = x.c * o.k * o.k_w
    if wrong or columns > MAX_FLOATS:
        return wrong or 6
    return _row_tile(f, o, x, y, columns) or _product(f, o, x, y, columns)


def _pointwise(f: File, o: OpRecord, x: MapRecord, y: MapRecord) -> int:
    return 7 if (x.h, x.w) != (y.h, y.w) else _product(f, o, x, y, x.c)


def _depthwise(f: File, o: OpRecord, x: MapRecord, y: MapRecord) -> int:
    is_pair = o.kind == KINDS["separable"]
    wrong = _window(o, y)
    if wrong or o.k not in (3, 5, 7) or o.stride > 2 or o.pad >= o.k or o.pad_w >= o.k:
        return wrong or 6
    if (o.k, o.stride, o.dilation, o.dilation_w) != (o.k_w, o.stride_w, 1, 1):
        return 6
    if (y.h - 1) * o.stride >= x.h + o.pad or (y.w - 1) * o.stride >= x.w + o.pad_w or (not is_pair and x.c != y.c):
        return 7  # a window begins within x, or in the zeros before it
    if not is_inside(f.head, o.taps, 4 * x.c * o.k * o.k) or not is_inside(f.head, o.taps_bias, 4 * x.c):
        return 8
    return _row_tile(f, o, x, y, x.c if is_pair else 0) or (_product(f, o, x, y, x.c) if is_pair else 0)


def _mean(f: File, o: OpRecord, x: MapRecord, y: MapRecord) -> int:
    return 0 if (y.c, y.h, y.w) == (1, 1, x.c) else 7


def _linear(f: File, o: OpRecord, x: MapRecord, y: MapRecord) -> int:
    if (x.c, x.h, y.c, y.h) != (1, 1, 1, 1):
        return 7
    return 6 if o.block != kernels.GEMV_BLOCK or o.k_tile < x.w else _blocks(f, o, y.w, x.w)  # one k-tile


_CHECKS = {
    "conv": _conv,
    "pointwise": _pointwise,
    "depthwise": _depthwise,
    "separable": _depthwise,
    "mean": _mean,
    "linear": _linear,
    **table_proof.CHECKS,
}


def _window(o: OpRecord, y: MapRecord) -> int:
    """Whether a window is one. Where it leads is y's to say: what it meets outside of x are zeros."""
    if not all(1 <= side <= MAX_WINDOW for side in (o.k, o.k_w, o.stride, o.stride_w, o.dilation, o.dilation_w)):
        return 6
    return 0 if max(o.pad, o.pad_w) <= MAX_WINDOW and 1 <= o.tile_rows <= y.h else 6


def _row_tile(f: File, o: OpRecord, x: MapRecord, y: MapRecord, rows: int) -> int:
    """Whether a row tile, laid out as so many rows, fits the workspace."""
    if rows and (o.pitch % 16 or o.pitch < round_up(o.tile_rows * y.w, 16) + 16):
        return 6
    return leaves_arena(f.head, o, rows * o.pitch + _depthwise_floats(o, x))


def _depthwise_floats(o: OpRecord, x: MapRecord) -> int:
    """Floats that a depthwise operator, or the depthwise half of a separable pair, works in."""
    if o.kind not in (KINDS["depthwise"], KINDS["separable"]):
        return 0
    return kernels.depthwise_workspace(x.w, o.k, o.stride, o.tile_rows)


def _work_floats(f: File, o: OpRecord) -> int:
    """Floats of an operator's workspace, whose kind has been checked."""
    kind, x, y = next(name for name, number in KINDS.items() if number == o.kind), f.maps[o.x], f.maps[o.y]
    if kind == "matmul":
        return kernels.matmul_workspace(*f.args(o)[2:5].tolist())
    if kind in ("pool", "resize"):
        return kernels.line_workspace(x.w, y.w)
    columns = x.c * (o.k * o.k_w if kind == "conv" else 1)
    rows = columns if kind in ("conv", "separable") else 0
    u8 = kind in PRODUCTS and o.flags & U8S8
    pitch = x.pitch if kind == "pointwise" else o.pitch
    return rows * o.pitch + _depthwise_floats(o, x) + (-(-columns // 4) * pitch if u8 else 0)


def _product(f: File, o: OpRecord, x: MapRecord, y: MapRecord, columns: int) -> int:
    """The blocks that multiply `columns` of what is laid out of x; in int8, whether x as uint8 fits the workspace."""
    if o.flags & U8S8:
        wrong = leaves_arena(f.head, o, _work_floats(f, o))
        if wrong:
            return wrong
    if o.block not in kernels.BLOCKS or round_up(y.c, o.block) > round_up(y.c, 4):
        return 6  # a map has room for rows up to a multiple of 4
    return _blocks(f, o, y.c, columns)


def _blocks(f: File, o: OpRecord, rows: int, columns: int) -> int:
    is_indexed, is_int8, groups = bool(o.flags & INDEXED), bool(o.flags & U8S8), -(-rows // o.block)
    if is_int8:
        if o.block != kernels.BLOCK or columns > U8S8_MAX_COLUMNS or o.zero > 255 or not 0 < o.inv_scale <= _MAX_FP32:
            return 6
        if not (is_inside(f.head, o.scale, 16 * groups) and is_inside(f.head, o.sums, 16 * groups)):
            return 8
        columns = -(-columns // 4)  # a block is 4 columns wide
    if not 1 <= o.k_tile <= kernels.MAX_K_TILE or o.flags > (INDEXED | U8S8):
        return 9
    if o.flags == INDEXED and o.block < kernels.GEMV_BLOCK and o.k_tile > kernels.SPMM_MAX_K_TILE:
        return 9
    if (o.block == 1 and not is_indexed) or (o.block == kernels.GEMV_BLOCK and o.k_tile < columns):
        return 9
    k_tiles = -(-columns // o.k_tile)
    sections = [(o.count, 2 * k_tiles * groups), (o.bias, 4 * o.block * groups), (o.w, 4 * o.block * o.blocks)]
    sections += [(o.col, 2 * o.blocks)] if is_indexed else []
    if not all(is_inside(f.head, *section) for section in sections):
        return 8
    count = f.array(np.uint16, o.count, k_tiles * groups)
    widths = np.repeat(np.minimum(o.k_tile, columns - np.arange(k_tiles) * o.k_tile), groups)
    if count.sum(dtype=np.int64) != o.blocks or (not is_indexed and (count != widths).any()):
        return 9
    if is_indexed and not kernels.are_columns(f.array(np.uint16, o.col, o.blocks), count, widths):
        return 9
    if not is_int8:
        return 0
    sums = np.zeros((groups, 4), np.int32)  # of each row's weights
    block_sums = f.array(np.int8, o.w, o.blocks, 4, 4).sum(2, dtype=np.int32)  # (blocks, 4)
    np.add.at(sums, np.repeat(np.arange(len(count)) % groups, count), block_sums)
    return 0 if np.array_equal(f.array(np.int32, o.sums, groups, 4), sums) else 13


def _buffers(f: File, i: int) -> int:
    """Whether an operator's rolling row buffers go with its neighbours, and hold what it reads."""
    o = f.ops[i]
    x, y = f.maps[o.x], f.maps[o.y]
    if any(f.maps[read].buffer_rows for read in reads(f, o)[1:]):
        return 7
    if not x.buffer_rows and not y.buffer_rows:
        return 0
    if o.kind > KINDS["separable"] or not 1 <= o.tile_rows <= y.h:
        return 6
    if o.kind == KINDS["pointwise"] and (o.k, o.stride, o.pad, o.dilation) != (1, 1, 0, 1):
        return 6
    if y.buffer_rows and (y.buffer_rows < o.tile_rows or i + 1 == len(f.ops) or f.ops[i + 1].x != o.y):
        return 7
    if not x.buffer_rows:
        return 0
    links = 1
    while links < kernels.MAX_CHAIN and links <= i and f.maps[f.ops[i - links].x].buffer_rows:
        links += 1
    if i == 0 or links == kernels.MAX_CHAIN or f.ops[i - 1].y != o.x:
        return 7
    read = (o.tile_rows - 1) * o.stride + max((o.k - 1) * o.dilation + 1, o.stride)  # rows, by a row tile
    return 7 if x.buffer_rows < min(x.h, read) else 0


def reads(f: File, o: OpRecord) -> list[int]:
    """The maps that an operator reads, its x first."""
    if o.kind == KINDS["const"]:
        return []
    if o.kind == KINDS["move"]:
        return f.args(o)[2::PART].tolist()
    return [o.x] if o.add == NONE else [o.x, o.add]


def _is_in_order(f: File) -> bool:
    """Whether every map is written before it is read, and nothing is written over it in between."""
    ops, taken = f.ops, sorted((f.maps[i].at, f.maps[i].at + extent(f.maps[i])) for i in f.inputs)
    if any(end > start for (_, end), (start, _) in pairwise(taken)):
        return False  # two inputs lie in one place
    floats = [_work_floats(f, o) for o in ops]
    writes = _Places([(f.maps[o.y].at, extent(f.maps[o.y])) for o in ops])
    works = _Places([(o.work, n) for o, n in zip(ops, floats, strict=True)])
    since = dict.fromkeys(f.inputs, 0)  # of each map, the first operator behind the one that wrote it last

    def is_fresh(read: int, last: int) -> bool:
        place, later = (f.maps[read].at, extent(f.maps[read])), slice(since.get(read, 0), last + 1)
        return read in since and not writes.meet(place, later) and not works.meet(place, later)

    for i, o in enumerate(ops):
        turn = i  # the operator in whose turn this one runs: the first from here on to write a whole map
        while f.maps[ops[turn].y].buffer_rows:
            turn += 1
        if not all(is_fresh(read, turn) for read in reads(f, o)):
            return False
        if writes.meet((o.work, floats[i]), slice(i, turn + 1)):
            return False
        since[o.y] = i + 1
    return all(is_fresh(output, len(ops)) for output in f.outputs)


class _Places:
    """Places in the arena: where each begins, and how many floats it has."""

    def __init__(self, places: list[tuple[int, int]]) -> None:
        self.at, floats = np.array(places, np.int64).reshape(-1, 2).T
        self.end = self.at + floats

    def meet(self, place: tuple[int, int], some: slice) -> bool:
        """Whether one of some of them shares a float with another place."""
        at, end = np.maximum(self.at[some], place[0]), np.minimum(self.end[some], sum(place))
        return bool((at < end).any())


def _is_described(f: File) -> bool:
    text = f.data[f.head.meta : f.head.meta + f.head.meta_size]
    names = f.description().get("names") if DESCRIPTION.fullmatch(text) else None
    return isinstance(names, list) and len(names) == len(f.ops) and all(isinstance(name, str) for name in names)
