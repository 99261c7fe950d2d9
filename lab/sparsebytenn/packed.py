"""The packed file that the engine runs: one header, tables of feature maps and operators, then the numbers.

Little-endian; every section begins on a multiple of 64 bytes, and all positions are bytes from the start of the file.

    header      16 x uint32: 'SBNN', version, size, CRC-32 of all behind these four, maps, operators, where their tables
                begin, arena (floats), room (float in the arena where scratch begins), floats of it, input map, output
                map, where the JSON text begins, its size, 0
    feature map 8 x uint32: channels, height, width, pitch (floats from plane to plane), place in the arena,
                1 if its channels are interleaved (a picture as browsers hold it), the rows kept of it at a time
                (0: all), 0
    operator    32 x uint32, floats as their bits: the fields of `Op` in order
    weights     count uint16 (runs of columns, groups of rows), col uint16 (blocks,), blocks float32 (blocks, 4 or 16),
                bias float32; see `core.kernels.Sparse`. In int8: blocks int8 (blocks, 4, 4), and for each row its
                scale float32 and the sum of its weights int32; see `SparseBytes`
    JSON text   {"names": one an operator, "answer": the shape of what the network answers, "classes": how many}

`proof` and ckernels/engine.c read the same tables, and check them before anything runs.
"""

import json
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ..core import kernels
from ..core.kernels import Sparse
from . import proof
from .proof import IN_BYTES, INDEXED, KINDS, MAGIC, NONE, PRODUCTS, VERSION, WRONG, File, up

NAMES = {number: name for name, number in KINDS.items()}
REFUSED, AGAIN = "this is no packed network that can be run", "make it again with outcome.engine()"


@dataclass
class Map:
    """A feature map of `c` planes of h x w pixels; `at` is its place in the arena, once planned.

    With `part`, no more than that many rows of it are kept at a time: its only reader asks for them as it goes.
    """

    c: int
    h: int
    w: int
    interleaved: bool = False
    at: int = 0
    part: int = 0

    @property
    def pixels(self) -> int:
        return self.h * self.w

    @property
    def pitch(self) -> int:
        """Floats from plane to plane."""
        return kernels.pitch_for((self.part or self.h) * self.w)

    @property
    def floats(self) -> int:
        """Its room in the arena."""
        if self.interleaved:
            return up(self.pixels * self.c, 16) + 16
        return up(self.c, 4) * self.pitch


