"""The kernels against numpy's dense product, over shapes that hurt, in both backends."""

import dataclasses
import gc
import itertools
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.core import kernels

ROOT = Path(__file__).parents[2]
SHAPES = [  # rows, columns, n, share of nonzero blocks
    (4, 1, 1, 1.0),
    (1, 1, 1, 1.0),  # less than a block
    (7, 5, 3, 0.5),  # ragged
    (8, 16, 1, 0.0),  # all zero
    (64, 48, 17, 0.1),
    (13, 1, 9, 0.7),  # one column
    (4, 300, 2, 0.02),
    (0, 5, 3, 1.0),
    (4, 0, 3, 1.0),
    (5, 6, 0, 1.0),
]
needs_c = pytest.mark.skipif(kernels.lib is None, reason="the C kernels are not built")


@pytest.fixture(params=[pytest.param("c", marks=needs_c), "numpy"])
def backend(request, monkeypatch):
    monkeypatch.setenv("LAB_KERNELS", request.param)
    return request.param


@pytest.fixture
def fresh():
    """Forget what was warned of and checked before, and after."""
    caches = kernels._warn_numpy, kernels._check_build
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def operands(rows, columns, n, density, seed=0):
    """w (rows, columns) with whole 4x1 blocks zeroed, x (columns, n)."""
    g = np.random.default_rng(seed)
    keep = np.repeat(g.random((-(-rows // 4), columns)) < density, 4, 0)[:rows]
    return (g.normal(size=(rows, columns)) * keep).astype(np.float32), g.normal(size=(columns, n)).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_spmm_is_the_dense_product(backend, shape):
    w, x = operands(*shape)
    assert kernels.backend() == backend
    exact = w.astype(np.float64) @ x.astype(np.float64)
    y = kernels.spmm(kernels.pack(w), x)
    assert y.dtype == np.float32
    assert y.shape == exact.shape
    np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-5)


def test_a_vector_gives_a_vector(backend):
    w, x = operands(10, 6, 1, 0.5)
    np.testing.assert_allclose(kernels.spmm(kernels.pack(w), x[:, 0]), w @ x[:, 0], rtol=1e-5, atol=1e-5)


def test_operands_of_any_layout_and_type(backend):
    w, x = operands(12, 8, 6, 0.5)
    y = kernels.spmm(kernels.pack(np.asfortranarray(w)), x.astype(np.float64)[:, ::2])
    np.testing.assert_allclose(y, w @ x[:, ::2], rtol=1e-5, atol=1e-5)


def test_pack_keeps_only_blocks_that_are_not_zero():
    w = np.zeros((8, 3), np.float32)
    w[5, 2] = 7
    packed = kernels.pack(w)
    assert (packed.count.tolist(), packed.col.tolist(), packed.blocks.tolist()) == ([0, 1], [2], [[0, 7, 0, 0]])
    tiled = kernels.pack(w, k_tile=2)
    assert (tiled.count.tolist(), tiled.col.tolist()) == ([0, 0, 0, 1], [0])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 20), st.integers(0, 20), st.sampled_from([1, 4, 16]), st.integers(1, 25), st.booleans())
def test_pack_and_to_dense_are_inverse(rows, columns, block, k_tile, dense):
    w, _ = operands(rows, columns, 1, 0.5)
    assert np.array_equal(kernels.pack(w, block=block, k_tile=k_tile, dense=dense).to_dense(), w)


@pytest.mark.slow
@needs_c
@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(kernels.isas() or ["ref"]),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 220)),
    density=st.floats(0, 1),
    k_tile=st.sampled_from([1, 7, 16, 65_535]),
    dense=st.booleans(),
    block=st.sampled_from(kernels.BLOCKS),
    seed=st.integers(0, 99),
)
def test_every_instruction_set_gives_the_exact_product(name, shape, density, k_tile, dense, block, seed):
    """Bias, sum, clamp and k-tiles included, against numpy in double precision."""
    k_tile = kernels.MAX_K_TILE if block == kernels.GEMV_BLOCK else k_tile
    dense = dense and block > 1
    (w, x), g = operands(*shape, density, seed), np.random.default_rng(seed)
    bias, add = g.normal(size=shape[0]), g.normal(size=(shape[0], shape[2]))
    exact = (w.astype(np.float64) @ x + bias[:, None] + add).clip(-1, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB_ISA", name)
        y = kernels.spmm(kernels.pack(w, block=block, k_tile=k_tile, dense=dense), x, bias=bias, add=add, clamp=(-1, 2))
    np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-4)


