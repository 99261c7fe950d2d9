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

ckernels/engine.c reads the same tables and checks them before it runs anything.
"""

import json
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ..core import kernels
from ..core.kernels import Sparse

MAGIC, VERSION, NONE = b"SBNN", 1, 0xFFFFFFFF
INDEXED, IN_BYTES = 1, 2  # of an operator's form
KINDS = {"conv": 1, "pointwise": 2, "depthwise": 3, "separable": 4, "mean": 5, "linear": 6, "add": 7}
NAMES = {number: name for name, number in KINDS.items()}
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
}
REFUSED, AGAIN = "this is no packed network that can be run", "make it again with outcome.engine()"
_HEADER, _MAP, _OP = struct.Struct("<4s15I"), struct.Struct("<8I"), struct.Struct("<15I2f2I2fIf9I")


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
            return _up(self.pixels * self.c, 16) + 16
        return _up(self.c, 4) * self.pitch


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
        pixels = x.w if self.stride == 1 else (x.w + 1) // 2
        line = self.stride * (_up(max(pixels, 16), 16) + 32)  # depthwise_pitch of ckernels/dispatch.c
        return rows + line * ((self.band - 1) * self.stride + self.k)


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
            end = max(end, self.maps[made].at + _up(self.maps[made].floats, 16))
        room = max((op.room(self.maps[op.x], self.maps[op.y]) for op in self.ops), default=0)
        return end + _up(room, 16), end, room

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
        at = max(at, other.at + _up(other.floats, 16))
    return at


def write(network: Network) -> bytes:
    """The packed file."""
    arena, room, room_floats = network.plan()
    sections = _Sections(_up(64 + 32 * len(network.maps), 64) + 128 * len(network.ops))
    ops = b"".join(_op_bytes(op, network.maps[op.y], sections) for op in network.ops)
    maps = b"".join(_MAP.pack(m.c, m.h, m.w, m.pitch, m.at, m.interleaved, m.part, 0) for m in network.maps)
    meta = json.dumps({"names": [op.name for op in network.ops], **network.meta}, sort_keys=True).encode()
    meta_at = sections.add(meta)
    size, ops_at = sections.size(), _up(64 + len(maps), 64)
    counts = len(network.maps), len(network.ops), 64, ops_at, arena, room, room_floats
    head = [*counts, network.input, network.output, meta_at, len(meta), 0]
    tables = maps.ljust(ops_at - 64, b"\0") + ops
    body = (_HEADER.pack(MAGIC, VERSION, size, 0, *head)[16:] + tables).ljust(
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
    return _OP.pack(
        KINDS[op.kind], op.x, add, op.y, op.k, op.stride, op.pad, op.band, chunk, form, blocks, w, col, count, bias,
        *op.clamp, taps, taps_bias, *op.inner, pitch, *in_bytes, *[0] * 6,
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
        self.start = self.at = _up(start, 64)
        self.parts: list[bytes] = []

    def add(self, part: np.ndarray | bytes) -> int:
        """Append a section; returns where it begins."""
        data = part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes()
        at = self.at
        self.parts.append(data.ljust(_up(len(data), 64), b"\0"))
        self.at += len(self.parts[-1])
        return at

    def size(self) -> int:
        return self.at

    def bytes(self) -> bytes:
        return b"".join(self.parts)


def check(data: bytes) -> None:
    """Raise a one-line ValueError unless `data` is a packed network that the engine may run."""
    wrong = kernels.lib.engine_check(kernels.ffi.from_buffer("uint8_t[]", data), len(data))
    if wrong:
        raise ValueError(f"{REFUSED}: {WRONG[wrong]}; {AGAIN}")


def _header(data: bytes) -> tuple:
    """The header's fields, if its checksum fits: what the C engine checks first, for the numpy twin too."""
    head = _HEADER.unpack_from(data) if len(data) >= _HEADER.size else ()
    faults = {
        1: not head or head[2] != len(data),
        2: head and head[0] != MAGIC,
        3: head and head[1] != VERSION,
        4: head and zlib.crc32(data[16:]) != head[3],
    }
    for number in (2, 3, 1, 4):
        if faults[number]:
            raise ValueError(f"{REFUSED}: {WRONG[number]}; {AGAIN}")
    return head


def read(data: bytes) -> Network:
    """The network of a packed file that `check` has passed."""
    head = _header(data)
    _, _, _, _, n_maps, n_ops, maps_at, ops_at, _, _, _, first, last, meta_at, meta_size, _ = head
    maps = [_map(_MAP.unpack_from(data, maps_at + 32 * i)) for i in range(n_maps)]
    meta = _meta(data[meta_at : meta_at + meta_size], n_ops)
    names = meta.pop("names")
    ops = [_op(data, _OP.unpack_from(data, ops_at + 128 * i), names[i], maps) for i in range(n_ops)]
    return Network(maps, ops, first, last, meta)


def _meta(text: bytes, n_ops: int) -> dict[str, Any]:
    try:
        meta = json.loads(text)
        if len(meta["names"]) == n_ops:
            return meta
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{REFUSED}: its description is malformed; {AGAIN}")


def _map(fields: tuple) -> Map:
    c, h, w, _, at, interleaved, part, _ = fields
    return Map(c, h, w, bool(interleaved), at, part)


def _op(data: bytes, fields: tuple, name: str, maps: list[Map]) -> Op:
    kind, x, add, y, k, stride, pad, band, chunk, form, blocks, w, col, count, bias, lo, hi, taps, taps_bias = fields[
        :19
    ]
    kind = NAMES[kind]
    op = Op(kind, name, x, y, None if add == NONE else add, k, stride, pad, band, clamp=(lo, hi), inner=fields[19:21])
    channels = maps[x].c
    if chunk:
        block = kernels.LONG_BLOCK if kind == "linear" else kernels.BLOCK
        columns = {"conv": channels * k * k, "linear": maps[x].w}.get(kind, channels)
        rows = maps[y].w if kind == "linear" else maps[y].c
        across = -(-columns // 4) if form & IN_BYTES else columns
        runs, groups = -(-across // chunk), -(-rows // block)
        index = _array(data, np.uint16, col, blocks) if form & INDEXED else None
        counts = _array(data, np.uint16, count, runs * groups)
        if form & IN_BYTES:
            gain, zero, scale, _ = fields[22:26]
            op.bytes = Bytes(gain, zero, _array(data, np.float32, scale, rows))
            whole = _array(data, np.int8, w, 16 * blocks).reshape(blocks, 4, 4)
            op.weights = SparseBytes(rows, columns, chunk, counts, index, whole)
        else:
            op.weights = Sparse(rows, columns, chunk, counts, index, _array(data, np.float32, w, blocks * block, block))
        op.bias = _array(data, np.float32, bias, rows)
    if kind in ("depthwise", "separable"):
        op.taps = _array(data, np.float32, taps, channels * k * k, k * k)
        op.taps_bias = _array(data, np.float32, taps_bias, channels)
    return op


def _array(data: bytes, kind: Any, at: int, count: int, columns: int = 0) -> np.ndarray:
    flat = np.frombuffer(data, kind, count, at)
    return flat.reshape(-1, columns) if columns else flat


def _up(n: int, to: int) -> int:
    return -(-n // to) * to
