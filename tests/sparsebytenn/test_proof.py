"""What a packed file must prove: C and Python say the same of it, and whatever they let through runs as described."""

import json
import struct
import zlib
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lab.core import kernels
from lab.sparsebytenn import compiler, int8, packed, proof, records, reference
from lab.sparsebytenn.engine import Engine
from lab.sparsebytenn.packed import Map, Network, Op

from .native import rolled, small_networks

needs_c = pytest.mark.skipif(kernels.lib is None, reason="the C kernels are not built")
ARENA, WORKSPACE = 32, 36  # of the header, in bytes
PLACE = 16  # of a map: where it begins in the arena
ADD, FLAGS, COLUMN, SUMS = 8, 36, 48, 100  # of an operator
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
    return [packed.write(network) for network in made]


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
        kind = draw(st.sampled_from(["header", "map", "op", "op", "op", "swap", "text", "bit"]))
        i, j = (draw(st.integers(0, (h.n_maps if kind == "map" else h.n_ops) - 1)) for _ in range(2))
        if kind == "swap":
            a, b = (slice(h.ops + 160 * n, h.ops + 160 * n + 160) for n in (i, j))
            data[a], data[b] = data[b], data[a]
        elif kind == "text":
            data[h.meta + draw(st.integers(0, h.meta_size - 1))] = draw(st.sampled_from(b'"\\,: {}[]0-u\x80\x1f9'))
        elif kind == "bit":
            data[draw(st.integers(16, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
        else:
            start, fields = {"header": (16, 12), "map": (h.maps + 32 * i, 7), "op": (h.ops + 160 * i, 38)}[kind]
            at = start + 4 * draw(st.integers(0, fields - 1))
            old = struct.unpack_from("<I", data, at)[0]
            near = st.sampled_from([old + 1, old - 1, old + 16, old - 16, 2 * old, old // 2])
            value = draw(near | st.sampled_from(EDGES) | st.integers(0, 5))
            struct.pack_into("<I", data, at, value % 2**32)
    return signed(data)


@needs_c
@settings(max_examples=150, deadline=None)
@given(damaged())
def test_python_loads_what_c_accepts_and_nothing_else_and_what_loads_runs_as_numpy_says(data):
    wrong = checked_by_c(data)
    assert proof.check(data) == wrong
    if wrong:
        with pytest.raises(ValueError, match="no packed network that can be run") as caught:
            Engine(data)
        assert "\n" not in str(caught.value)
        return
    engine = Engine(data)
    x = torch.randn(1, *engine.shape, generator=torch.Generator().manual_seed(0))
    y = engine(x).numpy().ravel()
    with np.errstate(all="ignore"):
        exact = reference.run(packed.read(data), x[0].numpy()).ravel()
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


def test_scratch_lies_on_no_map():
    (data,) = [data for data in files() if records.File(data).head.workspace_floats][:1]
    refused(put(data, WORKSPACE, 0), "its arena is too small")


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
