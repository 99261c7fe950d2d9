"""The records of a packed file, and what they must prove before it runs.

ckernels/engine.c asks the same questions in the same order, for programs and browsers without Python; this is asked
where the C kernels are not built, too. Tests hold both to the same answers.
"""

import json
import re
import struct
import zlib
from collections import namedtuple
from typing import Any

import numpy as np

from ..core import kernels

MAGIC, VERSION, NONE = b"SBNN", 1, 0xFFFFFFFF
INDEXED, U8S8 = 1, 2  # of an operator's flags
KINDS = {"conv": 1, "pointwise": 2, "depthwise": 3, "separable": 4, "mean": 5, "linear": 6, "add": 7}
PRODUCTS = {"conv", "pointwise", "separable"}  # W X, which can take a sum in
WRONG = {
    1: "it is cut short",
    2: "it does not begin as a packed network does",
    3: "it has another version",
    4: "its checksum does not fit: it was changed or damaged",
    5: "a feature map is malformed",
    6: "an operator is malformed",
    7: "shapes do not go together",
    8: "a section lies outside of it",
    9: "its block counts or columns do not fit",
    10: "its arena is too small",
    11: "its arena is larger than its maps need, or than 4 GiB",
    12: "a map is read that nothing wrote before, or that was written over",
    13: "its row sums are not those of its weights",
    14: "its description is malformed",
}
MAX_SIDE, MAX_OPS, MAX_FLOATS = 1 << 20, 1 << 12, 1 << 30  # of a map, of a file, of an arena
U8S8_MAX_COLUMNS = 1 << 16  # 2^16 * 255 * 128 < 2^31: so many products an int32 can sum
_MAX_FP32 = float(np.finfo(np.float32).max)

HEADER, MAP, OP = struct.Struct("<4s15I"), struct.Struct("<8I"), struct.Struct("<15I2f2I2fIf3I24x")
Head = namedtuple(
    "Head",
    "magic version size crc n_maps n_ops maps ops arena workspace workspace_floats input output meta meta_size zero",
)
MapRecord = namedtuple("MapRecord", "c h w pitch at interleaved buffer_rows zero")
OpRecord = namedtuple(
    "OpRecord",
    "kind x add y k stride pad tile_rows k_tile flags blocks w col count bias lo hi taps taps_bias inner_lo inner_hi "
    "pitch inv_scale zero scale sums",
)

# The description: one JSON object of integers, strings and lists of them, written as json.dumps does.
_STRING, _INTEGER = rb'"(?:[ !#-\[\]-~]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*"', rb"-?(?:0|[1-9][0-9]{0,14})"
_ITEM = rb"(?:%s|%s)" % (_STRING, _INTEGER)
_ENTRY = rb'"[a-z]*": (?:%s|\[(?:%s(?:, %s)*)?\])' % (_ITEM, _ITEM, _ITEM)
DESCRIPTION = re.compile(rb"\{%s(?:, %s)*\}" % (_ENTRY, _ENTRY))


class File:
    """A packed file taken apart: its header, its maps and operators, its numbers."""

    def __init__(self, data: bytes) -> None:
        self.data, self.head = data, Head(*HEADER.unpack_from(data))
        h = self.head
        self.maps = [MapRecord(*MAP.unpack_from(data, h.maps + MAP.size * i)) for i in range(h.n_maps)]
        self.ops = [OpRecord(*OP.unpack_from(data, h.ops + OP.size * i)) for i in range(h.n_ops)]

    def array(self, dtype: Any, at: int, *shape: int) -> np.ndarray:
        return np.frombuffer(self.data, dtype, int(np.prod(shape, dtype=np.int64)), at).reshape(shape)

    def description(self) -> Any:
        return json.loads(self.data[self.head.meta : self.head.meta + self.head.meta_size])


