"""The C kernels as functions on arrays; numpy does the same work where they are not built, and says so.

`LAB_KERNELS=numpy` chooses numpy, `LAB_KERNELS=c` demands the compiled kernels; left out, the compiled ones
are used where they are there. `LAB_ISA` names the instruction set of the compiled ones, else it is the best that this
machine has. Every timing names `backend()` and `isa_name()`.
"""

import hashlib
import mmap
import os
import sys
import time
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

try:
    from ._kernels import ffi, lib
except ImportError:
    ffi = lib = None

BLOCK = 4  # rows of a block of `spmm`, as it usually is
GEMV_BLOCK = 16  # rows of a block of `gemv`, and of one of `spmm` whose columns are one k-tile
BLOCKS = (1, BLOCK, 8, GEMV_BLOCK)  # rows of a block that `spmm` takes
MAX_K_TILE = 65_535  # the most columns that 16-bit indices reach
SLACK = 16  # floats that a kernel may read or write behind the last pixel of a plane
# What ckernels/kernels.h says too, for where it is not compiled; a test holds both to one value.
SPMM_MAX_K_TILE = 1024  # the most columns of a k-tile that `spmm` finds by an index
MATMUL_K_TILE = 128  # columns of a k-tile of a product of two maps
MAX_CHAIN = 8  # operators that may be chained by maps in rolling row buffers: ENGINE_MAX_CHAIN
ISAS = ("avx512vnni", "avx512", "avx2vnni", "avx2", "neondot", "neon", "ref")
BACKENDS = ("c", "numpy")
REBUILD = "python ckernels/build.py"
GET = (
    "install a C compiler (apt-get install gcc, xcode-select --install), then install the lab again"
    if sys.platform != "win32"
    else "they are written in the vector types of gcc and clang, which MSVC lacks; install the lab under WSL"
)
_SOURCES = Path(__file__).parents[2] / "ckernels"  # there in a checkout only


