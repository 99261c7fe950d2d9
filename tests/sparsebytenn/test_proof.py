"""What a packed file must prove: C and Python say the same of it, and whatever they let through runs as described."""

import itertools
import json
import struct
import zlib
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lab.core import kernels
from lab.sparsebytenn import compiler, int8, packed, proof, records, reference
from lab.sparsebytenn.packed import Map, Network, Op
from lab.sparsebytenn.runtime import Engine

from .native import every_kind, rolled, small_networks

needs_c = pytest.mark.skipif(kernels.lib is None, reason="the C kernels are not built")
ARENA = 32  # of the header, in bytes
PLACE = 16  # of a map: where it begins in the arena
ADD, FLAGS, COLUMN, SUMS, ARGS = 8, 36, 48, 100, 144  # of an operator
EDGES = [*range(6), 15, 16, 17, 63, 64, 65, 255, 65_535, *(1 << n for n in (16, 20, 28, 30, 31)), (1 << 32) - 16]


@cache
def files() -> list[bytes]:
    """Every operator, channels apart and interleaved, maps whole and in rolling row buffers, in fp32 and in int8."""
    made = []
    with torch.random.fork_rng():
        for name, (net, shape) in small_networks().items():
            network = compiler.compile(net, torch.zeros(1, *shape))
            made += [network, rolled(network), compiler.compile(net, torch.zeros(1, *shape), interleaved=True)]
            if name in ("every", "two convolutions"):
                made.append(int8.quantised(network, torch.randn(2, *shape)))
                made.append(blocked(network, itertools.cycle(kernels.BLOCKS)))
    return [packed.write(network) for network in (*made, every_kind(), rolled(every_kind()))]


def blocked(network: Network, blocks) -> Network:
    """The network with a third of its weights at zero, products in blocks of so many rows where maps have room."""
    return replace(network, ops=[in_blocks(op, network.maps[op.y].c, next(blocks)) for op in network.ops])


