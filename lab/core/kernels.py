"""The C kernels as functions on arrays; numpy does the same work where they are not built, and says so.

`LAB_KERNELS=numpy` chooses the numpy twin, `LAB_KERNELS=c` demands the compiled kernels; left out, the compiled ones
are used where they are there. Every timing names `backend()`.
"""

import hashlib
import os
import warnings
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np

try:
    from ._kernels import ffi, lib
except ImportError:
    lib = None

BLOCK = 4  # rows of a block
BACKENDS = ("c", "numpy")
REBUILD = "python ckernels/build.py"
GET = "install a C compiler (apt-get install gcc, xcode-select --install), then install the lab again"
_SOURCES = Path(__file__).parents[2] / "ckernels"  # there in a checkout only
_WRONG = {
    1: "a size is negative",
    2: "row_start must start at 0, never fall, and end at the number of blocks",
    3: "a column of col lies outside the matrix",
}


@dataclass(frozen=True, eq=False)
class Sparse:
    """A matrix (rows, columns) kept as its nonzero blocks of 4 rows x 1 column; `pack` makes one.

    row_start (block rows + 1,) int32: where each block row begins in col and blocks; col (nnz,) int32: each block's
    column; blocks (nnz, 4) float32. Rows beyond a multiple of 4 are zeros in the last block.
    """

    rows: int
    columns: int
    row_start: np.ndarray
    col: np.ndarray
    blocks: np.ndarray

    def __post_init__(self) -> None:
        for name, kind in (("row_start", np.int32), ("col", np.int32), ("blocks", np.float32)):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), kind))
        block_rows, nnz = -(-self.rows // BLOCK), len(self.col)
        if len(self.row_start) != block_rows + 1:
            raise ValueError(f"row_start has {len(self.row_start)} entries: {self.rows} rows need {block_rows + 1}")
        if self.blocks.shape != (nnz, BLOCK):
            raise ValueError(f"blocks has shape {self.blocks.shape}: {nnz} columns in col need {(nnz, BLOCK)}")


def pack(w: np.ndarray) -> Sparse:
    """The nonzero 4x1 blocks of w (rows, columns), in fp32; a block is kept if any of its four weights is not 0."""
    w = np.asarray(w, np.float32)
    if w.ndim != 2:
        raise ValueError(f"w has shape {w.shape}: give a matrix (rows, columns)")
    rows, columns = w.shape
    padded = np.pad(w, ((0, -rows % BLOCK), (0, 0)))
    blocks = padded.reshape(len(padded) // BLOCK, BLOCK, columns).transpose(0, 2, 1)  # (block rows, columns, 4)
    keep = (blocks != 0).any(-1)
    row_start = np.concatenate([[0], keep.sum(1).cumsum()])
    return Sparse(rows, columns, row_start, np.nonzero(keep)[1], blocks[keep])


def spmm(w: Sparse, x: np.ndarray) -> np.ndarray:
    """w (rows, columns) times x (columns, n): y (rows, n) in fp32; x (columns,) gives y (rows,).

    Raises ValueError for shapes that don't match and for a `w` whose indices point outside of it.
    """
    x = np.ascontiguousarray(x, np.float32)
    if x.ndim not in (1, 2) or len(x) != w.columns:
        raise ValueError(f"x has shape {x.shape}: a matrix of {w.columns} columns needs ({w.columns}, n)")
    wide = x.reshape(w.columns, -1) if x.size else np.zeros((w.columns, x.shape[1] if x.ndim == 2 else 1), np.float32)
    multiply = {"c": _spmm_c, "numpy": _spmm_numpy}[backend()]
    y = np.empty((BLOCK * (len(w.row_start) - 1), wide.shape[1]), np.float32)
    wrong = multiply(w, wide, y)
    if wrong:
        raise ValueError(f"the sparse matrix is broken: {_WRONG[wrong]}; make it with kernels.pack")
    return y[: w.rows].reshape(w.rows, *x.shape[1:])


def _spmm_c(w: Sparse, x: np.ndarray, y: np.ndarray) -> int:
    sizes = len(w.row_start) - 1, w.columns, x.shape[1], len(w.col)
    pointers = [_pointer(a) for a in (w.row_start, w.col, w.blocks, x, y)]
    return lib.spmm_f32_ref(*sizes, *pointers)


def _pointer(array: np.ndarray):
    return ffi.cast("int32_t *" if array.dtype == np.int32 else "float *", ffi.from_buffer(array))


def _spmm_numpy(w: Sparse, x: np.ndarray, y: np.ndarray) -> int:
    """The twin of spmm_f32_ref: the same sums block row by block row, the same error codes."""
    start = w.row_start
    if start[0] != 0 or start[-1] != len(w.col) or (np.diff(start) < 0).any():
        return 2
    if ((w.col < 0) | (w.col >= w.columns)).any():
        return 3
    for b, (first, last) in enumerate(pairwise(start)):
        y[BLOCK * b : BLOCK * (b + 1)] = w.blocks[first:last].T @ x[w.col[first:last]]  # (4, nnz_b) (nnz_b, n)
    return 0


def backend() -> str:
    """The backend in use: 'c', or 'numpy', which warns once unless `LAB_KERNELS=numpy` asked for it.

    Raises RuntimeError where the compiled kernels come from other sources than those beside them, and where
    `LAB_KERNELS` demands what is not there.
    """
    wish = os.environ.get("LAB_KERNELS", "")
    if wish not in ("", *BACKENDS):
        raise RuntimeError(f"LAB_KERNELS={wish!r} is not allowed: give 'c' or 'numpy', or leave it out")
    if wish == "numpy":
        return "numpy"
    if lib is None:
        if wish == "c":
            raise RuntimeError(f"LAB_KERNELS='c', but the C kernels are not built: {GET}")
        _say_numpy()
        return "numpy"
    _refuse_stale()
    return "c"


@cache
def _say_numpy() -> None:
    text = f"the C kernels are not built, numpy does their work and is slower: {GET}; LAB_KERNELS=numpy silences this"
    warnings.warn(text, RuntimeWarning, stacklevel=4)


@cache
def _refuse_stale() -> None:
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