@needs_c
@pytest.mark.parametrize("name", kernels.isas())
@pytest.mark.parametrize("block", kernels.BLOCKS)
@pytest.mark.parametrize("n", [1, 17, 18, 49, 96, 100, 196])
def test_a_nan_stays_a_nan_and_touches_nothing_else(name, n, block, monkeypatch):
    monkeypatch.setenv("LAB_ISA", name)
    w, x = operands(8, 5, n, 1.0)
    x[2, n // 2] = np.nan
    y = kernels.spmm(kernels.pack(w, block=block), x, clamp=(0, 6))
    assert np.isnan(y[:, n // 2]).all() and np.isfinite(np.delete(y, n // 2, 1)).all()


@pytest.mark.slow
@needs_c
def test_a_pointer_keeps_its_array():
    array = np.ones(1 << 20, np.float32)
    alive, p = weakref.ref(array), kernels.pointer(array)
    del array
    gc.collect()
    assert alive() is not None and p[len(p) - 1] == 1


WRONG = {
    "a sum of too few columns": ({"add": np.zeros((8, 8))}, r"add has shape \(8, 8\): the product has \(8, 9\)"),
    "a sum of too many": ({"add": np.zeros((8, 10))}, "add has shape"),
    "a sum of other rows": ({"add": np.zeros((4, 18))}, "add has shape"),
    "a sum of one axis": ({"add": np.zeros(72)}, "add has shape"),
    "a sum of complex numbers": ({"add": np.zeros((8, 9), complex)}, "add holds complex128 values: give real numbers"),
    "a bias a column": ({"bias": np.zeros(9)}, r"bias has shape \(9,\): give one number, or \(8,\)"),
    "a bias of two axes": ({"bias": np.zeros((8, 1))}, "bias has shape"),
    "a bias of words": ({"bias": "none"}, "bias holds <U4 values"),
    "a clamp the wrong way": ({"clamp": (6, 0)}, r"clamp=\(6, 0\): give \(low, high\)"),
    "a clamp that is none": ({"clamp": (0, np.nan)}, "clamp="),
    "complex x": ({"x": np.zeros((5, 9), complex)}, "x holds complex128 values"),
    "x the other way": ({"x": np.zeros((9, 5))}, r"x has shape \(9, 5\)"),
    "blocks of 5": ({"w": kernels.pack(np.ones((8, 5)), block=5)}, "w is in blocks of 5: spmm takes .* of 1, 4, 8, 16"),
    "16 rows in k-tiles": ({"w": kernels.pack(np.ones((8, 5)), block=16, k_tile=4)}, "w is in blocks of 16: blocks of"),
    "1 row, no index": ({"w": kernels.pack(np.ones((8, 5)), block=1, dense=True)}, "w is in blocks of 1: blocks of"),
    "no sparse matrix": ({"w": np.ones((8, 5))}, "w is ndarray: spmm takes"),
}


@pytest.mark.parametrize("name", WRONG)
def test_every_array_is_checked_against_the_others(backend, name):
    changes, message = WRONG[name]
    arguments = {"w": kernels.pack(np.ones((8, 5))), "x": np.ones((5, 9)), **changes}
    with pytest.raises(ValueError, match=message) as caught:
        kernels.spmm(arguments.pop("w"), arguments.pop("x"), **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [("col", 60_000), ("count", 60_000), ("col", 0)])
def test_an_array_that_was_written_to_is_checked_again(backend, name, value):
    w = kernels.pack(np.ones((8, 5)) * [1, 1, 0, 1, 1])
    getattr(w, name)[1] = value
    with pytest.raises(ValueError, match="the sparse matrix is broken"):
        kernels.spmm(w, np.ones((5, 9)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"col": np.array([0, 70_000])}, "col holds numbers that uint16 cannot"),
        ({"count": np.array([-1])}, "count holds numbers that uint16 cannot"),
        ({"col": np.array([1, 1])}, "stands twice"),
        ({"blocks": np.zeros(2)}, r"blocks has shape \(2,\)"),
        ({"blocks": np.zeros((2, 4), complex)}, "blocks holds complex128 values"),
        ({"k_tile": 0}, "in k-tiles of 0"),
        ({"rows": -4}, "a matrix of -4 x 2"),
    ],
)
def test_a_matrix_of_wrong_arrays_is_none(changes, message):
    arrays = {"count": np.array([2]), "col": np.array([0, 1]), "blocks": np.ones((2, 4))}
    good = {"rows": 4, "columns": 2, "k_tile": 2, **arrays}
    assert kernels.Sparse(**good).to_dense().all()
    with pytest.raises(ValueError, match=message):
        kernels.Sparse(**{**good, **changes})


@needs_c
def test_an_unknown_instruction_set_is_refused(monkeypatch):
    monkeypatch.setenv("LAB_ISA", "mmx")
    with pytest.raises(RuntimeError, match=r"LAB_ISA='mmx' is not to be had here: this machine has .*ref"):
        kernels.isa_name()


@needs_c
@pytest.mark.parametrize("name", kernels.isas() or ["ref"])
def test_columns_beyond_one_table_of_rows_are_cut_into_k_tiles(name, monkeypatch):
    """An index reaches SPMM_MAX_K_TILE columns: wider matrices come in several k-tiles, whatever was asked for."""
    monkeypatch.setenv("LAB_ISA", name)
    (w, x) = operands(8, 2500, 50, 0.4, 3)
    packed = kernels.pack(w)
    assert packed.k_tile == kernels.SPMM_MAX_K_TILE and len(packed.count) == 3 * packed.groups
    np.testing.assert_allclose(kernels.spmm(packed, x), w.astype(np.float64) @ x, rtol=1e-4, atol=1e-3)


@needs_c
def test_what_python_says_of_the_kernels_is_what_they_say():
    assert (kernels.SPMM_MAX_K_TILE, kernels.MAX_CHAIN) == (kernels.lib.SPMM_MAX_K_TILE, kernels.lib.ENGINE_MAX_CHAIN)
    for window in itertools.product((1, 15, 16, 17, 31, 32, 33, 224), (3, 5), (1, 2), (1, 2, 7)):
        assert kernels.depthwise_workspace(*window) == kernels.lib.depthwise_workspace(*window)


MATRIX = kernels.pack(np.ones((8, 2)), k_tile=1)
BROKEN = {
    "counts beyond the blocks": {"count": [1, 1, 1, 2]},
    "fewer counts than groups": {"count": [2, 2]},
    "a column beyond its k-tile": {"col": [0, 1, 0, 0]},
    "columns for other blocks": {"col": [0, 0]},
    "dense with a column missing": {"col": None, "count": [0, 2, 1, 1]},
    "a k-tile longer than the kernel's table": {"k_tile": 1025, "columns": 2050},
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_indices_are_an_error_and_not_a_crash(name):
    with pytest.raises(ValueError, match=r"broken: .*; make it with|count has 2 entries"):
        dataclasses.replace(MATRIX, **BROKEN[name])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kernels.pack(np.ones(3)), r"w has shape \(3,\)"),
        (lambda: kernels.pack(np.ones((4, 3)), k_tile=0), r"k_tile=0: give 1 to 65535"),
        (lambda: kernels.spmm(kernels.pack(np.ones((4, 3))), np.ones((2, 5))), r"x has shape \(2, 5\).*\(3, n\)"),
    ],
)
def test_wrong_shapes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.skipif(not (shutil.which("cc") or shutil.which("gcc")), reason="no C compiler")
def test_with_a_compiler_the_kernels_are_built_from_these_sources():
    assert kernels.built_from() == kernels.sources_now() != ""


