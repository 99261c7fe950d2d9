"""The C code under the address and undefined-behaviour sanitizers: hurting shapes, and files that may be anything."""

import json
import os
import re
import shutil
import struct
import subprocess
import zlib
from functools import cache

import numpy as np
import pytest
import torch

import lab
from lab.core import kernels
from lab.sparsebytenn import compiler, int8, packed
from lab.sparsebytenn.runtime import Engine

from .native import HERE, KERNELS, ROOT, every_kind, rolled, small_networks, thinned

SOURCES = ("ref", "avx2", "avx512", "neon", "check", "check_tables", "text", "engine", "operators", "dispatch")
SANITIZERS = "-fsanitize=address,undefined"
slow = pytest.mark.slow  # the sanitizers make long programs, which take long to compile
needs_c = pytest.mark.skipif(kernels.lib is None, reason="the C kernels are not built")


def can_sanitize():
    """Whether this machine's gcc links the sanitizers: they come with it, but not everywhere."""
    if not shutil.which("gcc"):
        return False
    command = ["gcc", SANITIZERS, "-x", "c", "-", "-o", os.devnull]
    return subprocess.run(command, input=b"int main(void) { return 0; }", capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    """Compiles a driver with all kernels under the sanitizers."""
    if not can_sanitize():
        pytest.skip("no gcc with the sanitizers: apt-get install gcc")
    folder = tmp_path_factory.mktemp("sanitized")
    flags = ["-O1", "-g1", "-Wall", "-Wextra", "-Werror", SANITIZERS, "-fno-sanitize-recover=all"]
    flags.append(f"-I{ROOT / 'ckernels'}")
    objects = [str(folder / f"{name}.o") for name in SOURCES]
    for name, made in zip(SOURCES, objects, strict=True):
        subprocess.run(["gcc", *flags, "-c", str(ROOT / "ckernels" / f"{name}.c"), "-o", made], check=True)

    @cache
    def compiled(driver):
        inputs = [str(HERE / f"{driver}.c"), *objects, "-lm", "-lpthread"]
        subprocess.run(["gcc", *flags, *inputs, "-o", str(folder / driver)], check=True)
        return folder / driver

    return compiled


def output_of(command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@slow
@pytest.mark.parametrize("isa", kernels.ISAS)
def test_kernels_stay_in_bounds_agree_and_keep_nan_from_three_threads(sanitized, isa):
    lines = output_of([sanitized("kernels"), isa, 0, 150]).splitlines()
    if lines == ["absent"]:
        pytest.skip(f"this machine has no {isa}")
    found = [re.fullmatch(rf"{isa} (\w+) compared (\d+) wrong 0 nan (\d+)", line) for line in lines]
    assert [match[1] for match in found] == KERNELS
    assert all(int(match[2]) == 3 * 150 for match in found) and all(
        int(match[3]) > 50 for match in found if match[1] != "spmm_int8"
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Packed networks, pictures with their channels apart and interleaved."""
    folder = tmp_path_factory.mktemp("files")
    made = []
    for name, (net, shape) in small_networks().items():
        for interleaved in (False, True) if name in ("every", "convolution") else (False,):
            network = compiler.compile(net, torch.zeros(1, *shape), interleaved=interleaved)
            made.append(folder / f"{name}{' interleaved' * interleaved}.sbnn")
            made[-1].write_bytes(packed.write(network))
            if not interleaved:
                made.append(folder / f"{name} buffered.sbnn")
                made[-1].write_bytes(packed.write(rolled(network)))
            if name in ("every", "two convolutions"):
                pictures = torch.randn(2, *Engine(made[-1].read_bytes()).shape)
                made.append(folder / f"{made[-1].stem} in int8.sbnn")
                made[-1].write_bytes(packed.write(int8.quantised(network, pictures)))
    for name, network in (("every kind", every_kind()), ("every kind buffered", rolled(every_kind()))):
        made.append(folder / f"{name}.sbnn")
        made[-1].write_bytes(packed.write(network))
    return made


def fuzz(program, file, rounds, seed=1):
    """How often the engine ran, and how often each reason to refuse a file was given."""
    numbers = [int(n) for n in re.findall(r"\d+", output_of([program, file, seed, rounds]))]
    assert numbers[0] == rounds == numbers[1] + sum(numbers[4:])
    return numbers[2], np.array(numbers[4:])


@slow
def test_damaged_files_are_refused_or_run_in_bounds(sanitized, files):
    program, rounds = sanitized("fuzz"), 3_000
    found = [fuzz(program, file, rounds) for file in files]
    ran, refused = sum(ran for ran, _ in found), sum(refused for _, refused in found)
    assert ran > 0.05 * rounds * len(files)
    assert set(np.flatnonzero(refused) + 1) >= set(packed.WRONG) - {2, 3}  # magic and version are tested below


# -- threads -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """Compiles the driver of three threads under the thread sanitizer, with an engine of this text."""
    folder = tmp_path_factory.mktemp("watched")
    flags = ["-O1", "-g1", "-fsanitize=thread", f"-I{ROOT / 'ckernels'}"]
    probe = ["gcc", *flags, "-x", "c", "-", "-o", str(folder / "probe")]
    if (
        subprocess.run(probe, input=b"int main(void) { return 0; }", capture_output=True).returncode
        or subprocess.run([str(folder / "probe")], capture_output=True).returncode
    ):
        pytest.skip("no gcc with the thread sanitizer, or a system under which it does not run")
    objects = [str(folder / f"{name}.o") for name in SOURCES if name != "engine"]
    for made in objects:
        source = ROOT / "ckernels" / f"{made.rpartition('/')[2][:-2]}.c"
        subprocess.run(["gcc", *flags, "-c", str(source), "-o", made], check=True)

    def compiled(name, engine):
        (folder / f"{name}.c").write_text(engine)
        inputs = [str(HERE / "threads.c"), str(folder / f"{name}.c"), *objects, "-lm", "-lpthread"]
        subprocess.run(["gcc", *flags, *inputs, "-o", str(folder / name)], check=True)
        return [str(folder / name)]

    return compiled


@slow
def test_threads_race_for_nothing_and_a_meeting_left_out_is_noticed(watched, files):
    """ThreadSanitizer on three threads that run one picture together; each `meet` is there for a reason."""
    engine = (ROOT / "ckernels" / "engine.c").read_text()
    meetings = [match.span() for match in re.finditer(r"(?<= )meet\((?:r->)?team\);", engine)]
    assert len(meetings) == 5
    clean = subprocess.run([*watched("clean", engine), *map(str, files)], capture_output=True, text=True)
    assert clean.stdout == "done\n" and clean.returncode == 0, clean.stderr[:2000]
    for start, end in meetings:
        racing = watched(f"race {start}", f"{engine[:start]};{engine[end:]}")
        done = subprocess.run([*racing, *map(str, files)], capture_output=True, text=True)
        assert "WARNING: ThreadSanitizer: data race" in done.stderr, engine[:end].splitlines()[-1]


# -- the same through Python: always a one-line ValueError -------------------------------------------------------------


@pytest.fixture(scope="module")
def data(files):
    return files[0].read_bytes()


def repaired(data):
    """The file with its size and checksum put right."""
    return data[:8] + struct.pack("<2I", len(data), zlib.crc32(data[16:])) + data[16:]


def with_long_runs(data):
    """The file with a run of its first product that has an index longer than the kernel's table of rows."""
    ops_at, n_ops = struct.unpack_from("<I", data, 28)[0], struct.unpack_from("<I", data, 20)[0]
    chunks = [ops_at + 160 * i + 32 for i in range(n_ops)]
    at = next(at for at in chunks if struct.unpack_from("<2I", data, at)[1] == packed.INDEXED)
    return data[:at] + struct.pack("<I", kernels.SPMM_MAX_K_TILE + 1) + data[at + 4 :]


@needs_c
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda d: b"", "cut short"),
        (lambda d: d[:40], "cut short"),
        (lambda d: d[:-1], "cut short"),
        (lambda d: d + b"\0", "cut short"),
        (lambda d: b"X" + d[1:], "does not begin"),
        (lambda d: d[:4] + b"\x09" + d[5:], "another version"),
        (lambda d: d[:-80] + b"\x01" + d[-79:], "checksum"),
        (lambda d: repaired(d[:16] + b"\xff\xff\xff\xff" + d[20:]), "a section lies outside"),
        (lambda d: repaired(d[:32] + b"\0\0\0\0" + d[36:]), "arena is too small"),
        (
            lambda d: repaired(d[:32] + b"\xff\xff\xff\xff" + d[36:48] + b"\x00\x00\xff\xff" + d[52:]),
            "a section lies|malformed",
        ),
        (lambda d: repaired(with_long_runs(d)), "block counts or columns"),
        (lambda d: repaired(d.replace(b'"names"', b'"nemas"')), "description is malformed"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_in_one_line(data, damage, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        Engine(damage(data))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@needs_c
def test_a_file_with_flipped_bits_runs_or_is_a_value_error(data):
    g = np.random.default_rng(0)
    ran = 0
    for _ in range(400):
        flipped = np.frombuffer(data, np.uint8).copy()
        for at in g.integers(16, len(data), g.integers(1, 4)):
            flipped[at] ^= 1 << g.integers(8)
        try:
            engine = Engine(repaired(flipped.tobytes()))
        except ValueError as error:
            assert "\n" not in str(error)
            continue
        if np.prod(engine.shape) < 10**6:
            engine(torch.zeros(1, *engine.shape))
            ran += 1
    assert ran > 100


@slow
def test_a_mobilenet_is_fuzzed_too(sanitized, tmp_path):
    net = thinned(lab.nets.mobilenet_v1(0.25, 10), 0.5)
    file = tmp_path / "model.sbnn"
    file.write_bytes(packed.write(compiler.compile(net, torch.zeros(1, 3, 32, 32))))
    assert fuzz(sanitized("fuzz"), file, 200)[0] > 5  # as many damaged ones at least are let in and run


@needs_c
def test_names_are_kept_beside_the_operators(data):
    meta = json.loads(data[slice(*np.cumsum(struct.unpack_from("<2I", data, 52)))])
    assert len(meta["names"]) == len(packed.read(data).ops)
