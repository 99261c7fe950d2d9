"""The packed file that the engine runs: one header, tables of feature maps and operators, then the numbers.

Little-endian; every section begins on a multiple of 64 bytes, and all positions are bytes from the start of the file.

    header      16 x uint32: 'SBNN', version, size, CRC-32 of all behind these four, maps, operators, where their tables
                begin, arena (floats), 0, 0, where the numbers of the input maps and behind them the output maps begin,
                inputs + 65,536 x outputs, where the JSON text begins, its size, 0
    feature map 8 x uint32: channels, height, width, pitch (see kernels.pitch_for), place in the arena,
                1 if its channels are interleaved (an image as browsers hold it), rows of its rolling row buffer
                (0: all are kept), 0
    operator    40 x uint32, floats as their bits: the fields of `records.OpRecord` in order
    weights     count uint16 (k-tiles of columns, groups of rows), col uint16 (blocks,), blocks float32
                (blocks, 1, 4, 8 or 16), bias float32; see `core.kernels.Sparse`. In int8: blocks int8 (blocks, 4, 4),
                and for each row its scale float32 and the sum of its weights int32; see `SparseInt8`
    table       what else an operator's kind asks for, words as `tables` lays them out
    JSON text   {"names": one an operator, "answer": the shape of the network's output, "classes": how many}

`proof` and ckernels/check.c read the same tables, and check them before anything runs.
"""

import json
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ..core import kernels
from ..core.kernels import Sparse
from . import planning, proof, records, tables
from .planning import Region
from .records import (
    ACTS,
    FNS,
    INDEXED,
    KINDS,
    MAGIC,
    NONE,
    PRODUCTS,
    U8S8,
    VERSION,
    WRONG,
    File,
    OpRecord,
    Sections,
    fn_number,
    round_up,
)
from .tables import Matmul, Strided, Table

NAMES = {number: name for name, number in KINDS.items()}
REFUSED, AGAIN = "this is not a packed network that can be run", "make it again with outcome.engine()"


@dataclass
class Map:
    """A feature map of `c` planes of h x w pixels; `at` is its place in the arena, once planned.

    With `buffer_rows` it is a rolling row buffer, which holds no more than that many of its rows at a time: its only
    reader asks for them as it goes.
    """

    c: int
    h: int
    w: int
    interleaved: bool = False
    at: int = 0
    buffer_rows: int = 0

    @property
    def pixels(self) -> int:
        return self.h * self.w

    @property
    def shape(self) -> tuple[int, int, int]:
        """As an array holds it: (h, w, c) with interleaved channels, else (c, h, w)."""
        return (self.h, self.w, self.c) if self.interleaved else (self.c, self.h, self.w)

    @property
    def pitch(self) -> int:
        """Floats from plane to plane."""
        return kernels.pitch_for((self.buffer_rows or self.h) * self.w)

    @property
    def floats(self) -> int:
        """Floats of the arena that it takes; planes up to a multiple of 4, since blocks have 4 rows."""
        if self.interleaved:
            return round_up(self.pixels * self.c, 16) + 16
        return round_up(self.c, 4) * self.pitch


