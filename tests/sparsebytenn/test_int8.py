"""The engine in int8: the same whole sums in every instruction set and in numpy, answers close to fp32's."""

import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lab
from lab.core import kernels
from lab.sparsebytenn import compiler, int8, packed, reference
from lab.sparsebytenn.packed import Int8Params, Map, Network, Op
from lab.sparsebytenn.runtime import Engine
from lab.sparsebytenn.tuning import tuned

from .test_engine import NETWORKS, built

needs_c = pytest.mark.skipif(kernels.lib is None, reason="the C kernels are not built")
HERE = kernels.isas() or ["ref"]


def quantised_by(isa, params, x):
    """x (C, n) as uint8 by an instruction set: (fours of channels, pitch, 4), and whether it saw what is no number."""
    planes, fours = kernels.planes(x.astype(np.float32)), -(-len(x) // 4)
    x_u8 = np.zeros((fours, planes.shape[1], 4), np.uint8)
    call = kernels.ffi.new("quantise_u8 *")
    call.c, call.n, call.zero, call.inv_scale = *x.shape, params.zero, params.inv_scale
    call.x, call.y, call.x_pitch = kernels.pointer(planes), kernels.pointer(x_u8), planes.shape[1]
    call.y_pitch = call.x_pitch
    return x_u8, kernels.isa(isa).quantise(call)


def multiplied(isa, op, x, add):
    """clamp(W x + bias + add) by an instruction set."""
    w, n = op.weights, x.shape[1]
    x_u8, odd = quantised_by(isa, op.int8, x)
    rows = 4 * w.groups
    assert not odd
    y, more = kernels.planes(np.zeros((0, n)), rows), kernels.planes(add, rows)
    numbers = [np.zeros(rows, kind) for kind in (np.int32, np.float32, np.float32)]
    for to, values in zip(numbers, (w.to_dense().sum(1, dtype=np.int32), op.int8.scale, op.bias), strict=True):
        to[: w.rows] = values
    call = kernels.ffi.new("spmm_u8s8 *")
    call.groups, call.k_tiles, call.k_tile = w.groups, -(-w.blocks_per_row // w.k_tile), w.k_tile
    call.n, call.zero = n, op.int8.zero
    call.count, call.w = kernels.pointer(w.count), kernels.pointer(w.blocks)
    call.col = kernels.ffi.NULL if w.col is None else kernels.pointer(w.col)
    call.sums, call.scale, call.bias = (kernels.pointer(a) for a in numbers)
    call.x, call.x_pitch, call.y, call.y_pitch = kernels.pointer(x_u8), x_u8.shape[1], kernels.pointer(y), y.shape[1]
    call.add, call.add_pitch, call.lo, call.hi = kernels.pointer(more), more.shape[1], *op.clamp
    kernels.isa(isa).spmm_int8(call)
    return y[: w.rows, :n]


def product(rows, columns, density, k_tile, seed):
    """An operator in int8 with that share of its 4 x 4 blocks left."""
    g = np.random.default_rng(seed)
    keep = g.random((-(-rows // 4), -(-columns // 4))) < density
    w = g.integers(-127, 128, (rows, columns)) * keep.repeat(4, 0).repeat(4, 1)[:rows, :columns]
    params = Int8Params(
        float(np.float32(g.uniform(0.1, 100))), int(g.integers(0, 256)), g.random(rows, np.float32) / 1000
    )
    weights = int8.pack(w.astype(np.int8), k_tile=k_tile)
    return Op("pointwise", "", 0, 1, weights=weights, bias=g.normal(size=rows), clamp=(-1.0, 3.0), int8=params), w


SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 70), st.integers(1, 220))


@pytest.mark.slow
@needs_c
@settings(max_examples=200, deadline=None)
@given(st.sampled_from(HERE), SHAPES, st.floats(0, 1), st.sampled_from([1, 3, 128]), st.integers(0, 99))
def test_every_instruction_set_sums_the_same_whole_numbers(isa, shape, density, k_tile, seed):
    rows, columns, n = shape
    op, w = product(rows, columns, density, k_tile, seed)
    g = np.random.default_rng(seed)
    x, add = g.normal(size=(columns, n)).astype(np.float32), g.normal(size=(rows, n)).astype(np.float32)
    sums = w.astype(np.int64) @ (reference.quantise(op.int8, x).astype(np.int64) - op.int8.zero)
    exact = (sums * op.int8.scale.astype(float)[:, None] + op.bias[:, None] + add).clip(*op.clamp)
    np.testing.assert_allclose(multiplied(isa, op, x, add), exact, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose((reference.product(op, x) + add).clip(*op.clamp), exact, rtol=1e-5, atol=1e-5)


@needs_c
@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("zero", [0, 1, 128, 255])
def test_bytes_are_rounded_to_even_and_clipped_alike(isa, zero):
    """Halves, borders, huge numbers and denormal ones, in channels that are no multiple of four."""
    numbers = np.r_[np.arange(-600, 600) / 2, 1e30, -1e30, 1e-40, 0.49999997, 254.5, 255.49998, -0.0]
    x = np.stack([numbers, numbers[::-1], numbers / 3, -numbers, numbers / 7]).astype(np.float32)
    params = Int8Params(1.0, zero, np.ones(1, np.float32))
    x_u8, odd = quantised_by(isa, params, x)
    mine = x_u8[:, : x.shape[1]].transpose(0, 2, 1).reshape(8, -1)[:5] ^ (128 if isa == "neondot" else 0)
    assert not odd and np.array_equal(mine, reference.quantise(params, x))
    exact = np.rint(x.astype(float) + zero).clip(0, 255)
    assert (np.abs(mine - exact) <= (np.abs(x % 1 - 0.5) < 1e-6)).all()  # a fraction next to a half may go either way


@needs_c
@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("n", [1, 16, 49])
def test_what_is_no_number_is_told(isa, n):
    x = np.zeros((5, n), np.float32)
    assert not quantised_by(isa, Int8Params(1.0, 7, np.ones(1)), x)[1]
    for odd in (np.nan, np.inf, -np.inf):
        x[3, n // 2] = odd
        assert quantised_by(isa, Int8Params(1.0, 7, np.ones(1)), x)[1]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 20), st.integers(1, 30), st.floats(0, 1), st.integers(1, 9), st.integers(0, 99))
def test_pack_and_to_dense_are_inverse(rows, columns, density, k_tile, seed):
    op, w = product(rows, columns, density, k_tile, seed)
    assert np.array_equal(op.weights.to_dense(), w)


def test_a_block_is_kept_if_any_of_its_sixteen_weights_is_not_zero():
    w = np.zeros((8, 12), np.int8)
    w[5, 6] = 3
    packed_ = int8.pack(w, k_tile=2)
    assert (packed_.count.tolist(), packed_.col.tolist(), packed_.blocks.shape) == ([0, 1, 0, 0], [1], (1, 4, 4))
    assert packed_.blocks[0, 1, 2] == 3


# -- whole networks ----------------------------------------------------------------------------------------------------


def in_int8(name, share=0.5):
    model, x = built(name, share)
    network = compiler.compile(model, x[:1])
    return network, int8.quantised(network, x), x


def distance(a, b):
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.slow
@needs_c
@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_engine_in_int8_is_the_numpy_reference(name, isa, monkeypatch):
    """A depthwise sum that differs in its last digit may fall into the next byte: a step of one product, no more."""
    _, network, x = in_int8(name)
    assert any(op.int8 is not None for op in network.ops)
    monkeypatch.setenv("LAB_ISA", isa)
    engine = Engine(packed.write(network))
    expected = np.stack([reference.run(network, picture.numpy()) for picture in x])
    assert distance(engine(x), torch.from_numpy(expected).reshape(engine(x).shape)) < 0.01


@pytest.mark.slow
@needs_c
def test_trained_networks_answer_as_in_fp32():
    """The embedded MobileNet on held-out digits: measured 33 dB, one answer of 500 changed."""
    task = lab.tasks.digits(size=32, channels=3)
    _, _, x, labels = lab.core.tasks.digits_data(32, 3)
    network = compiler.compile(task.model, x[:1])
    quantised = int8.quantised(network, x[:32])
    fp32, int8_y = Engine(packed.write(network))(x), Engine(packed.write(quantised))(x)
    noise = 10 * torch.log10(fp32.square().mean() / (fp32 - int8_y).square().mean())
    same = (fp32.argmax(1) == int8_y.argmax(1)).float().mean()
    assert noise > 25 and same > 0.99
    assert (int8_y.argmax(1) == labels).float().mean() > (fp32.argmax(1) == labels).float().mean() - 0.006


@pytest.mark.slow
@needs_c
def test_a_file_in_int8_is_read_back_and_small():
    network, quantised, _ = in_int8("mobilenet_v1", 0.0)
    data = packed.write(quantised)
    back = packed.read(data)
    assert packed.write(back) == data and len(data) < 0.4 * len(packed.write(network))
    for a, b in zip(quantised.ops, back.ops, strict=True):
        assert (a.int8 is None) == (b.int8 is None)
        if a.int8 is not None:
            assert (a.int8.inv_scale, a.int8.zero) == (b.int8.inv_scale, b.int8.zero)
            assert np.array_equal(a.weights.to_dense(), b.weights.to_dense())
    assert "int8" in Engine(data).profile(1)["form"].iloc[1]


@pytest.mark.slow
@needs_c
@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2", "residual", "mapped"])
def test_a_nan_stays_a_nan(name, isa, monkeypatch):
    network, quantised, x = in_int8(name, 0.0)
    monkeypatch.setenv("LAB_ISA", isa)
    x[0, 1, 3, 4] = np.nan
    fp32, int8_y = (Engine(packed.write(n))(x) for n in (network, quantised))
    assert torch.equal(fp32.isnan(), int8_y.isnan()) and fp32[0].isnan().any() and not int8_y[1].isnan().any()


def test_ranges_are_the_same_without_the_kernels_and_the_network_is_left_as_it_was(monkeypatch):
    monkeypatch.setenv("LAB_KERNELS", "numpy")
    network, quantised, x = in_int8("residual")
    assert all(op.int8 is None for op in network.ops)
    if kernels.lib is not None:
        monkeypatch.setenv("LAB_KERNELS", "c")
        for a, b in zip(quantised.ops, int8.quantised(network, x).ops, strict=True):
            assert a.int8 is b.int8 or (a.int8.zero == b.int8.zero and np.isclose(a.int8.inv_scale, b.int8.inv_scale))


def test_only_an_input_that_can_be_negative_has_a_zero():
    _, quantised, _ = in_int8("residual")
    zeros = {op.name: op.int8.zero for op in quantised.ops if op.int8 is not None}
    assert zeros["a"] == 0 and 0 < zeros["b"] < 255  # a reads behind a ReLU6, b a sum


@pytest.mark.slow
@needs_c
def test_neither_tuning_nor_whole_touches_a_product_in_int8():
    _, quantised, x = in_int8("mobilenet_v1")
    expected = Engine(packed.write(quantised))(x)
    for network in (tuned(quantised), compiler.densified(quantised)):
        assert torch.allclose(Engine(packed.write(network))(x), expected, atol=1e-4)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(0, 3, 33, 33), r"images has shape \(0, 3, 33, 33\): give at least one as \(N, 3, 33, 33\)"),
        (torch.zeros(3, 33, 33), r"images has shape \(3, 33, 33\)"),
        (torch.zeros(2, 3, 32, 33), r"images has shape \(2, 3, 32, 33\)"),
        (torch.full((1, 3, 33, 33), torch.nan), "images holds NaN or infinity"),
    ],
)
def test_images_without_a_range_are_refused(images, message):
    model, x = built("residual")
    with pytest.raises(ValueError, match=message):
        int8.quantised(compiler.compile(model, x[:1]), images)


