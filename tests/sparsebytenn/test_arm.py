"""The kernels on 64-bit ARM: cross-compiled, run under qemu, their instructions counted, their loops modelled."""

import hashlib
import os
import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lab.core import kernels
from lab.sparsebytenn import compiler, packed, reference
from lab.sparsebytenn.runtime import Engine

from .native import HERE, KERNELS, ROOT, Every, arm, every_kind, thinned

ADDS = "__aarch64_ldadd4_acq_rel"  # of libgcc: what adds in one step, on cores older than such an instruction too

pytestmark = pytest.mark.skipif(bool(arm.missing(arm.CC, arm.QEMU)), reason=arm.missing(arm.CC, arm.QEMU))
needs_llvm = pytest.mark.skipif(bool(arm.missing(arm.DUMP, arm.MCA)), reason=arm.missing(arm.DUMP, arm.MCA))
needs_clang = pytest.mark.skipif(bool(arm.missing(arm.CLANG)), reason=arm.missing(arm.CLANG))
SHAPES = int(os.environ.get("SHAPES", 60))  # of each kernel, in each of three threads; under qemu they take their time
XNNPACK_32X1 = 29.2e6  # its instructions for what a test counts here: quoted, see benchmarks/sparsebytenn_arm.py


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("arm")


@pytest.fixture(scope="module")
def built(folder):
    """The library; what was compiled from the same sources by the same compiler is taken from `build`."""
    compiler = subprocess.run([arm.CC, "--version"], capture_output=True, text=True, check=True).stdout
    recipe = "".join((ROOT / path).read_text() for path in ("Makefile", "ckernels/arm.py"))
    key = hashlib.sha256(f"{kernels.sources_now()}{recipe}{compiler}".encode()).hexdigest()[:16]
    kept = ROOT / "build" / "arm-tests" / key
    if not kept.is_dir():
        arm.library(folder)
        fresh = Path(shutil.copytree(folder, kept.with_suffix(f".{os.getpid()}")))
        with suppress(OSError):  # another run was first
            fresh.rename(kept)
    return Path(shutil.copytree(kept, folder, dirs_exist_ok=True)) / "libsbnn.a"


@pytest.fixture(scope="module")
def count(folder, built):
    """count(file, *op): (all, FMLA) instructions of one pass."""
    try:
        plugin = arm.counter(folder)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no compiler for the plugin that counts: apt-get install gcc")
    steps = arm.program(ROOT / "ckernels" / "tools" / "steps.c", built)
    return lambda file, *op: arm.count_pass(plugin, steps, file, *op)


def written(network, file):
    file.write_bytes(packed.write(network))
    return file


