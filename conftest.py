"""One torch thread in every test, notebook and process of a test, and no progress bar in notebooks."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # a reader's own kernels and settings must not be found first


def pytest_configure(config) -> None:
    """A bar would be an output of its cell."""
    if any("notebooks" in argument for argument in config.args):
        os.environ.setdefault("TQDM_DISABLE", "1")


def pytest_collectstart(collector) -> None:
    """Networks that a test file makes while it is imported have the same weights whichever files were read before."""
    import torch  # after OMP_NUM_THREADS is set

    torch.manual_seed(0)