def test_a_network_without_such_products_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    x = torch.zeros(1, 3, 9, 9)
    with pytest.raises(ValueError, match="no product to do in int8"):
        int8.quantised(compiler.compile(model, x), x)
    _, quantised, x = in_int8("residual")
    with pytest.raises(ValueError, match="no product to do in int8"):
        int8.quantised(quantised, x)


def small():
    """One product in int8 between two maps, as a file; where its operator stands."""
    op, _ = product(8, 12, 0.5, 2, 0)
    data = packed.write(Network([Map(12, 5, 5), Map(8, 5, 5)], [op], (0,), (1,)))
    return data, struct.unpack_from("<I", data, 28)[0]


def changed(word, value):
    """The file with a 32-bit word of its operator, or below 0 one of its header, put to a value, its checksum right."""
    data, at = small()
    place = at + 4 * word if word >= 0 else -4 * word
    value = struct.pack("<f" if isinstance(value, float) else "<I", value)
    data = data[:place] + value + data[place + 4 :]
    return data[:12] + struct.pack("<I", zlib.crc32(data[16:])) + data[16:]


FLAGS, COLUMNS, INV_SCALE, ZERO, SCALE, SUMS, WORK = 9, 8, 22, 23, 24, 25, 39


@needs_c
@pytest.mark.parametrize(
    ("word", "value", "reason"),
    [
        (FLAGS, 4, "block counts"), (FLAGS, 7, "block counts"), (FLAGS, 2, "block counts"),
        (COLUMNS, 0, "block counts"), (COLUMNS, 1, "block counts|outside"), (INV_SCALE, 0.0, "operator"),
        (INV_SCALE, -1.0, "operator"), (INV_SCALE, float("nan"), "operator"), (ZERO, 256, "operator"),
        (ZERO, 0xFFFFFFFF, "operator"), (SCALE, 0, "outside"),
        (SCALE, 0x7FFFFFFC, "outside"), (SUMS, 65, "outside"), (SUMS, 0xFFFFFFFC, "outside"), (WORK, 1 << 20, "arena"),
        (0, 6, "shapes|operator"),
    ],
)  # fmt: skip
def test_a_damaged_operator_is_a_one_line_error(word, value, reason):
    Engine(small()[0])
    with pytest.raises(ValueError, match=reason) as caught:
        Engine(changed(word, value))
    assert "\n" not in str(caught.value)


@needs_c
def test_more_columns_than_an_int32_can_sum_are_refused_and_left_in_fp32():
    for columns, fits in ((1 << 16, True), ((1 << 16) + 4, False)):
        op, _ = product(4, columns, 0.001, 1 << 14, 0)
        data = packed.write(Network([Map(columns, 1, 1), Map(4, 1, 1)], [op], (0,), (1,)))
        if fits:
            Engine(data)
        else:
            with pytest.raises(ValueError, match="operator is malformed"):
                Engine(data)


@needs_c
def test_the_greatest_sum_is_exact():
    """65,536 products of 255 and -127."""
    op = Op("pointwise", "", 0, 1, bias=np.zeros(4), weights=int8.pack(np.full((4, 1 << 16), -127, np.int8)))
    op.int8 = Int8Params(1.0, 0, np.ones(4, np.float32))
    network = Network([Map(1 << 16, 1, 1), Map(4, 1, 1)], [op], (0,), (1,))
    answers = Engine(packed.write(network))(torch.full((1, 1 << 16, 1, 1), 255.0))
    assert (answers == np.float32(-127 * 255 * (1 << 16))).all()