@needs_c
def test_a_stale_build_is_refused_with_the_command_that_rebuilds_it(fresh, monkeypatch, tmp_path):
    shutil.copytree(ROOT / "ckernels", tmp_path / "ckernels")
    monkeypatch.setattr(kernels, "_SOURCES", tmp_path / "ckernels")
    assert kernels.backend() == "c"
    with open(tmp_path / "ckernels" / "kernels.h", "a") as header:
        header.write("/* newer */\n")
    kernels._check_build.cache_clear()
    with pytest.raises(RuntimeError, match=r"built from other sources .* `python ckernels/build\.py`"):
        kernels.backend()


def test_without_the_compiled_module_numpy_is_used_and_said(fresh, monkeypatch):
    monkeypatch.delenv("LAB_KERNELS", raising=False)
    monkeypatch.setattr(kernels, "lib", None)
    with pytest.warns(RuntimeWarning, match=r"not built, numpy .* install a C compiler"):
        assert kernels.backend() == "numpy"
    monkeypatch.setenv("LAB_KERNELS", "c")
    with pytest.raises(RuntimeError, match="LAB_KERNELS='c', but the C kernels are not built"):
        kernels.backend()


def test_an_unknown_backend_is_refused(monkeypatch):
    monkeypatch.setenv("LAB_KERNELS", "cuda")
    with pytest.raises(RuntimeError, match="LAB_KERNELS='cuda' is not allowed: give 'c' or 'numpy'"):
        kernels.backend()


@pytest.mark.slow
def test_a_build_without_a_compiler_succeeds(tmp_path):
    copy = tmp_path / "check out"
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "_kernels.c")
    for folder in ("ckernels", "lab"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignore)
    for file in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / file, copy)
    build = [sys.executable, "ckernels/build.py"]
    absent = {"PATH": str(tmp_path), "CC": "no-such-compiler"}
    done = subprocess.run(build, cwd=copy, env=absent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code = "from lab.core import kernels; print(kernels.backend())"
    child = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True)
    assert child.stdout == "numpy\n"
    assert "the C kernels are not built" in child.stderr
