"""The kernels on 64-bit ARM, on a machine that has none: cross-compiled, run by qemu, counted, and modelled.

Emulated time says nothing; what is exact is the number of instructions that a program executes. How many cycles an
inner loop takes, with all its operands in the first-level cache, is what llvm-mca says of it. Its model of Neoverse N1
is the one to ask: what it calls cortex-a76, the same core in a phone, is an older core's.
"""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CC, QEMU, HOST_CC = "aarch64-linux-gnu-gcc", "qemu-aarch64", "gcc"
DUMP, MCA = "llvm-objdump-19", "llvm-mca-19"
CLANG = "clang-19 --target=aarch64-linux-gnu -I/usr/aarch64-linux-gnu/include"
CORE, MODEL = "cortex-a76", "neoverse-n1"
HERTZ = 2.84e9  # the prime core of a Snapdragon 855
LANES, VECTORS = 4, 4  # of spmm's tile: four vectors of four pixels x 4 rows
_WARNINGS = ("-Wall", "-Wextra", "-Werror")


def missing(*tools: str) -> str:
    """The tools that this machine lacks, with what installs them; empty where all are there."""
    absent = [tool for tool in tools if not shutil.which(tool.split()[0])]
    packages = "gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user clang-19 lld-19 llvm-19"
    return f"{', '.join(absent)} not found: apt-get install {packages}" if absent else ""


def library(folder: Path, cc: str = CC) -> Path:
    """`make kernels-arm` into a folder."""
    make = ["make", "--silent", "-C", str(HERE.parent), "kernels-arm", f"ARM={folder}", f"CC={cc}"]
    subprocess.run([*make, f"CFLAGS=-O3 -fPIC {' '.join(_WARNINGS)}"], check=True, capture_output=True, text=True)
    return folder / "libsbnn.a"


def program(source: Path, built: Path, *flags: str) -> Path:
    """A C program linked with the library in the folder of `built`, as one static file beside it."""
    made = built.parent / source.stem
    inputs = ["-static", f"-I{built.parent}", str(source), str(built), "-lm", "-lpthread"]
    # -O2: at -O3 gcc 12's cross compiler fails on some loops that are not ours
    subprocess.run([CC, "-O2", *_WARNINGS, *flags, *inputs, "-o", str(made)], check=True)
    return made


def emulated(made: Path, *arguments: object, options: tuple[str, ...] = ()) -> str:
    """What a program prints under qemu."""
    command = [QEMU, "-cpu", CORE, *options, str(made), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def counter(folder: Path) -> Path:
    """The plugin that counts instructions."""
    made = folder / "count.so"
    source = str(HERE / "tools" / "count.c")
    subprocess.run([HOST_CC, "-O2", *_WARNINGS, "-shared", "-fPIC", source, "-o", str(made)], check=True)
    return made


def count(plugin: Path, made: Path, *arguments: object) -> tuple[int, int]:
    """(all, FMLA on four floats): the instructions that a program executes."""
    with tempfile.NamedTemporaryFile(dir=plugin.parent) as report:
        emulated(made, *arguments, options=("-plugin", str(plugin), "-d", "plugin", "-D", report.name))
        numbers = Path(report.name).read_text().split()
    return int(numbers[0]), int(numbers[1])


def count_pass(plugin: Path, steps: Path, model: Path, *op: int) -> tuple[int, int]:
    """(all, FMLA): the instructions of one pass through a packed network, or one operator of it."""
    once, never = (count(plugin, steps, model, times, *op) for times in (1, 0))
    return once[0] - never[0], once[1] - never[1]


def fmla_of_spmm(blocks: int, pixels: int) -> int:
    """How many FMLA a product of `blocks` 4 x 1 blocks needs: 4 a vector of pixels, 16 a whole tile of 16 pixels.

    One pixel behind the last whole vector is one FMLA over the four rows.
    """
    vectors, rest = divmod(pixels, LANES)
    return blocks * (4 * vectors + (1 if rest == 1 and vectors else 4 if rest else 0))


def tiles(pixels: int) -> list[int]:
    """FMLA a block of each tile that spmm cuts a map into, as equal as can be."""
    full, rest = divmod(pixels, LANES)
    tail = rest == 1 and full > 0
    vectors = full + (rest > 0 and not tail)
    sizes = []
    for left in range(-(-vectors // VECTORS), 0, -1):
        sizes.append(4 * -(-vectors // left))
        vectors -= sizes[-1] // 4
    if tail:
        sizes[-1] += 1
    return sizes


def spmm_loops(built: Path) -> dict[tuple[int, bool], list[str]]:
    """The inner loops of spmm in the library: (FMLA a block, whether columns are read from an index) -> instructions.

    They differ from other loops by their FMLA with a lane of the weights, four to each vector of X that they load.
    """
    loops = {}
    for loop in _inner_loops(built):
        lanes = [i for i in loop if re.match(r"fmla\s+v\d+\.4s, v\d+\.4s, v\d+\.s\[[0-3]\]", i)]
        if len(lanes) % 4 < 2 and len(lanes) // 4 == _loads(loop) in range(1, VECTORS + 1):
            loops[len(lanes), any(i.startswith("ldrh") for i in loop)] = loop
    return loops


def _loads(loop: list[str]) -> int:
    """Vectors of X that a loop loads: all but the one of weights."""
    pairs = sum(bool(re.match(r"ldp\s+q", i)) for i in loop)
    return 2 * pairs + sum(bool(re.match(r"ldu?r\s+q", i)) for i in loop) - 1


def _inner_loops(built: Path) -> list[list[str]]:
    """Every run of instructions that ends with a jump to its beginning and has no other jump."""
    text = subprocess.run(
        [DUMP, "-d", "--no-show-raw-insn", str(built)], check=True, capture_output=True, text=True
    ).stdout
    loops = []
    for function in re.split(r"\n\n|\nDisassembly", text):
        lines = re.findall(r"^\s*([0-9a-f]+):\s+([^<\n/]+)", function, re.M)
        index = {at: i for i, (at, _) in enumerate(lines)}
        for i, (_, what) in enumerate(lines):
            jump = re.match(r"(?:b\.\w+|cbn?z|tbn?z)\s.*?0x([0-9a-f]+)\s*$", what)
            if jump and index.get(jump[1], i) < i:
                body = [inner.strip() for _, inner in lines[index[jump[1]] : i + 1]]
                if not any(re.match(r"(b|b\.\w+|bl|cbn?z|tbn?z|ret)\b", inner) for inner in body[:-1]):
                    loops.append(body)
    return loops


def stack_references(loop: list[str]) -> int:
    """Instructions of a loop that touch the stack."""
    return sum(bool(re.search(r"\bsp\b", i)) for i in loop)


def cycles(loop: list[str]) -> float:
    """Cycles of one round of a loop in the model, operands in the first-level cache."""
    rounds = 1000
    text = "\n".join([*loop[:-1], re.sub(r"0x[0-9a-f]+\s*$", ".", loop[-1])])
    command = [MCA, "-mtriple=aarch64-linux-gnu", f"-mcpu={MODEL}", f"-iterations={rounds}", "-"]
    report = subprocess.run(command, input=text, check=True, capture_output=True, text=True).stdout
    return int(re.search(r"Total Cycles:\s+(\d+)", report)[1]) / rounds