@pytest.mark.slow
def test_the_library_is_what_a_program_needs(folder, built):
    assert {path.name for path in folder.iterdir()} >= {"libsbnn.a", "sbnn.h", "kernels.h"}
    symbols = subprocess.run(["aarch64-linux-gnu-nm", built], capture_output=True, text=True, check=True).stdout
    defined, wanted = (set(re.findall(rf" {kind} (\w+)", symbols)) for kind in ("[A-TV-Z]", "U"))
    assert {"engine_check", "engine_run", "isa_neon", "isa_ref"} <= defined
    assert wanted - defined <= {
        "memcpy",
        "memset",
        "getauxval",
        "_GLOBAL_OFFSET_TABLE_",
        "sched_yield",
        ADDS,
    }  # no allocation, no libm


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["neon", "neondot"])
def test_kernels_are_the_reference_and_keep_nan_from_three_threads(built, isa):
    lines = arm.emulated(arm.program(HERE / "kernels.c", built), isa, 0, SHAPES).splitlines()
    found = [re.fullmatch(rf"{isa} (\w+) compared {3 * SHAPES} wrong 0 nan (\d+)", line) for line in lines]
    assert [match[1] for match in found] == KERNELS
    assert all(int(match[2]) > SHAPES // 3 for match in found if match[1] != "spmm_int8")


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_whole_network_answers_as_here(built, tmp_path, interleaved):
    torch.manual_seed(1)
    net, x = thinned(Every(), 0.4), torch.randn(1, 3, 18, 18)
    network = compiler.compile(net, x, interleaved=interleaved)
    picture = x.permute(0, 2, 3, 1).contiguous() if interleaved else x
    file = written(network, tmp_path / "model.sbnn")
    (tmp_path / "picture.f32").write_bytes(picture.numpy().tobytes())
    program = arm.program(ROOT / "ckernels" / "examples" / "run.c", built)
    answer = np.array(arm.emulated(program, file, tmp_path / "picture.f32").split(), np.float32)
    for other in (net(x), Engine(file.read_bytes())(picture), reference.run(network, picture[0].numpy())):
        expected = np.asarray(other.detach() if isinstance(other, torch.Tensor) else other).ravel()
        np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_every_kind_of_operator_answers_as_the_reference_does(built, tmp_path):
    network, g = every_kind(), np.random.default_rng(0)
    arrays = [g.standard_normal(network.maps[i].shape, np.float32) for i in network.inputs]
    file = written(network, tmp_path / "model.sbnn")
    (tmp_path / "inputs.f32").write_bytes(b"".join(array.tobytes() for array in arrays))
    program = arm.program(ROOT / "ckernels" / "examples" / "run.c", built)
    output = np.array(arm.emulated(program, file, tmp_path / "inputs.f32").split(), np.float32)
    exact = np.concatenate([y.reshape(-1) for y in reference.outputs(network, arrays)])
    np.testing.assert_allclose(output, exact, rtol=1e-4, atol=1e-4)


def test_the_example_refuses_a_damaged_file(built, tmp_path):
    network = compiler.compile(nn.Sequential(nn.Conv2d(3, 4, 1)), torch.zeros(1, 3, 2, 2))
    file = written(network, tmp_path / "model.sbnn")
    file.write_bytes(file.read_bytes()[:-1])
    program = arm.program(ROOT / "ckernels" / "examples" / "run.c", built)
    done = subprocess.run([arm.QEMU, program, file, file], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{file} is not a packed network that can be run (1)\n"


# -- instructions, to the digit ----------------------------------------------------------------------------------------


def pointwise(inputs, outputs, side, share=0.0):
    """A packed 1 x 1 convolution with that share of its 4 x 1 blocks zeroed, and how many blocks it has."""
    torch.manual_seed(0)
    layer = thinned(nn.Sequential(nn.Conv2d(inputs, outputs, 1)), share)
    network = compiler.compile(layer, torch.zeros(1, inputs, *side))
    return network, len(network.ops[0].weights.blocks)


@pytest.mark.parametrize("side", [(4, 4), (8, 8), (7, 7), (1, 1), (1, 3), (1, 5), (5, 6), (14, 14), (3, 43)])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_fmla_are_as_many_as_the_formula_says(count, tmp_path, side, share):
    network, blocks = pointwise(24, 20, side, share)
    pixels = side[0] * side[1]
    done = count(written(network, tmp_path / "model.sbnn"), 0)[1]
    assert done == arm.fmla_of_spmm(blocks, pixels) == blocks * sum(arm.tiles(pixels))
    if pixels % 16 == 0:
        assert done == blocks * 16 * (pixels // 16)


@pytest.mark.slow
def test_one_pass_needs_little_more_than_half_of_xnnpacks_instructions(count, tmp_path):
    network, blocks = pointwise(512, 512, (14, 14), 0.3)
    assert 0.68 < blocks / (128 * 512) < 0.72
    done, fmla = count(written(network, tmp_path / "model.sbnn"), 0)
    assert fmla == arm.fmla_of_spmm(blocks, 196)
    assert done <= 0.55 * XNNPACK_32X1


# -- the inner loop ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_llvm
@pytest.mark.parametrize("cc", ["gcc", pytest.param("clang", marks=needs_clang)])
def test_the_inner_loop_takes_eight_cycles_a_block(built, tmp_path, cc):
    loops = arm.spmm_loops(built if cc == "gcc" else arm.library(tmp_path, arm.CLANG))
    fmla = {4 * vectors + tail for vectors in (1, 2, 3, 4) for tail in (0, 1)}
    assert set(loops) == {(n, indexed) for n in fmla for indexed in (False, True)}
    assert all(arm.stack_references(loop) == 0 for loop in loops.values())
    for indexed in (False, True):
        assert len(loops[16, indexed]) <= 24
        assert arm.cycles(loops[16, indexed]) <= 8.1
        assert arm.cycles(loops[12, indexed]) <= 6.1


@needs_llvm
def test_the_model_knows_two_multiply_adds_a_cycle():
    independent = [f"fmla v{i}.4s, v30.4s, v31.s[0]" for i in range(16)]
    assert arm.cycles([*independent, "b.ne 0x0"]) == pytest.approx(8, abs=0.05)
    assert arm.stack_references(["ldr q0, [sp, #16]", "fmla v0.4s, v1.4s, v2.4s", "str q0, [x1]"]) == 1


@pytest.mark.skipif(kernels.lib is None, reason="the C kernels are not built")
@pytest.mark.slow
def test_a_thirty_percent_sparse_network_needs_fewer_instructions(count, tmp_path):
    torch.manual_seed(0)
    side = 56
    files = []
    for share in (0.0, 0.3):
        net = thinned(nn.Sequential(nn.Conv2d(32, 64, 1), nn.ReLU6(), nn.Conv2d(64, 64, 1), nn.ReLU6()), share)
        network = compiler.compile(net, torch.zeros(1, 32, side, side))
        files.append(written(network, tmp_path / f"{share}.sbnn"))
    dense, sparse = (count(file) for file in files)
    assert sparse[0] < 0.8 * dense[0]
