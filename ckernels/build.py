"""Compile the kernels into lab/core/_kernels: `python ckernels/build.py`, or as part of `pip install`.

One extension module for every CPython (abi3), made by cffi, which releases the GIL around each call. It is optional:
without a C compiler the install goes through and numpy does the kernels' work.
"""

import hashlib
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
SOURCES = sorted(HERE.glob("*.c"))


def source_hash(folder: Path = HERE) -> str:
    """SHA-256 over the names and contents of the C sources and the header, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.c"), *folder.glob("*.h")], key=lambda path: path.name):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


ffi = FFI()
ffi.cdef((HERE / "kernels.h").read_text(encoding="utf-8"))
ffi.cdef("const char *source_hash(void);")
ffi.set_source(
    "lab.core._kernels",
    f"""
    #include <stdint.h>
    #include "kernels.h"
    static const char *source_hash(void) {{ return "{source_hash()}"; }}  /* lets lab.core.kernels see a stale build */
    """,
    sources=[str(path) for path in SOURCES],
    include_dirs=[str(HERE)],
    depends=[str(HERE / "kernels.h")],
    extra_compile_args=["-O3", "-g0"],  # what a debugger reads would be four fifths of the module
    optional=True,
)

if __name__ == "__main__":
    import subprocess
    import sys

    build = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    sys.exit(subprocess.run(build, cwd=HERE.resolve().parent).returncode)
