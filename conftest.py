"""One torch thread in every test, every notebook and every process that a test starts; set before torch is imported."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # a reader's own kernels and settings must not be found first


def pytest_collectstart(collector) -> None:
    """Networks that a test file makes while it is imported have the same weights whichever files were read before."""
    import torch  # after OMP_NUM_THREADS is set

    torch.manual_seed(0)
