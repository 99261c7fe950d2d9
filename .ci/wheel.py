"""Does a wheel that was just built bring its kernels, and do they compute? `python .ci/wheel.py [numpy]`"""

import sys

import numpy as np

import lab
from lab.core import kernels

WANTED = sys.argv[1] if len(sys.argv) > 1 else "c"


def main() -> None:
    """Multiply by a sparse matrix as the kernels do, and as numpy does."""
    assert kernels.backend() == WANTED, f"backend {kernels.backend()}, not {WANTED}"
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((32, 48)).astype(np.float32)
    dense[::4] = 0
    x = rng.standard_normal((48, 64)).astype(np.float32)
    y = kernels.spmm(kernels.pack(dense), x)
    np.testing.assert_allclose(y, dense @ x, rtol=1e-4, atol=1e-4)
    print(f"lab {lab.__version__}: backend {kernels.backend()}, {y.shape} right")


if __name__ == "__main__":
    main()
