"""The kernels of each instruction set beside the references, over random shapes that hurt, and threads under a watch.

The drivers are those of the tests (`tests/sparsebytenn/c`): `kernels.c` under the address and undefined-behaviour
sanitizers, with NaN where nothing may be read, from three threads; `threads.c`, three threads that run a network
together, under the thread sanitizer. NEON runs under qemu, where the cross compiler is. Beside the reference in numpy
are the plain C (`scalar`, and each other set of this machine with it) and the builds for browsers in node: `shapes.py`.
"""

import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from lab.core import kernels
from lab.sparsebytenn import compiler, packed

from . import shapes

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from tests.sparsebytenn.native import HERE, KERNELS, arm, every_kind, rolled, small_networks  # noqa: E402

SOURCES = [ROOT / "ckernels" / f"{name}.c" for name in (
    "ref", "avx2", "avx512", "neon", "check", "check_tables", "text", "engine", "operators", "dispatch",
)]  # fmt: skip
ROUNDS = {"neon": 4, "neondot": 4}  # of all kernels from each of three threads, a cell; elsewhere 240
CELLS = {"neon": 12, "neondot": 12, "threads": 30, "scalar": 100, "odd arrays": 1}  # elsewhere 10
SHAPES = {"scalar": 1001, "WebAssembly": 209}  # a cell
CHECKED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def cells(quick: bool) -> list[tuple[str, int]]:
    """(instruction set, or what else is looked at, seed)."""
    names = [name for name in ("avx512", "avx2") if name in kernels.isas()]
    names += [] if arm.missing(arm.CC, arm.QEMU) else ["neon", "neondot"]
    names += ["threads", "scalar", "odd arrays", *(["WebAssembly"] if shapes.test_web.node else [])]
    counts = {name: 1 if quick else CELLS.get(name, 10) for name in names}
    return [(name, seed) for seed in range(max(counts.values())) for name in names if seed < counts[name]]


@cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="kernels-"))


@cache
def built(driver: str, *flags: str) -> Path:
    """A driver with all kernels."""
    made = folder() / driver
    sources = [str(path) for path in (HERE / f"{driver}.c", *SOURCES)]
    command = ["gcc", "-O1", "-g1", *flags, f"-I{ROOT / 'ckernels'}", *sources, "-lm", "-lpthread", "-o", str(made)]
    subprocess.run(command, check=True)
    return made


@cache
def emulated() -> Path:
    """The driver of the kernels for 64-bit ARM."""
    place = folder() / "arm"
    place.mkdir()
    return arm.program(HERE / "kernels.c", arm.library(place), "-lpthread")


@cache
def networks() -> list[Path]:
    """Packed networks of every operator, also with their maps in rolling row buffers."""
    made = {"every kind": every_kind(), "every kind, rolled": rolled(every_kind())}
    for name, (net, shape) in small_networks().items():
        made[name] = compiler.compile(net, torch.zeros(1, *shape))
    for name, network in made.items():
        (folder() / f"{name}.sbnn").write_bytes(packed.write(network))
    return sorted(folder().glob("*.sbnn"))


LOOKED: dict[str, Callable[[int], tuple[int, list[str]]]] = {
    "scalar": lambda seed: shapes.in_c(seed, SHAPES["scalar"]),
    "WebAssembly": lambda seed: shapes.in_node(seed, SHAPES["WebAssembly"]),
    "odd arrays": lambda seed: shapes.odd_arrays(),
}


def run(item: tuple[str, int]) -> dict[str, Any]:
    """How many outputs were compared, and what was wrong."""
    name, seed = item
    if name in LOOKED:
        compared, faults = LOOKED[name](seed)
        return {"compared": compared, "faults": faults}
    if name == "threads":
        paths = random.Random(seed).sample(networks(), len(networks())) * 5
        done = subprocess.run([built("threads", "-fsanitize=thread"), *paths], capture_output=True, text=True)
        is_clean = done.returncode == 0 and done.stdout == "done\n"
        return {"compared": 2 * len(paths), "faults": [] if is_clean else [done.stderr[:500]]}
    rounds = ROUNDS.get(name, 240)
    command = [arm.QEMU, emulated()] if name.startswith("neon") else [built("kernels", *CHECKED)]
    done = subprocess.run([*command, name, str(seed), str(rounds)], capture_output=True, text=True)
    found = re.findall(rf"{name} (\w+) compared (\d+) wrong (\d+) nan \d+", done.stdout)
    faults = [f"{kernel}: {wrong} of {count} are wrong" for kernel, count, wrong in found if int(wrong)]
    if done.returncode or [kernel for kernel, *_ in found] != KERNELS:
        faults.append(f"ended with {done.returncode}: {(done.stdout + done.stderr)[-500:]}")
    return {"compared": sum(int(count) for _, count, _ in found), "faults": faults}


def figures(rows: dict[tuple[str, int], dict[str, Any]]) -> dict[str, Any]:
    """By instruction set, how many random shapes; for threads, how many runs of a network by three together."""
    names = dict.fromkeys(name for name, _ in rows)
    compared = {name: sum(row["compared"] for key, row in rows.items() if key[0] == name) for name in names}
    return {"compared": compared, "faults": [f"{key}: {line}" for key, row in rows.items() for line in row["faults"]]}