def round_up(n: int, to: int) -> int:
    return -(-n // to) * to


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
    if h.version != VERSION:
        return 3
    if h.size != len(data):
        return 1
    if zlib.crc32(data[16:]) != h.crc:
        return 4
    tables = ((h.maps, MAP.size * h.n_maps), (h.ops, OP.size * h.n_ops), (h.meta, h.meta_size))
    return 0 if all(_is_inside(h, *table) for table in tables) else 8


def _is_inside(h: Head, at: int, size: int) -> bool:
    return at % 4 == 0 and HEADER.size <= at <= h.size and size <= h.size - at


def _network(f: File) -> int:
    h = f.head
    if h.input >= h.n_maps or h.output >= h.n_maps or f.maps[h.output].interleaved:
        return 5
    if h.n_ops > MAX_OPS:
        return 6
    if h.arena > MAX_FLOATS:
        return 11
    if h.workspace % 16 or h.workspace + h.workspace_floats > h.arena:
        return 10
    wrong = next(filter(None, (_map(h, m) for m in f.maps)), 0)
    if wrong or f.maps[h.input].buffer_rows or f.maps[h.output].buffer_rows:
        return wrong or 5
    return (
        next(filter(None, (_op(f, o) for o in f.ops)), 0)
        or next(filter(None, (_buffers(f, i) for i in range(h.n_ops))), 0)
        or (11 if h.arena > round_up(_end(f), 16) else 0)
        or (0 if _is_in_order(f) else 12)
        or (0 if _is_described(f) else 14)
    )


def _end(f: File) -> int:
    """The float of the arena behind all that lies in it."""
    return max(f.head.workspace + f.head.workspace_floats, *(m.at + extent(m) for m in f.maps))


def extent(m: MapRecord) -> int:
    """Floats of the arena that a map takes."""
    return round_up(m.h * m.w * m.c, 16) + 16 if m.interleaved else round_up(m.c, 4) * m.pitch


def _map(h: Head, m: MapRecord) -> int:
    pixels = (m.buffer_rows or m.h) * m.w
    if not all(1 <= side <= MAX_SIDE for side in (m.c, m.h, m.w)) or m.interleaved > 1:
        return 5
    if m.buffer_rows and (m.buffer_rows > m.h or m.interleaved):
        return 5
    if m.h * m.w > 1 << 28 or m.at % 16 or m.pitch % 16 or (not m.interleaved and m.pitch < round_up(pixels, 16) + 16):
        return 5
    end = m.at + extent(m)
    return 0 if end <= h.arena and (end <= h.workspace or m.at >= h.workspace + h.workspace_floats) else 10


def _op(f: File, o: OpRecord) -> int:
    n = f.head.n_maps
    if o.x >= n or o.y >= n or o.x == o.y or (o.add != NONE and o.add >= n):
        return 6
    x, y = f.maps[o.x], f.maps[o.y]
    a = y if o.add == NONE else f.maps[o.add]
    if y.interleaved or a.interleaved or (a.c, a.h, a.w, a.pitch) != (y.c, y.h, y.w, y.pitch):
        return 7
    if x.interleaved and o.kind != KINDS["conv"]:
        return 7
    kind = next((name for name, number in KINDS.items() if number == o.kind), "")
    if o.add != NONE and kind not in PRODUCTS | {"add"}:
        return 6
    if not o.lo <= o.hi or (kind == "separable" and not o.inner_lo <= o.inner_hi):
        return 6
    return _CHECKS[kind](f, o, x, y) if kind else 6


def _conv(f: File, o: OpRecord, x: MapRecord, y: MapRecord) -> int:
    if not 1 <= o.k <= 64:
        return 6
    columns = x.c * o.k * o.k
    return _window(f.head, o, x, y, columns) or _product(f, o, x, y, columns)


def _pointwise(f: File, o: OpRecord, x: MapRecord, y: MapRecord) -> int:
    return 7 if (x.h, x.w) != (y.h, y.w) else _product(f, o, x, y, x.c)


def _depthwise(f: File, o: OpRecord, x: MapRecord, y: MapRecord) -> int:
    is_pair = o.kind == KINDS["separable"]
    if not _is_inside(f.head, o.taps, 4 * x.c * o.k * o.k) or o.k > 64 or not _is_inside(f.head, o.taps_bias, 4 * x.c):
        return 8
    if not is_pair and x.c != y.c:
        return 7
    return _window(f.head, o, x, y, x.c if is_pair else 0) or (_product(f, o, x, y, x.c) if is_pair else 0)


def _mean(f: File, o: OpRecord, x: MapRecord, y: MapRecord) -> int:
    return 0 if (y.c, y.h, y.w) == (1, 1, x.c) else 7


def _linear(f: File, o: OpRecord, x: MapRecord, y: MapRecord) -> int:
    if (x.c, x.h, y.c, y.h) != (1, 1, 1, 1):
        return 7
    return 6 if o.k_tile < x.w else _blocks(f, o, round_up(y.w, 16) // 16, 16, x.w)  # one k-tile


def _add(f: File, o: OpRecord, x: MapRecord, y: MapRecord) -> int:
    return 0 if o.add != NONE and (x.c, x.h, x.w, x.pitch) == (y.c, y.h, y.w, y.pitch) else 7


_CHECKS = {
    "conv": _conv,
    "pointwise": _pointwise,
    "depthwise": _depthwise,
    "separable": _depthwise,
    "mean": _mean,
    "linear": _linear,
    "add": _add,
}


def _window(h: Head, o: OpRecord, x: MapRecord, y: MapRecord, rows: int) -> int:
    """Whether a window leads from x to y's height and width, and a row tile of it fits the workspace."""
    if not (1 <= o.k <= 64 and 1 <= o.stride <= 64 and o.pad < o.k and 1 <= o.tile_rows <= y.h):
        return 6
    tall, wide = x.h + 2 * o.pad, x.w + 2 * o.pad
    if tall < o.k or wide < o.k or ((tall - o.k) // o.stride + 1, (wide - o.k) // o.stride + 1) != (y.h, y.w):
        return 7
    if rows and (o.pitch % 16 or o.pitch < round_up(o.tile_rows * y.w, 16) + 16):
        return 6
    is_depthwise = o.kind != KINDS["conv"]
    if is_depthwise and (o.k not in (3, 5) or o.stride > 2):
        return 6
    return 10 if rows * o.pitch + _depthwise_floats(o, x) > h.workspace_floats else 0


def _depthwise_floats(o: OpRecord, x: MapRecord) -> int:
    """Floats that a depthwise operator, or the depthwise half of a separable pair, works in."""
    if o.kind not in (KINDS["depthwise"], KINDS["separable"]):
        return 0
    return kernels.depthwise_workspace(x.w, o.k, o.stride, o.tile_rows)


def _product(f: File, o: OpRecord, x: MapRecord, y: MapRecord, columns: int) -> int:
    """The blocks that multiply `columns` of what is laid out of x; in int8, whether x as uint8 fits the workspace."""
    if o.flags & U8S8:
        rows, pitch = (0, x.pitch) if o.kind == KINDS["pointwise"] else (columns, o.pitch)
        if rows * o.pitch + _depthwise_floats(o, x) + -(-columns // 4) * pitch > f.head.workspace_floats:
            return 10
    return _blocks(f, o, round_up(y.c, 4) // 4, 4, columns)


def _blocks(f: File, o: OpRecord, groups: int, rows: int, columns: int) -> int:
    h, is_indexed, is_int8 = f.head, bool(o.flags & INDEXED), bool(o.flags & U8S8)
    if is_int8:
        if rows != 4 or columns > U8S8_MAX_COLUMNS or o.zero > 255 or not 0 < o.inv_scale <= _MAX_FP32:
            return 6
        if not (_is_inside(h, o.scale, 16 * groups) and _is_inside(h, o.sums, 16 * groups)):
            return 8
        columns = -(-columns // 4)  # a block is 4 columns wide
    if not 1 <= o.k_tile <= kernels.MAX_K_TILE or o.flags > (INDEXED | U8S8):
        return 9
    if o.flags == INDEXED and rows == 4 and o.k_tile > kernels.SPMM_MAX_K_TILE:
        return 9
    k_tiles = -(-columns // o.k_tile)
    sections = [(o.count, 2 * k_tiles * groups), (o.bias, 4 * rows * groups), (o.w, 4 * rows * o.blocks)]
    sections += [(o.col, 2 * o.blocks)] if is_indexed else []
    if not all(_is_inside(h, *section) for section in sections):
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
    if o.add != NONE and f.maps[o.add].buffer_rows:
        return 7
    if not x.buffer_rows and not y.buffer_rows:
        return 0
    if o.kind > KINDS["separable"] or not 1 <= o.tile_rows <= y.h:
        return 6
    if o.kind == KINDS["pointwise"] and (o.k, o.stride, o.pad) != (1, 1, 0):
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
    return 7 if x.buffer_rows < min(x.h, (o.tile_rows - 1) * o.stride + max(o.k, o.stride)) else 0


def _is_in_order(f: File) -> bool:
    """Whether every map is written before it is read, and nothing is written over it in between."""
    h, ops = f.head, f.ops
    starts = np.array([f.maps[o.y].at for o in ops], np.int64)
    ends = np.array([f.maps[o.y].at + extent(f.maps[o.y]) for o in ops], np.int64)
    since = {h.input: 0}  # of each map, the first operator behind the one that wrote it last

    def is_fresh(read: int, last: int) -> bool:
        if read not in since:
            return False
        at, end = f.maps[read].at, f.maps[read].at + extent(f.maps[read])
        later = slice(since[read], last + 1)
        return not ((starts[later] < end) & (at < ends[later])).any()

    for i, o in enumerate(ops):
        turn = i  # the operator in whose turn this one runs: the first from here on to write a whole map
        while f.maps[ops[turn].y].buffer_rows:
            turn += 1
        if not all(is_fresh(read, turn) for read in (o.x, o.add) if read != NONE):
            return False
        since[o.y] = i + 1
    return is_fresh(h.output, len(ops))


def _is_described(f: File) -> bool:
    text = f.data[f.head.meta : f.head.meta + f.head.meta_size]
    names = f.description().get("names") if DESCRIPTION.fullmatch(text) else None
    return isinstance(names, list) and len(names) == len(f.ops) and all(isinstance(name, str) for name in names)