@dataclass(frozen=True, eq=False)
class SparseInt8(Sparse):
    """A matrix of int8 as blocks of 4 rows x 4 columns: blocks (blocks, 4, 4); k_tile, count and col are in fours.

    Columns beyond a multiple of four are zeros in a row's last block.
    """

    DTYPE: ClassVar[Any] = np.int8

    @property
    def blocks_per_row(self) -> int:
        return -(-self.columns // 4)

    @property
    def max_k_tile(self) -> int:
        return kernels.MAX_K_TILE


@dataclass(frozen=True, eq=False)
class Int8Params:
    """How a product is done in int8: X as uint8 x * inv_scale + zero, rounded; integer sums times scale (rows,)."""

    inv_scale: float
    zero: int
    scale: np.ndarray


@dataclass
class Op:
    """One operator: y = act(clamp(what it computes)); the maps it reads and writes (by number), its window, weights.

    `k`, `stride`, `pad`, `dilation`: of rows and of columns; what a window meets outside of x are zeros, `pad` of them
    above and to the left, below and to the right as many as y asks for. `tile_rows`: rows of the output that are made
    at a time, over a workspace of `pitch` floats a row of X. `taps` (C, k * k) and `taps_bias` are the depthwise half's
    of a separable pair, `inner` and `inner_act` what stands between its halves. With `int8` the product is done in int8
    and its weights are `SparseInt8`. `act` is one of records.ACTS, `slopes` (y.c,) are a prelu's; `fn` is one of
    records.FNS, `planes` those of a group of a softmax or a norm, `table` what else the kind asks for; at `work`
    its workspace begins in the arena.
    """

    kind: str
    name: str
    x: int
    y: int
    add: int | None = None
    k: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    tile_rows: int = 1
    weights: Sparse | None = None
    bias: np.ndarray | None = None
    clamp: tuple[float, float] = (-np.inf, np.inf)
    taps: np.ndarray | None = None
    taps_bias: np.ndarray | None = None
    int8: Int8Params | None = None
    inner: tuple[float, float] = (-np.inf, np.inf)
    act: str = ""
    slopes: np.ndarray | None = None
    inner_act: str = ""
    fn: str = ""
    planes: int = 0
    table: Table | None = None
    work: int = 0

    @property
    def reads(self) -> list[int]:
        """The maps that it reads, x first."""
        if isinstance(self.table, Strided):
            return [part.x for part in self.table.parts]
        if self.kind == "const":
            return []
        return [self.x] if self.add is None else [self.x, self.add]

    def pitch(self, out: Map) -> int:
        """Floats of a row of the workspace, where a row tile is laid out."""
        return kernels.pitch_for(self.tile_rows * out.w)

    def workspace(self, x: Map, out: Map) -> int:
        """Floats of the workspace that the operator needs: rows laid out, X as uint8, a depthwise half's own."""
        if isinstance(self.table, Matmul):
            return kernels.matmul_workspace(self.table.m, self.table.k, self.table.n)
        if self.kind in ("pool", "resize"):
            return kernels.line_workspace(x.w, out.w)
        floats = {"conv": x.c * self.k[0] * self.k[1], "separable": x.c}.get(self.kind, 0) * self.pitch(out)
        if isinstance(self.weights, SparseInt8):
            floats += self.weights.blocks_per_row * (x.pitch if self.kind == "pointwise" else self.pitch(out))
        if self.taps is None:
            return floats
        return floats + kernels.depthwise_workspace(x.w, self.k[0], self.stride[0], self.tile_rows)


@dataclass
class Network:
    """A network, ready to be packed: maps, operators in the order they run, which maps are inputs and outputs."""

    maps: list[Map]
    ops: list[Op]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    meta: dict[str, Any] = field(default_factory=dict)

    def plan(self) -> int:
        """Give every map and every operator's workspace a place in the arena; returns the arena's floats."""
        maps, works = self._regions()
        arena = planning.place([*maps.values(), *works.values()])
        for m, region in maps.items():
            self.maps[m].at = region.at
        for i, op in enumerate(self.ops):
            op.work = works[self._runs_until(i)].at
        return arena

    def needed(self) -> int:
        """Floats of the arena that are held at once where most are."""
        return planning.needed([region for regions in self._regions() for region in regions.values()])

    def _regions(self) -> tuple[dict[int, Region], dict[int, Region]]:
        """What each map holds of the arena, and each turn's workspace: the chain's operators use it one by one."""
        works: dict[int, Region] = {}
        for i, op in enumerate(self.ops):
            turn = self._runs_until(i)
            work = works.setdefault(turn, Region(0, turn, turn))
            work.floats = max(work.floats, op.workspace(self.maps[op.x], self.maps[op.y]))
        return {m: Region(self.maps[m].floats, *life) for m, life in self.lives().items()}, works

    def lives(self) -> dict[int, tuple[int, int]]:
        """Of each map, the operators that write it and read it last; -1 before the first, for an input."""
        last = dict.fromkeys(self.inputs, -1) | dict.fromkeys(self.outputs, len(self.ops))
        first = dict.fromkeys(self.inputs, -1)
        for i, op in enumerate(self.ops):
            first.setdefault(op.y, i)
            last.update({m: max(self._runs_until(i), last.get(m, 0)) for m in (*op.reads, op.y)})
        return {m: (start, last[m]) for m, start in first.items()}

    def _runs_until(self, i: int) -> int:
        """The operator in whose turn operator i runs: its own, or that of the first behind it to write a whole map."""
        while self.maps[self.ops[i].y].buffer_rows and i + 1 < len(self.ops):
            i += 1
        return i


# -- writing -----------------------------------------------------------------------------------------------------------


def write(network: Network) -> bytes:
    """The packed file; ValueError where maps do not fit an arena, the meta is no JSON or a kind lacks a function."""
    arena = network.plan()
    if arena > records.MAX_FLOATS:
        raise ValueError(
            f"the network's maps need {4 * arena / 2**30:.3g} GiB at once, the engine takes 4: give smaller pictures"
        )
    meta = json.dumps({"names": [op.name for op in network.ops], **network.meta}, sort_keys=True).encode()
    if not proof.DESCRIPTION.fullmatch(meta):
        raise ValueError(f"meta={network.meta!r}: give integers, strings and lists of them, under names a to z")
    ops_at = round_up(records.HEADER.size + records.MAP.size * len(network.maps), 64)
    sections = Sections(ops_at + records.OP.size * len(network.ops))
    maps = b"".join(
        records.MAP.pack(m.c, m.h, m.w, m.pitch, m.at, m.interleaved, m.buffer_rows, 0) for m in network.maps
    )
    ops = b"".join(records.OP.pack(*_record(op, network.maps[op.y], sections)) for op in network.ops)
    head = records.Head(
        magic=MAGIC,
        version=VERSION,
        n_maps=len(network.maps),
        n_ops=len(network.ops),
        maps=records.HEADER.size,
        ops=ops_at,
        arena=arena,
        ends=sections.add(np.array([*network.inputs, *network.outputs], np.uint32)),
        n_ends=len(network.inputs) | len(network.outputs) << 16,
        meta=sections.add(meta),
        meta_size=len(meta),
        **dict.fromkeys(("size", "crc", "unused", "unused_2", "zero"), 0),
    )
    front = (maps.ljust(ops_at - records.HEADER.size, b"\0") + ops).ljust(sections.start - records.HEADER.size, b"\0")
    body = records.HEADER.pack(*head)[16:] + front + sections.bytes()
    return MAGIC + struct.pack("<3I", VERSION, sections.size(), zlib.crc32(body)) + body


def _record(op: Op, out: Map, sections: Sections) -> OpRecord:
    """The operator as the file has it, its numbers added to the sections."""
    args = np.zeros(0, np.uint32) if op.table is None else tables.words(op.table)
    return OpRecord(
        kind=KINDS[op.kind],
        x=op.x,
        add=NONE if op.add is None else op.add,
        y=op.y,
        **{name: getattr(op, name)[0] for name in _PAIRS},
        **{f"{name}_w": getattr(op, name)[1] for name in _PAIRS},
        tile_rows=op.tile_rows,
        lo=op.clamp[0],
        hi=op.clamp[1],
        inner_lo=op.inner[0],
        inner_hi=op.inner[1],
        pitch=op.pitch(out) if op.kind in ("conv", "separable") else 0,
        **_weights_fields(op, sections),
        taps=sections.add_fp32(op.taps),
        taps_bias=sections.add_fp32(op.taps_bias),
        **_int8_fields(op, sections),
        act=ACTS.index(op.act),
        slopes=sections.add_fp32(op.slopes),
        inner_act=ACTS.index(op.inner_act),
        fn=fn_number(op.kind, op.fn),
        planes=op.planes,
        args=sections.add(args),
        n_args=len(args),
        work=op.work,
    )


_PAIRS = ("k", "stride", "pad", "dilation")


def _weights_fields(op: Op, sections: Sections) -> dict[str, int]:
    """Where the weights of a product lie, and how they are cut."""
    w = op.weights
    if w is None:
        return dict.fromkeys(("k_tile", "flags", "blocks", "w", "col", "count", "bias", "block"), 0)
    int8, indexed = op.int8 is not None, w.col is not None
    return {
        "k_tile": w.k_tile,
        "flags": INDEXED * indexed | U8S8 * int8,
        "blocks": len(w.blocks),
        "block": w.block,
        "count": sections.add(w.count),
        "col": 0 if w.col is None else sections.add(w.col),
        "w": sections.add(w.blocks),
        "bias": sections.add_padded(op.bias, w.groups * w.block),
    }


def _int8_fields(op: Op, sections: Sections) -> dict[str, float]:
    """How a product in int8 takes X, and where its rows' scales and sums lie."""
    if op.int8 is None or op.weights is None:
        return {"inv_scale": 0.0, "zero": 0, "scale": 0, "sums": 0}
    rows, sums = op.weights.groups * op.weights.block, op.weights.to_dense().sum(1, dtype=np.int32)
    return {
        "inv_scale": op.int8.inv_scale,
        "zero": op.int8.zero,
        "scale": sections.add_padded(op.int8.scale, rows),
        "sums": sections.add_padded(sums, rows, np.int32),
    }


# -- reading -----------------------------------------------------------------------------------------------------------


def check(data: bytes) -> None:
    """Raise a one-line ValueError unless the C engine agrees that it may run `data`."""
    _refuse(data, kernels.lib.engine_check(kernels.ffi.from_buffer("uint8_t[]", data), len(data)))


def _refuse(data: bytes, wrong: int) -> None:
    if wrong:
        arena = 4 * records.Head(*records.HEADER.unpack_from(data)).arena if wrong == 11 else 0
        raise ValueError(f"{REFUSED}: {WRONG[wrong]}{f' ({arena / 2**30:.3g} GiB)' if arena else ''}; {AGAIN}")


def read(data: bytes) -> Network:
    """The network of a packed file; one that is damaged, or would not be safe to run, is a one-line ValueError."""
    _refuse(data, proof.check(data))
    file = File(data)
    meta = file.description()
    names = meta.pop("names")
    maps = [Map(m.c, m.h, m.w, bool(m.interleaved), m.at, m.buffer_rows) for m in file.maps]
    ops = [_op(file, record, name, maps) for record, name in zip(file.ops, names, strict=True)]
    return Network(maps, ops, file.inputs, file.outputs, meta)


def _op(file: File, record: OpRecord, name: str, maps: list[Map]) -> Op:
    shared: dict[str, Any] = {key: getattr(record, key) for key in ("x", "y", "tile_rows", "planes", "work")}
    shared |= {key: (getattr(record, key), getattr(record, f"{key}_w")) for key in _PAIRS}
    op = Op(NAMES[record.kind], name, **shared, clamp=(record.lo, record.hi), inner=(record.inner_lo, record.inner_hi))
    op.add = None if record.add == NONE else record.add
    op.act, op.inner_act = ACTS[record.act], ACTS[record.inner_act]
    y = maps[op.y]
    if op.act == "prelu":
        op.slopes = file.array(np.float32, record.slopes, y.c)
    if op.kind in FNS:
        op.fn = FNS[op.kind][record.fn - 1]
    if op.kind in PRODUCTS | {"linear"}:
        op.weights = _weights(file, record, maps)
        op.bias = file.array(np.float32, record.bias, op.weights.rows)
        if record.flags & U8S8:
            scale = file.array(np.float32, record.scale, op.weights.rows)
            op.int8 = Int8Params(record.inv_scale, record.zero, scale)
    if op.kind in ("depthwise", "separable"):
        channels = maps[op.x].c
        op.taps = file.array(np.float32, record.taps, channels, op.k[0] ** 2)
        op.taps_bias = file.array(np.float32, record.taps_bias, channels)
    if op.kind in tables.KINDS:
        op.table = tables.from_words(op.kind, file.args(record), (y.c, y.h, y.w))
    return op


def _weights(file: File, o: OpRecord, maps: list[Map]) -> Sparse:
    """W (rows, columns) of a product between two maps, or of a linear layer between two vectors."""
    kind, x, y = NAMES[o.kind], maps[o.x], maps[o.y]
    rows, columns = (y.w, x.w) if kind == "linear" else (y.c, x.c)
    columns *= o.k * o.k_w if kind == "conv" else 1
    int8 = bool(o.flags & U8S8)
    blocks_per_row = -(-columns // 4) if int8 else columns
    count = file.array(np.uint16, o.count, -(-blocks_per_row // o.k_tile) * -(-rows // o.block))
    col = file.array(np.uint16, o.col, o.blocks) if o.flags & INDEXED else None
    if int8:
        return SparseInt8(rows, columns, o.k_tile, count, col, file.array(np.int8, o.w, o.blocks, 4, 4))
    return Sparse(rows, columns, o.k_tile, count, col, file.array(np.float32, o.w, o.blocks, o.block))