@dataclass(frozen=True, eq=False)
class Sparse:
    """A matrix (rows, columns) kept as blocks of a few rows x 1 column; `pack` makes one.

    The columns are cut into k-tiles of `k_tile`; blocks come k-tile by k-tile, group of rows by group. count
    (k-tiles * groups,) uint16: how many blocks each has; col (blocks,) uint16: each block's column within its k-tile,
    None where every column is there; blocks (blocks, rows of a block) float32. Rows beyond a multiple of the block's
    are zeros in the last group.
    """

    rows: int
    columns: int
    k_tile: int
    count: np.ndarray
    col: np.ndarray | None
    blocks: np.ndarray

    DTYPE: ClassVar[Any] = np.float32

    def __post_init__(self) -> None:
        if min(self.rows, self.columns) < 0 or not 1 <= self.k_tile <= MAX_K_TILE:
            raise ValueError(f"a matrix of {self.rows} x {self.columns} in k-tiles of {self.k_tile}: make it with pack")
        for name, dtype in (("count", np.uint16), ("col", np.uint16), ("blocks", self.DTYPE)):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else real_array(name, value, dtype))
        self.check()

    def check(self) -> None:
        """Raise a one-line ValueError unless count, col and blocks go together: the kernels follow them unasked."""
        if self.blocks.ndim != (3 if self.DTYPE is np.int8 else 2) or self.blocks.shape[1] < 1:
            raise ValueError(f"blocks has shape {self.blocks.shape}: give (blocks, rows of one); make it with pack")
        n, widths = len(self.blocks), self.widths()
        if self.count.shape != widths.shape:
            raise ValueError(f"count has {self.count.size} entries: {self.rows} x {self.columns} needs {len(widths)}")
        if self.count.sum(dtype=np.int64) != n or (self.col is not None and self.col.shape != (n,)):
            raise ValueError(f"the sparse matrix is broken: count and col do not go with {n} blocks; make it with pack")
        if self.col is not None and self.k_tile > self.max_k_tile:
            raise ValueError(
                f"the sparse matrix is broken: k-tiles of {self.k_tile} columns, at most {self.max_k_tile}; "
                "make it with pack"
            )
        if (self.count != widths).any() if self.col is None else not are_columns(self.col, self.count, widths):
            raise ValueError(
                "the sparse matrix is broken: a column lies outside its k-tile or stands twice; make it with pack"
            )

    @property
    def max_k_tile(self) -> int:
        """The most columns of a k-tile whose blocks have an index."""
        return SPMM_MAX_K_TILE if self.block < GEMV_BLOCK else MAX_K_TILE

    @property
    def block(self) -> int:
        """Rows of a block."""
        return self.blocks.shape[1]

    @property
    def groups(self) -> int:
        """Groups of rows."""
        return -(-self.rows // self.block)

    def widths(self) -> np.ndarray:
        """Columns of the k-tile that each entry of count belongs to: (k-tiles * groups,)."""
        starts = np.arange(0, self.blocks_per_row, self.k_tile)
        return np.repeat(np.minimum(self.k_tile, self.blocks_per_row - starts), self.groups)

    @property
    def blocks_per_row(self) -> int:
        """Blocks of a group of rows that lacks none."""
        return self.columns

    def to_dense(self) -> np.ndarray:
        """The matrix (rows, columns)."""
        k_tiles = np.repeat(np.arange(len(self.count)) // max(self.groups, 1), self.count)  # (blocks,)
        groups = np.repeat(np.arange(len(self.count)) % max(self.groups, 1), self.count)  # (blocks,)
        every = np.concatenate([np.arange(n) for n in self.count]) if len(self.count) else np.zeros(0, int)
        within = every if self.col is None else self.col
        dense = np.zeros((self.groups, self.blocks_per_row, *self.blocks.shape[1:]), self.DTYPE)
        if len(self.blocks):
            dense[groups, k_tiles * self.k_tile + within] = self.blocks
        wide = dense if dense.ndim == 4 else dense[..., None]  # (groups, blocks, rows of a block, its columns)
        rows = wide.transpose(0, 2, 1, 3).reshape(self.groups * self.block, self.blocks_per_row * wide.shape[3])
        return rows[: self.rows, : self.columns]


def are_columns(col: np.ndarray, count: np.ndarray, widths: np.ndarray) -> bool:
    """Whether the columns of each group's blocks rise, and lie within their k-tile's width."""
    first = np.zeros(len(col), bool)  # of a group: its column may be less than that before it
    first[(np.cumsum(count, dtype=np.int64) - count)[count > 0]] = True
    rises = np.diff(col.astype(np.int64), prepend=-1) > 0
    return bool((first | rises).all() and (col < np.repeat(widths, count)).all())


def real_array(name: str, value: Any, dtype: Any = np.float32) -> np.ndarray:
    """A contiguous array of real numbers in a dtype; ValueError for other numbers, and for integers it cannot hold."""
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} holds {array.dtype} values: give real numbers")
    cast = np.asarray(array, dtype, order="C")
    if np.dtype(dtype).kind != "f" and (cast != array).any():
        raise ValueError(f"{name} holds numbers that {np.dtype(dtype)} cannot: make it with pack")
    return cast


def pack(w: np.ndarray, *, block: int = BLOCK, k_tile: int = MAX_K_TILE, dense: bool = False) -> Sparse:
    """The nonzero blocks of w (rows, columns) in fp32, `block` rows x 1 column each, or all of them.

    A block is kept if any of its weights is not 0. Columns are cut into k-tiles of `k_tile`, at most 65,535, and 1,024
    where blocks of fewer than 16 rows have an index.
    """
    w = real_array("w", w)
    if w.ndim != 2:
        raise ValueError(f"w has shape {w.shape}: give a matrix (rows, columns)")
    if not 1 <= k_tile <= MAX_K_TILE:
        raise ValueError(f"k_tile={k_tile}: give 1 to {MAX_K_TILE} columns")
    rows, columns = w.shape
    if block < GEMV_BLOCK and not dense:
        k_tile = min(k_tile, SPMM_MAX_K_TILE, max(columns, 1))  # the kernel makes a table as long as a k-tile
    padded = np.pad(w, ((0, -rows % block), (0, 0)))
    groups = len(padded) // block
    blocks = padded.reshape(groups, block, columns).transpose(0, 2, 1)  # (groups, columns, block)
    count, col, kept = [], [], []
    for start in range(0, columns, k_tile):
        tile = blocks[:, start : start + k_tile]  # (groups, columns of the k-tile, block)
        keep = np.ones(tile.shape[:2], bool) if dense else (tile != 0).any(-1)
        count.append(keep.sum(1))
        col.append(np.nonzero(keep)[1])
        kept.append(tile[keep])
    none = np.zeros((0, block), np.float32)
    index = None if dense else np.concatenate([*col, []])
    return Sparse(rows, columns, k_tile, np.concatenate([*count, []]), index, np.concatenate([*kept, none]))


def pitch_for(pixels: int) -> int:
    """Floats from one plane to the next: whole vectors, room behind them, an odd number of cache lines.

    Planes a power of two apart would all fall into the same few sets of the first-level cache.
    """
    lines = -(-(pixels + SLACK) // SLACK)
    return SLACK * (lines + 1 - lines % 2)


def depthwise_workspace(w: int, k: int, stride: int, rows: int) -> int:
    """Floats that a depthwise convolution of `rows` output rows works in: (input rows) x (padded row of a plane).

    depthwise_workspace of ckernels/dispatch.c, for where it is not compiled; a test holds both to one value.
    """
    pixels = w if stride == 1 else (w + 1) // 2
    line = stride * (-(-max(pixels, 16) // 16) * 16 + 32)
    return line * ((rows - 1) * stride + k)


def line_workspace(w: int, out_w: int) -> int:
    """Floats that a pool or a resize works in: a row of x between zeros, and a number for each column of the output.

    line_workspace of ckernels/dispatch.c, for where it is not compiled; a test holds both to one value.
    """
    return -(-w // 16) * 16 + 96 + -(-out_w // 16) * 16 + 16


def matmul_workspace(m: int, k: int, n: int) -> int:
    """Floats that a product of (m, k) and (k, n) works in: a's rows as blocks, their counts and biases, 4 rows of y.

    matmul_workspace of ckernels/dispatch.c, for where it is not compiled; a test holds both to one value.
    """
    groups, k_tiles = -(-m // BLOCK), -(-k // MATMUL_K_TILE)
    return BLOCK * groups * (k + 1) + BLOCK * (-(-n // 16) * 16 + 16) + groups * k_tiles


def planes(x: np.ndarray, channels: int = 0) -> np.ndarray:
    """x (C, n) as planes with room behind each, at least `channels` of them: float32 (C, pitch), zeros added."""
    wide = aligned((max(len(x), channels), pitch_for(x.shape[1])))
    wide[: len(x), : x.shape[1]] = x
    return wide


def aligned(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """Zeros on a page border, in large pages where the system has them: for what kernels walk through."""
    size = max(1, int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize)
    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:  # a kernel without them
            pass
    return np.frombuffer(memory, dtype, count=int(np.prod(shape, dtype=np.int64))).reshape(shape)


def spmm(w: Sparse, x: np.ndarray, *, bias: Any = 0.0, add: np.ndarray | None = None, clamp: Any = None) -> np.ndarray:
    """w (rows, columns) times x (columns, n): y (rows, n) in fp32; x (columns,) gives y (rows,).

    `bias` (rows,), or one number, and `add`, of y's shape, are added; `clamp` (low, high) bounds the result; a NaN
    stays a NaN. Raises ValueError for shapes that don't match, and for what is no real number.
    """
    if not isinstance(w, Sparse) or w.DTYPE is not np.float32 or w.block not in BLOCKS:
        raise ValueError(
            f"w is {_called(w)}: spmm takes a matrix in blocks of {', '.join(map(str, BLOCKS))} rows, "
            "make it with kernels.pack"
        )
    w.check()  # its arrays may have been written to since it was made
    if (w.block == 1 and w.col is None) or (w.block == GEMV_BLOCK and w.k_tile < w.columns):
        raise ValueError(f"w is {_called(w)}: blocks of 1 row need an index, those of 16 one k-tile of all columns")
    x = real_array("x", x)
    if x.ndim not in (1, 2) or len(x) != w.columns:
        raise ValueError(f"x has shape {x.shape}: a matrix of {w.columns} columns needs ({w.columns}, n)")
    shape = (w.rows, *x.shape[1:])
    bias, more = real_array("bias", bias), None if add is None else real_array("add", add)
    if bias.shape not in ((), (w.rows,)):
        raise ValueError(f"bias has shape {bias.shape}: give one number, or ({w.rows},)")
    if more is not None and more.shape != shape:
        raise ValueError(f"add has shape {more.shape}: the product has {shape}")
    low, high = (-np.inf, np.inf) if clamp is None else (float(end) for end in clamp)
    if not low <= high:
        raise ValueError(f"clamp={clamp!r}: give (low, high), the lower one first")
    if 0 in shape:
        return np.zeros(shape, np.float32)
    padded = np.zeros(w.groups * w.block, np.float32)
    padded[: w.rows] = bias
    n = 1 if x.ndim == 1 else x.shape[1]
    multiply = {"c": _spmm_c, "numpy": _spmm_numpy}[backend()]
    y = multiply(w, x.reshape(w.columns, n), padded, None if more is None else more.reshape(w.rows, n), low, high)
    return y[: w.rows].reshape(shape)


def _called(w: Any) -> str:
    return f"in blocks of {' x '.join(map(str, w.blocks.shape[1:]))}" if isinstance(w, Sparse) else type(w).__name__


def _spmm_c(w: Sparse, x: np.ndarray, bias: np.ndarray, add: np.ndarray | None, low: float, high: float) -> np.ndarray:
    """The kernel of the present instruction set on planes of its own."""
    n, rows = x.shape[1], w.groups * w.block
    source, y = planes(x), planes(np.zeros((0, n), np.float32), rows)
    more = None if add is None else planes(add, rows)
    call = ffi.new("spmm_f32 *")
    call.block, call.groups, call.n = w.block, w.groups, n
    call.k_tiles, call.k_tile = -(-w.columns // w.k_tile), w.k_tile
    call.count, call.w, call.bias = pointer(w.count), pointer(w.blocks), pointer(bias)
    call.col = ffi.NULL if w.col is None else pointer(w.col)
    call.x, call.x_pitch, call.y, call.y_pitch = pointer(source), source.shape[1], pointer(y), y.shape[1]
    call.add, call.add_pitch = (ffi.NULL, 0) if more is None else (pointer(more), more.shape[1])
    call.lo, call.hi = low, high
    if not w.columns:  # no k-tile at all: the kernel would write nothing
        y[:, :n] = bias[:, None] + (0 if more is None else more[:, :n])
        return y[:, :n].clip(low, high)
    isa().spmm(call)
    return y[:, :n]


def _spmm_numpy(
    w: Sparse, x: np.ndarray, bias: np.ndarray, add: np.ndarray | None, low: float, high: float
) -> np.ndarray:
    """What spmm_f32 computes."""
    y = w.to_dense() @ x + bias[: w.rows, None]
    return (y if add is None else y + add).clip(low, high)


def pointer(array: np.ndarray) -> Any:
    """An array as C's functions take it; it lives as long as this does. In a struct's field it must be held besides."""
    c_type = "float" if array.dtype == np.float32 else f"{array.dtype}_t"  # uint8_t, int32_t, ...
    return ffi.from_buffer(f"{c_type}[]", array, require_writable=False)


def isa(name: str | None = None) -> Any:
    """The kernels of an instruction set, in C's struct `isa`: the named one, that of `LAB_ISA`, or the best here.

    Raises RuntimeError for one that this machine lacks.
    """
    name = os.environ.get("LAB_ISA", "") if name is None else name
    struct = _isa_named(name)
    if struct == ffi.NULL:
        raise RuntimeError(f"LAB_ISA={name!r} is not to be had here: this machine has {', '.join(isas())}")
    return struct


@cache
def _isa_named(name: str) -> Any:
    """C's struct, looked up once: under a hypervisor each look at the processor's abilities costs microseconds."""
    return lib.isa_named(name.encode())


def isas() -> list[str]:
    """The instruction sets that this machine can run, best first; none without the compiled kernels."""
    return [name for name in ISAS if lib is not None and _isa_named(name) != ffi.NULL]


def peak(seconds: float = 0.05) -> float:
    """10^9 multiply-adds a second of the present instruction set on registers alone, one thread: the best of 5."""
    kernel, rounds, best = isa(), 100_000, 0.0
    for _ in range(5):
        start = time.thread_time()
        kernel.peak(rounds)
        taken = time.thread_time() - start
        best = max(best, 16 * kernel.lanes * rounds / taken / 1e9)
        rounds = max(1, int(rounds * seconds / taken))
    return best


def isa_name() -> str:
    """The instruction set in use, or 'numpy'."""
    return ffi.string(isa().name).decode() if backend() == "c" else "numpy"


def backend() -> str:
    """The backend in use: 'c', or 'numpy', which warns once unless `LAB_KERNELS=numpy` asked for it.

    Raises RuntimeError where the compiled kernels come from other sources than those beside them, and where
    `LAB_KERNELS` demands what is not there.
    """
    choice = os.environ.get("LAB_KERNELS", "")
    if choice not in ("", *BACKENDS):
        raise RuntimeError(f"LAB_KERNELS={choice!r} is not allowed: give 'c' or 'numpy', or leave it out")
    if choice == "numpy":
        return "numpy"
    if lib is None:
        if choice == "c":
            raise RuntimeError(f"LAB_KERNELS='c', but the C kernels are not built: {GET}")
        _warn_numpy()
        return "numpy"
    _check_build()
    return "c"


@cache
def _warn_numpy() -> None:
    text = f"the C kernels are not built, numpy does their work and is slower: {GET}; LAB_KERNELS=numpy silences this"
    warnings.warn(text, RuntimeWarning, stacklevel=4)


@cache
def _check_build() -> None:
    built, now = built_from(), sources_now()
    if now and built != now:
        raise RuntimeError(
            f"the C kernels were built from other sources ({built[:8]}, now {now[:8]}): rebuild them with `{REBUILD}`"
        )


def built_from() -> str:
    """The SHA-256 of the C sources that the compiled kernels were made from; empty where none are built."""
    return ffi.string(lib.source_hash()).decode() if lib else ""


def sources_now() -> str:
    """The SHA-256 of the C sources beside the package, taken as ckernels/build.py does; empty outside a checkout."""
    digest = hashlib.sha256()
    files = sorted([*_SOURCES.glob("*.c"), *_SOURCES.glob("*.h")], key=lambda path: path.name)
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest() if files else ""