def in_blocks(op: Op, rows: int, block: int) -> Op:
    if op.kind not in records.PRODUCTS or -(-rows // block) * block >= rows + 4:
        return op
    w = op.weights.to_dense() * (np.arange(op.weights.columns) % 3 > 0)
    k_tile = kernels.MAX_K_TILE if block == kernels.GEMV_BLOCK else 5
    return replace(op, weights=kernels.pack(w, block=block, k_tile=k_tile))


def signed(data) -> bytes:
    """The file with its size and checksum put right."""
    return bytes(data[:8]) + struct.pack("<2I", len(data), zlib.crc32(data[16:])) + bytes(data[16:])


def put(data: bytes, at: int, value: int) -> bytes:
    return signed(data[:at] + struct.pack("<I", value) + data[at + 4 :])


def op_at(data: bytes, i: int = 0) -> int:
    return records.Head(*records.HEADER.unpack_from(data)).ops + records.OP.size * i


def map_at(data: bytes, i: int) -> int:
    return records.Head(*records.HEADER.unpack_from(data)).maps + records.MAP.size * i


def checked_by_c(data: bytes) -> int:
    return kernels.lib.engine_check(kernels.ffi.from_buffer("uint8_t[]", data), len(data))


def refused(data: bytes, words: str) -> None:
    """Both refuse it for the same reason, in one line that holds these words."""
    assert kernels.lib is None or checked_by_c(data) == proof.check(data)
    with pytest.raises(ValueError, match=words) as caught:
        packed.read(data)
    assert "\n" not in str(caught.value) and "make it again" in str(caught.value)


# -- damage drawn at random --------------------------------------------------------------------------------------------


@st.composite
def damaged(draw):
    """A file of which a few numbers were changed, records swapped, or letters of its description."""
    data = bytearray(draw(st.sampled_from(files())))
    h = records.Head(*records.HEADER.unpack_from(data))
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["header", "map", "op", "op", "op", "table", "table", "swap", "text", "bit"]))
        i, j = (draw(st.integers(0, (h.n_maps if kind == "map" else h.n_ops) - 1)) for _ in range(2))
        if kind == "swap":
            a, b = (slice(h.ops + 160 * n, h.ops + 160 * n + 160) for n in (i, j))
            data[a], data[b] = data[b], data[a]
        elif kind == "text":
            data[h.meta + draw(st.integers(0, h.meta_size - 1))] = draw(st.sampled_from(b'"\\,: {}[]0-u\x80\x1f9'))
        elif kind == "bit":
            data[draw(st.integers(16, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
        elif kind == "table":
            at, words = struct.unpack_from("<2I", data, h.ops + 160 * i + ARGS)
            if words and at % 4 == 0 and at + 4 * words <= len(data):
                change(draw, data, at + 4 * draw(st.integers(0, min(words, 60) - 1)))
        else:
            start, fields = {"header": (16, 12), "map": (h.maps + 32 * i, 7), "op": (h.ops + 160 * i, 40)}[kind]
            change(draw, data, start + 4 * draw(st.integers(0, fields - 1)))
    return signed(data)


def change(draw, data: bytearray, at: int) -> None:
    """Another 32-bit number at a byte, near the old one or one that hurts."""
    old = struct.unpack_from("<I", data, at)[0]
    near = st.sampled_from([old + 1, old - 1, old + 16, old - 16, 2 * old, old // 2])
    value = draw(near | st.sampled_from(EDGES) | st.integers(0, 5))
    struct.pack_into("<I", data, at, value % 2**32)


@pytest.mark.slow
@needs_c
@settings(max_examples=150, deadline=None)
@given(damaged())
def test_python_loads_what_c_accepts_and_nothing_else_and_what_loads_runs_as_numpy_says(data):
    wrong = checked_by_c(data)
    assert proof.check(data) == wrong
    if wrong:
        with pytest.raises(ValueError, match="not a packed network that can be run") as caught:
            Engine(data)
        assert "\n" not in str(caught.value)
        return
    engine = Engine(data)
    g = np.random.default_rng(0)
    arrays = [g.standard_normal(engine.network.maps[i].shape, np.float32) for i in engine.network.inputs]
    for y, exact in zip(engine._run(arrays), reference.outputs(packed.read(data), arrays), strict=True):
        if np.isfinite(exact).all() and np.abs(exact).max() < 1e6:  # a bit of a weight may have made it huge
            step = 0.02 * np.abs(exact).max()  # of a product in int8, whose input was near a half
            np.testing.assert_allclose(y, exact, atol=step)


@needs_c
def test_whole_files_pass_in_c_and_in_python():
    assert [proof.check(data) for data in files()] == [checked_by_c(data) for data in files()] == [0] * len(files())


# -- one thing wrong at a time -----------------------------------------------------------------------------------------


def summed(n_maps=3, ops=((0, 1, 2),), output=2) -> Network:
    """A network of sums alone: each of `ops` adds two maps into a third, all of 4 x 5 x 5."""
    return Network(
        [Map(4, 5, 5) for _ in range(n_maps)],
        [Op("binary", "", a, y, add=b, fn="add") for a, b, y in ops],
        (0,),
        (output,),
    )


@pytest.mark.parametrize(
    "network",
    [
        summed(),  # map 1 is nobody's
        summed(3, ((0, 0, 1),), 2),  # the answer is nobody's
        summed(4, ((0, 2, 1), (1, 0, 2)), 2),  # in the wrong order
    ],
)
def test_a_map_that_nothing_wrote_is_not_read(network):
    refused(packed.write(network), "a map is read that nothing wrote")


def test_a_map_that_was_written_over_is_not_read():
    """0 -> 1 -> 2, and 1 + 2: map 1 must live on, and a file puts 2 where it lies."""
    data = packed.write(summed(4, ((0, 0, 1), (1, 1, 2), (1, 2, 3)), 3))
    packed.read(data)
    place = struct.unpack_from("<I", data, map_at(data, 1) + PLACE)[0]
    refused(put(data, map_at(data, 2) + PLACE, place), "written over")
    in_place = packed.write(summed(3, ((0, 0, 1), (0, 1, 2)), 2))
    refused(put(in_place, op_at(in_place, 1) + ADD, 2), "a map is read that nothing wrote")


def test_row_sums_are_those_of_the_weights():
    data = next(d for d in files() if any(o.flags & records.U8S8 for o in records.File(d).ops))
    i = next(i for i, o in enumerate(records.File(data).ops) if o.flags & records.U8S8)
    sums = struct.unpack_from("<I", data, op_at(data, i) + SUMS)[0]
    refused(put(data, sums, struct.unpack_from("<I", data, sums)[0] + 1), "its row sums are not those of its weights")


def test_sums_of_many_rows_over_many_runs():
    """More groups than are summed at once, and a sum that differs in the last row alone."""
    w = np.random.default_rng(0).integers(-127, 128, (1100, 20)).astype(np.int8)
    op = Op("pointwise", "", 0, 1, weights=int8.pack(w, k_tile=2), bias=np.zeros(1100))
    op.int8 = packed.Int8Params(1.0, 3, np.ones(1100, np.float32))
    data = packed.write(Network([Map(20, 1, 1), Map(1100, 1, 1)], [op], (0,), (1,)))
    packed.read(data)
    last = records.File(data).ops[0].sums + 4 * 1099
    refused(put(data, last, 7_000), "row sums")


def test_a_column_stands_in_a_run_once():
    """Two blocks of one column would be added in C and overwrite each other in numpy."""
    weights = kernels.pack(np.eye(4, 6, dtype=np.float32))
    data = packed.write(Network([Map(6, 1, 1), Map(4, 1, 1)], [Op("pointwise", "", 0, 1, weights=weights)], (0,), (1,)))
    at = struct.unpack_from("<I", data, op_at(data) + COLUMN)[0]
    refused(signed(data[: at + 2] + data[at : at + 2] + data[at + 4 :]), "block counts or columns")
    with pytest.raises(ValueError, match="stands twice"):
        kernels.Sparse(4, 6, 6, weights.count, np.array([0, 0, 2, 3]), weights.blocks)


def test_an_arena_of_16_gib_in_a_file_of_640_bytes():
    data = next(data for data in files() if len(data) == 704)
    refused(put(data, ARENA, 0xFFFFFFF0), r"larger than its maps need, or than 4 GiB \(16 GiB\)")
    refused(put(data, ARENA, struct.unpack_from("<I", data, ARENA)[0] + 32), "larger than its maps need")
    huge = Network([Map(1 << 10, 1 << 12, 1 << 12), Map(1, 1, 1 << 10)], [Op("mean", "", 0, 1)], (0,), (1,))
    with pytest.raises(ValueError, match=r"need 64 GiB at once, the engine takes 4"):
        packed.write(huge)


@pytest.mark.parametrize("kind", ["mean", "depthwise", "linear"])
def test_only_what_adds_takes_a_sum(kind):
    data = next(d for d in files() if any(o.kind == records.KINDS[kind] for o in records.File(d).ops))
    i, o = next((i, o) for i, o in enumerate(records.File(data).ops) if o.kind == records.KINDS[kind])
    refused(put(data, op_at(data, i) + ADD, o.y), "an operator is malformed")


@pytest.mark.parametrize("kind", ["mean", "depthwise", "binary"])
def test_an_operator_without_weights_may_say_what_it_likes_of_them(kind):
    data = next(d for d in files() if any(o.kind == records.KINDS[kind] for o in records.File(d).ops))
    i = next(i for i, o in enumerate(records.File(data).ops) if o.kind == records.KINDS[kind])
    odd = put(put(data, op_at(data, i) + FLAGS - 4, 5), op_at(data, i) + FLAGS, 3)
    x = np.ones(Engine(data).shape, np.float32)
    np.testing.assert_array_equal(reference.run(packed.read(odd), x), reference.run(packed.read(data), x))


# -- tables, word by word ----------------------------------------------------------------------------------------------

OUTSIDE, SHAPES, MALFORMED = "leads outside of a feature map", "shapes do not go together", "an operator is malformed"


def tabled(kind: str, nth: int = 0) -> tuple[bytes, int, Op, records.OpRecord]:
    """A file with every kind of operator, the place of the n-th of one kind in its table, and the operator itself."""
    network = every_kind()
    data = packed.write(network)
    i = [i for i, op in enumerate(network.ops) if op.kind == kind][nth]
    return data, op_at(data, i), network.ops[i], records.File(data).ops[i]


@pytest.mark.parametrize(
    ("kind", "word", "value", "words"),
    [
        ("pool", 0, 2, OUTSIDE), ("pool", 1, 0, OUTSIDE), ("pool", 1, 7, OUTSIDE),  # rows of x: 6
        ("pool", 6, 2, OUTSIDE), ("pool", 17, 12, OUTSIDE), ("pool", 17, 1 << 31, OUTSIDE),  # columns: 11
        ("pool", 18, 0, OUTSIDE), ("pool", 19, 0, OUTSIDE), ("pool", 18, 1 << 21, OUTSIDE),  # steps
        ("resize", 0, 3, OUTSIDE), ("resize", 11, 0xFFFFFFFF, OUTSIDE), ("resize", 18, 6, OUTSIDE),
        ("resize", 39, 6, OUTSIDE),
        ("matmul", 0, 2, SHAPES), ("matmul", 0, 0, SHAPES), ("matmul", 1, 1 << 20, SHAPES), ("matmul", 2, 3, SHAPES),
        ("matmul", 3, 0, SHAPES), ("matmul", 3, 1 << 21, SHAPES), ("matmul", 4, 37, SHAPES),
        ("matmul", 3, 500, OUTSIDE), ("matmul", 5, 8 * 96, OUTSIDE), ("matmul", 5, 0xFFFFFFFF, OUTSIDE),
        ("matmul", 7, 1 << 30, OUTSIDE), ("matmul", 8, 1 << 31, OUTSIDE), ("matmul", 9, 80, OUTSIDE),
        ("matmul", 10, 1 << 31, OUTSIDE), ("matmul", 12, 0xFFFFFFFF, OUTSIDE), ("matmul", 13, 200, OUTSIDE),
        ("move", 0, 2, MALFORMED), ("move", 2, 99, MALFORMED), ("move", 2, 1, OUTSIDE), ("move", 3, 1 << 20, OUTSIDE),
        ("move", 4, 1 << 20, OUTSIDE), ("move", 5, 0, OUTSIDE), ("move", 8, 12, SHAPES), ("move", 5, 1 << 21, OUTSIDE),
        ("move", 10, 5, SHAPES), ("move", 15, 300, OUTSIDE), ("move", 15, 0x80000000, OUTSIDE),
        ("move", 15, 0xFFFFFF00, OUTSIDE), ("move", 21, 1, OUTSIDE), ("move", 22, 0, OUTSIDE), ("move", 22, 5, OUTSIDE),
        ("move", 20, 1 << 30, OUTSIDE),
    ],
)  # fmt: skip
def test_a_number_of_a_table_that_leads_elsewhere_is_refused(kind, word, value, words):
    data, _, _, record = tabled(kind)
    assert struct.unpack_from("<I", data, record.args + 4 * word)[0] != value
    refused(put(data, record.args + 4 * word, value), words)


@pytest.mark.parametrize("kind", ["pool", "move", "resize", "norm", "matmul", "const"])
def test_a_table_of_another_length_or_place_is_refused(kind):
    data, at, _, record = tabled(kind)
    for n in (0, record.n_args - 1, record.n_args + 1, record.n_args + records.PART - 1, 0xFFFFFFFF):
        refused(put(data, at + ARGS + 4, n), f"{SHAPES}|a section lies outside")
    for place in (0, 62, 65, len(data), len(data) - 4, 0xFFFFFFFC):
        refused(put(data, at + ARGS, place), "a section lies outside")


@pytest.mark.parametrize(
    ("kind", "word", "value", "words"),
    [
        ("conv", 4, 0, MALFORMED), ("conv", 4, 1025, MALFORMED), ("conv", 26, 0, MALFORMED), ("conv", 27, 0, MALFORMED),
        ("conv", 28, 1025, MALFORMED), ("conv", 29, 0, MALFORMED), ("conv", 30, 1025, MALFORMED),
        ("conv", 6, 1025, MALFORMED), ("conv", 7, 7, MALFORMED), ("conv", 31, 15, MALFORMED),
        ("conv", 33, 14, MALFORMED), ("conv", 34, 1, MALFORMED), ("conv", 26, 900, "its arena is too small"),
        ("depthwise", 4, 9, MALFORMED), ("depthwise", 26, 5, MALFORMED), ("depthwise", 5, 2, MALFORMED),
        ("depthwise", 6, 7, MALFORMED), ("depthwise", 28, 7, MALFORMED), ("depthwise", 29, 2, MALFORMED),
        ("separable", 32, 0, "a section lies outside"), ("unary", 31, 99, MALFORMED), ("binary", 34, 0, MALFORMED),
        ("binary", 34, 9, MALFORMED), ("binary", 2, 0xFFFFFFFF, SHAPES), ("binary", 2, 0, SHAPES),
        ("pool", 34, 3, MALFORMED), ("norm", 34, 5, MALFORMED), ("norm", 35, 0, SHAPES), ("norm", 35, 4, SHAPES),
        ("softmax", 35, 0, SHAPES), ("softmax", 35, 5, SHAPES), ("matmul", 2, 0xFFFFFFFF, SHAPES),
        *((kind, 38, block, MALFORMED) for kind in ("conv", "linear") for block in (0, 2, 3, 32)),
        ("conv", 38, 1, "its block counts"), ("linear", 38, 4, MALFORMED),
        ("const", 1, 0, MALFORMED), ("unary", 2, 0, MALFORMED), ("move", 1, 0, MALFORMED),
    ],
)  # fmt: skip
def test_a_number_of_an_operator_that_cannot_be_is_refused(kind, word, value, words):
    data, at, _, _ = tabled(kind)
    assert struct.unpack_from("<I", data, at + 4 * word)[0] != value
    refused(put(data, at + 4 * word, value), words)


@pytest.mark.parametrize(
    ("n_ends", "first", "words"),
    [
        (3 << 16, None, "a feature map is malformed"), (2, None, "a feature map is malformed"),
        (257 | 1 << 16, None, "a feature map is malformed"), (2 | 257 << 16, None, "a feature map is malformed"),
        (2 | 3 << 16, 999, "a feature map is malformed"), (256 | 256 << 16, None, "a section lies outside"),
        (2 | 3 << 16, 1, "nothing wrote"), (2 | 4 << 16, None, "nothing wrote|malformed"),
    ],
)  # fmt: skip
def test_inputs_and_outputs_are_maps_that_are_there(n_ends, first, words):
    data = packed.write(every_kind())
    head = records.File(data).head
    assert proof.check(data) == 0 and head.n_ends == 2 | 3 << 16
    data = data if first is None else put(data, head.ends, first)
    if n_ends == 256 | 256 << 16:
        data = put(data, 44, len(data) - 64)
    refused(put(data, 48, n_ends), words)


def test_two_inputs_that_lie_in_one_place_are_refused():
    data = packed.write(Network([Map(2, 3, 3) for _ in range(3)], [], (0, 1, 2), (0,)))
    refused(put(data, map_at(data, 0) + PLACE, records.File(data).maps[1].at), "written over")


def test_an_input_may_be_an_output_and_stand_there_twice():
    network = Network([Map(2, 3, 3), Map(1, 1, 4)], [], (1, 0), (0, 1, 0))
    data = packed.write(network)
    arrays = [np.arange(4, dtype=np.float32).reshape(1, 1, 4), np.ones((2, 3, 3), np.float32)]
    y = Engine(data)._run(arrays)
    assert all(np.array_equal(a, arrays[i]) for a, i in zip(y, (1, 0, 1), strict=True))
    assert packed.read(data).inputs == (1, 0) and packed.read(data).outputs == (0, 1, 0)


@needs_c
def test_workspaces_are_as_large_in_python_as_in_c():
    g = np.random.default_rng(0)
    for m, k, n in g.integers(1, 2_000, (200, 3)).tolist():
        assert kernels.matmul_workspace(m, k, n) == kernels.lib.matmul_workspace(m, k, n)
        assert kernels.line_workspace(m, n) == kernels.lib.line_workspace(m, n)


# -- its description ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{}", b"[]", b"null", b'{"names": []}', b'{"names": ["a", 1]}', b'{"names": "a"}', b'{"names": {"a": 1}}',
        b'{"names": ["\xff"]}', b'{"names": ["a"]} ', b'{"names": ["a"], }', b'{"names": ["a"], "n": 007}',
        b'{"names": ["a"], "n": NaN}', b'{"names": ["a"], "n": ' + b"[" * 9_000 + b"]" * 9_000 + b"}",
        b'{"names": ["a"], "names": ["a", "b"]}', b'{"names": ["\\x41"]}',
    ],
)  # fmt: skip
def test_a_description_that_is_none_is_refused(text):
    refused(described(text), "its description is malformed")


def test_a_description_may_hold_numbers_strings_and_lists_of_them():
    description = {"names": ['é"\\\n'], "classes": 4, "labels": ["a", "b"], "answer": [4, -1], "title": "x", "none": []}
    data = described(json.dumps(description).encode())
    assert proof.check(data) == 0 and (kernels.lib is None or checked_by_c(data) == 0)
    assert packed.read(data).ops[0].name == 'é"\\\n' and packed.read(data).meta["labels"] == ["a", "b"]
    assert Engine(data).output_shape == (4, 6, 7)  # [4, -1] is no shape of so many numbers
    with pytest.raises(ValueError, match="give integers, strings and lists of them"):
        packed.write(Network([Map(1, 1, 1)], [], (0,), (0,), {"deep": {"a": 1}}))


def described(text: bytes) -> bytes:
    """A file of one operator with another description, put behind all else."""
    with torch.random.fork_rng():
        data = packed.write(compiler.compile(nn.Sequential(nn.Conv2d(2, 4, 1)), torch.zeros(1, 2, 6, 7)))
    whole = data + text + b"\0" * (-len(text) % 4)
    return signed(whole[:52] + struct.pack("<2I", len(data), len(text)) + whole[60:])
