"""Compile the kernels for browsers: `python ckernels/wasm.py` writes four builds into lab/sparsebytenn/static.

They are kept in the repository, for whoever installs the lab has no clang; built_from.json beside them says what they
were made from. Compiled and linked in two steps, or clang would hand the result to a wasm-opt that it finds on the way.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
STATIC = HERE.parent / "lab" / "sparsebytenn" / "static"
SOURCES = (
    "ref.c", "simd128.c", "dispatch.c", "check.c", "check_tables.c", "text.c", "engine.c", "operators.c", "wasm.c",
)  # fmt: skip
RELAXED = ("-msimd128", "-mrelaxed-simd")
BUILDS = {"scalar": ("-Os",), "simd128": ("-msimd128",), "relaxed": RELAXED, "threads": (*RELAXED, "-matomics")}
# Threads are instances over one memory that the page makes, of 1 MiB at first; each sets its stack's pointer.
SHARED = (
    "--import-memory", "--shared-memory", "--initial-memory=1048576", "--max-memory=4294967296",
    "--export=__stack_pointer",
)  # fmt: skip
CLANG, LINKER = "clang-19", "wasm-ld-19"
FLAGS = ("--target=wasm32-unknown-unknown", "-O3", "-fno-builtin", "-ffp-contract=off", "-mbulk-memory")


def read_files(names: tuple[str, ...]) -> set[str]:
    """These files and all that they include, one through the other."""
    files: set[str] = set()
    left = list(names)
    while left:
        name = left.pop()
        if name not in files:
            files.add(name)
            left += re.findall(r'^#include "(.+)"', (HERE / name).read_text(encoding="utf-8"), re.MULTILINE)
    return files


def sources_now() -> str:
    """SHA-256 over the names and contents of what the builds are made from, this script among it."""
    digest = hashlib.sha256()
    for name in sorted(read_files(SOURCES) | {"wasm.py"}):
        digest.update(name.encode() + b"\0" + (HERE / name).read_bytes() + b"\0")
    return digest.hexdigest()


def compiled(build: str) -> bytes:
    """One build."""
    with tempfile.TemporaryDirectory() as folder:
        objects = [f"{folder}/{source}.o" for source in SOURCES]
        for source, made in zip(SOURCES, objects, strict=True):
            subprocess.run([CLANG, *FLAGS, *BUILDS[build], "-c", source, "-o", made], cwd=HERE, check=True)
        shared = SHARED if build == "threads" else ()
        subprocess.run([LINKER, "--no-entry", "--strip-all", *shared, *objects, "-o", f"{folder}/all.wasm"], check=True)
        return Path(folder, "all.wasm").read_bytes()


def compiler() -> str:
    """Which clang it is: another one may compile the same sources to other bytes."""
    return subprocess.run([CLANG, "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0]


def main() -> int:
    if not all(map(shutil.which, (CLANG, LINKER))):
        print(f"{CLANG} and {LINKER} are needed: apt-get install clang-19 lld-19", file=sys.stderr)
        return 1
    STATIC.mkdir(exist_ok=True)
    for build in BUILDS:
        (STATIC / f"{build}.wasm").write_bytes(compiled(build))
    (STATIC / "built_from.json").write_text(json.dumps({"sources": sources_now(), "compiler": compiler()}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
