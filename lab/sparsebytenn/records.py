"""The records of a packed file: its constants, its tables, and a file taken apart."""

import json
import struct
from collections import namedtuple
from typing import Any

import numpy as np

MAGIC, VERSION, NONE = b"SBNN", 3, 0xFFFFFFFF
INDEXED, U8S8 = 1, 2  # of an operator's flags
KINDS = {
    "conv": 1, "pointwise": 2, "depthwise": 3, "separable": 4, "mean": 5, "linear": 6, "binary": 7, "unary": 8,
    "pool": 9, "move": 10, "resize": 11, "softmax": 12, "norm": 13, "matmul": 14, "const": 15,
}  # fmt: skip
PRODUCTS = {"conv", "pointwise", "separable"}  # W X, which can take a sum in
ACTS = (
    "", "sigmoid", "silu", "hardsigmoid", "hardswish", "gelu", "gelu_tanh", "tanh", "elu", "mish", "softplus", "exp",
    "sqrt", "prelu",
)  # fmt: skip
FNS = {  # of an operator's kind, its functions: the file has 1 for the first
    "binary": ("add", "sub", "mul", "div", "max", "min", "rsub", "rdiv"),
    "pool": ("max", "mean"),
    "norm": ("pixel", "planes", "rms", "affine"),
}
MAX_SIDE, MAX_OPS, MAX_FLOATS = 1 << 20, 1 << 12, 1 << 30  # of a map, of a file, of an arena
MAX_WINDOW = 1 << 10  # rows or columns of a window, its stride, its dilation, the zeros before it
MAX_ENDS = 256  # inputs, and outputs, of a network
PART = 21  # words of a part of a move
U8S8_MAX_COLUMNS = 1 << 16  # 2^16 * 255 * 128 < 2^31: so many products an int32 can sum
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
    15: "an operator's table leads outside of a feature map",
}

HEADER, MAP, OP = struct.Struct("<4s15I"), struct.Struct("<8I"), struct.Struct("<15I2f2I2fIf3I14I")
Head = namedtuple(
    "Head",
    "magic version size crc n_maps n_ops maps ops arena unused unused_2 ends n_ends meta meta_size zero",
)
MapRecord = namedtuple("MapRecord", "c h w pitch at interleaved buffer_rows zero")
OpRecord = namedtuple(
    "OpRecord",
    "kind x add y k stride pad tile_rows k_tile flags blocks w col count bias lo hi taps taps_bias inner_lo inner_hi "
    "pitch inv_scale zero scale sums k_w stride_w pad_w dilation dilation_w act slopes inner_act fn planes args n_args "
    "block work",
)


class File:
    """A packed file taken apart: its header, its maps and operators, its numbers."""

    def __init__(self, data: bytes) -> None:
        self.data, self.head = data, Head(*HEADER.unpack_from(data))
        h = self.head
        self.maps = [MapRecord(*MAP.unpack_from(data, h.maps + MAP.size * i)) for i in range(h.n_maps)]
        self.ops = [OpRecord(*OP.unpack_from(data, h.ops + OP.size * i)) for i in range(h.n_ops)]

    def array(self, dtype: Any, at: int, *shape: int) -> np.ndarray:
        """Numbers of the file from byte `at` on."""
        return np.frombuffer(self.data, dtype, int(np.prod(shape, dtype=np.int64)), at).reshape(shape)

    def args(self, o: OpRecord) -> np.ndarray:
        """The words of an operator's table: (n_args,) uint32."""
        return self.array(np.uint32, o.args, o.n_args)

    @property
    def inputs(self) -> tuple[int, ...]:
        """The maps that the network takes."""
        return self._ends()[: self.head.n_ends & 0xFFFF]

    @property
    def outputs(self) -> tuple[int, ...]:
        """The maps that it gives."""
        return self._ends()[self.head.n_ends & 0xFFFF :]

    def _ends(self) -> tuple[int, ...]:
        n = self.head.n_ends
        return tuple(self.array(np.uint32, self.head.ends, (n & 0xFFFF) + (n >> 16)).tolist())

    def description(self) -> Any:
        """The JSON text."""
        return json.loads(self.data[self.head.meta : self.head.meta + self.head.meta_size])


def round_up(n: int, to: int) -> int:
    """The least multiple of `to` that is no less than n."""
    return -(-n // to) * to


class Sections:
    """Sections behind the tables, each on a multiple of 64 bytes."""

    def __init__(self, start: int) -> None:
        self.start = self.at = round_up(start, 64)
        self.parts: list[bytes] = []

    def add(self, part: np.ndarray | bytes) -> int:
        """Append a section; returns where it begins."""
        data = part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes()
        at = self.at
        self.parts.append(data.ljust(round_up(len(data), 64), b"\0"))
        self.at += len(self.parts[-1])
        return at

    def add_fp32(self, numbers: np.ndarray | None) -> int:
        """Append float32 numbers, if there are any; returns where they begin, or 0."""
        return 0 if numbers is None else self.add(np.asarray(numbers, np.float32))

    def add_padded(self, numbers: np.ndarray | None, rows: int, dtype: Any = np.float32) -> int:
        """Append a number a row, zeros for rows that are not there; returns where they begin."""
        padded = np.zeros(rows, dtype)
        if numbers is not None:
            padded[: len(numbers)] = numbers
        return self.add(padded)

    def size(self) -> int:
        """Where the file ends."""
        return self.at

    def bytes(self) -> bytes:
        """All of them."""
        return b"".join(self.parts)