@dataclass(frozen=True, eq=False)
class SparseBytes(Sparse):
    """A matrix of int8 as blocks of 4 rows x 4 columns: blocks (blocks, 4, 4); chunk, count and col are in fours.

    Columns beyond a multiple of four are zeros in a row's last block.
    """

    KIND: ClassVar[Any] = np.int8

    @property
    def across(self) -> int:
        return -(-self.columns // 4)

    @property
    def longest(self) -> int:
        return kernels.CHUNK


@dataclass(frozen=True, eq=False)
class Bytes:
    """How a product is done in int8: X as bytes x * gain + zero, rounded, 0 to 255; whole sums times scale (rows,)."""

    gain: float
    zero: int
    scale: np.ndarray


@dataclass
class Op:
    """One operator: the maps it reads and writes (by number), its window, its weights, its clamp.

    `band`: rows of the output that are made at a time, over a scratch of `pitch` floats a row of X. `taps` (C, k * k)
    and `taps_bias` are the depthwise half's of a separable pair, `inner` the clamp between its halves. With `bytes` the
    product is done in int8 and its weights are `SparseBytes`.
    """

    kind: str
    name: str
    x: int
    y: int
    add: int | None = None
    k: int = 1
    stride: int = 1
    pad: int = 0
    band: int = 1
    weights: Sparse | None = None
    bias: np.ndarray | None = None
    clamp: tuple[float, float] = (-np.inf, np.inf)
    taps: np.ndarray | None = None
    taps_bias: np.ndarray | None = None
    bytes: Bytes | None = None
    inner: tuple[float, float] = (-np.inf, np.inf)

    def pitch(self, out: Map) -> int:
        """Floats of a row of the band's scratch."""
        return kernels.pitch_for(self.band * out.w)

    def room(self, x: Map, out: Map) -> int:
        """Floats of scratch that the operator needs."""
        rows = {"conv": x.c * self.k**2, "separable": x.c}.get(self.kind, 0) * self.pitch(out)
        if isinstance(self.weights, SparseBytes):
            rows += self.weights.across * (x.pitch if self.kind == "pointwise" else self.pitch(out))
        if self.taps is None:
            return rows
        return rows + proof.depthwise_room(x.w, self.k, self.stride, self.band)


@dataclass
class Network:
    """A whole network, ready to be packed: maps, operators in the order they run, where its picture goes in and out."""

    maps: list[Map]
    ops: list[Op]
    input: int
    output: int
    meta: dict[str, Any] = field(default_factory=dict)

    def plan(self) -> tuple[int, int, int]:
        """Give every map a place in the arena, maps that never live at once the same one; (arena, room, its floats)."""
        last = {self.output: len(self.ops)}
        for i, op in enumerate(self.ops):
            end = self._runs_until(i)
            last.update({m: max(end, last.get(m, 0)) for m in (op.x, op.add, op.y) if m is not None})
        live: list[int] = []
        end = 0
        for i, made in [(-1, self.input), *((i, op.y) for i, op in enumerate(self.ops))]:
            live = sorted((m for m in live if last[m] >= i), key=lambda m: self.maps[m].at)
            self.maps[made].at = _gap([self.maps[m] for m in live], self.maps[made].floats)
            live.append(made)
            end = max(end, self.maps[made].at + up(self.maps[made].floats, 16))
        room = max((op.room(self.maps[op.x], self.maps[op.y]) for op in self.ops), default=0)
        return end + up(room, 16), end, room

    def _runs_until(self, i: int) -> int:
        """The operator in whose turn operator i runs: its own, or that of the first behind it to write a whole map."""
        while self.maps[self.ops[i].y].part and i + 1 < len(self.ops):
            i += 1
        return i


def _gap(live: list[Map], floats: int) -> int:
    """The first place where `floats` fit between live maps, which come in order of place."""
    at = 0
    for other in live:
        if at + floats <= other.at:
            break
        at = max(at, other.at + up(other.floats, 16))
    return at


def write(network: Network) -> bytes:
    """The packed file."""
    arena, room, room_floats = network.plan()
    if arena > proof.MOST_FLOATS:
        raise ValueError(
            f"the network's maps need {4 * arena / 2**30:.3g} GiB at once, the engine takes 4: give smaller pictures"
        )
    sections = _Sections(up(64 + 32 * len(network.maps), 64) + 128 * len(network.ops))
    ops = b"".join(_op_bytes(op, network.maps[op.y], sections) for op in network.ops)
    maps = b"".join(proof.MAP.pack(m.c, m.h, m.w, m.pitch, m.at, m.interleaved, m.part, 0) for m in network.maps)
    meta = json.dumps({"names": [op.name for op in network.ops], **network.meta}, sort_keys=True).encode()
    if not proof.DESCRIPTION.fullmatch(meta):
        raise ValueError(f"meta={network.meta!r}: give integers, strings and lists of them, under names a to z")
    meta_at = sections.add(meta)
    size, ops_at = sections.size(), up(64 + len(maps), 64)
    counts = len(network.maps), len(network.ops), 64, ops_at, arena, room, room_floats
    head = [*counts, network.input, network.output, meta_at, len(meta), 0]
    tables = maps.ljust(ops_at - 64, b"\0") + ops
    body = (proof.HEADER.pack(MAGIC, VERSION, size, 0, *head)[16:] + tables).ljust(
        sections.start - 16, b"\0"
    ) + sections.bytes()
    return MAGIC + struct.pack("<3I", VERSION, size, zlib.crc32(body)) + body


def _op_bytes(op: Op, out: Map, sections: "_Sections") -> bytes:
    s = op.weights
    numbers = [s.count, s.col, s.blocks] if s is not None else [None] * 3
    count, col, w = (0 if a is None else sections.add(a) for a in numbers)
    rows = 0 if s is None else s.groups * s.block
    bias = 0 if s is None else sections.add(_padded(op.bias, rows))
    taps, taps_bias = (0 if a is None else sections.add(np.asarray(a, np.float32)) for a in (op.taps, op.taps_bias))
    chunk, blocks = (0, 0) if s is None else (s.chunk, len(s.blocks))
    form = int(s is not None and s.col is not None)
    in_bytes: tuple = (0.0, 0, 0, 0)
    if isinstance(s, SparseBytes) and op.bytes is not None:
        form |= IN_BYTES
        scale = sections.add(_padded(op.bytes.scale, rows))
        sums = sections.add(_padded(s.to_dense().sum(1, dtype=np.int32), rows, np.int32))
        in_bytes = op.bytes.gain, op.bytes.zero, scale, sums
    add = NONE if op.add is None else op.add
    pitch = op.pitch(out) if op.kind in ("conv", "separable") else 0
    return proof.OP.pack(
        KINDS[op.kind], op.x, add, op.y, op.k, op.stride, op.pad, op.band, chunk, form, blocks, w, col, count, bias,
        *op.clamp, taps, taps_bias, *op.inner, pitch, *in_bytes,
    )  # fmt: skip


def _padded(numbers: np.ndarray | None, rows: int, kind: Any = np.float32) -> np.ndarray:
    """A number a row, zeros for rows that are not there."""
    padded = np.zeros(rows, kind)
    if numbers is not None:
        padded[: len(numbers)] = numbers
    return padded


class _Sections:
    """Sections behind the tables, each on a multiple of 64 bytes."""

    def __init__(self, start: int) -> None:
        self.start = self.at = up(start, 64)
        self.parts: list[bytes] = []

    def add(self, part: np.ndarray | bytes) -> int:
        """Append a section; returns where it begins."""
        data = part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes()
        at = self.at
        self.parts.append(data.ljust(up(len(data), 64), b"\0"))
        self.at += len(self.parts[-1])
        return at

    def size(self) -> int:
        return self.at

    def bytes(self) -> bytes:
        return b"".join(self.parts)


def check(data: bytes) -> None:
    """Raise a one-line ValueError unless the C engine finds that it may run `data`."""
    _refuse(data, kernels.lib.engine_check(kernels.ffi.from_buffer("uint8_t[]", data), len(data)))


def _refuse(data: bytes, wrong: int) -> None:
    if wrong:
        arena = 4 * proof.Head(*proof.HEADER.unpack_from(data)).arena if wrong == 11 else 0
        raise ValueError(f"{REFUSED}: {WRONG[wrong]}{f' ({arena / 2**30:.3g} GiB)' if arena else ''}; {AGAIN}")


def read(data: bytes) -> Network:
    """The network of a packed file; one that is damaged, or would not be safe to run, is a one-line ValueError."""
    _refuse(data, proof.check(data))
    file = File(data)
    meta = file.description()
    names = meta.pop("names")
    maps = [Map(m.c, m.h, m.w, bool(m.interleaved), m.at, m.part) for m in file.maps]
    ops = [_op(file, record, name, maps) for record, name in zip(file.ops, names, strict=True)]
    return Network(maps, ops, file.head.input, file.head.output, meta)


def _op(file: File, o: proof.OpRecord, name: str, maps: list[Map]) -> Op:
    kind, channels = NAMES[o.kind], maps[o.x].c
    op = Op(kind, name, o.x, o.y, None if o.add == NONE else o.add, o.k, o.stride, o.pad, o.band, clamp=(o.lo, o.hi),
            inner=(o.inner_lo, o.inner_hi))  # fmt: skip
    if kind in PRODUCTS | {"linear"}:
        rows, columns = (maps[o.y].w, maps[o.x].w) if kind == "linear" else (maps[o.y].c, channels)
        columns *= o.k**2 if kind == "conv" else 1
        op.weights = _weights(file, o, rows, columns, kernels.LONG_BLOCK if kind == "linear" else kernels.BLOCK)
        op.bias = file.array(np.float32, o.bias, rows)
        if o.form & IN_BYTES:
            op.bytes = Bytes(o.gain, o.zero, file.array(np.float32, o.scale, rows))
    if kind in ("depthwise", "separable"):
        op.taps = file.array(np.float32, o.taps, channels, o.k**2)
        op.taps_bias = file.array(np.float32, o.taps_bias, channels)
    return op


def _weights(file: File, o: proof.OpRecord, rows: int, columns: int, block: int) -> Sparse:
    in_bytes = bool(o.form & IN_BYTES)
    across = -(-columns // 4) if in_bytes else columns
    count = file.array(np.uint16, o.count, -(-across // o.chunk) * -(-rows // block))
    index = file.array(np.uint16, o.col, o.blocks) if o.form & INDEXED else None
    if in_bytes:
        return SparseBytes(rows, columns, o.chunk, count, index, file.array(np.int8, o.w, o.blocks, 4, 4))
    return Sparse(rows, columns, o.chunk, count, index, file.array(np.float32, o.w, o.blocks, block))
