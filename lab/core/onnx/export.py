"""A network as an ONNX file that runs without the lab and without Python."""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from .. import store
from ..task import evaluating
from .runtime import loadable


def onnx(model: nn.Module, path: str | Path, example: torch.Tensor) -> Path:
    """Write the model in eval mode as one ONNX file, its batch axis free; returns the path.

    `example` is one input with its batch axis. Needs the extra `export`; a failed export leaves no file behind.
    """
    try:
        import onnxscript  # noqa: F401  what torch.onnx.export builds the graph with
    except ImportError as error:
        raise ImportError("exporting to ONNX needs onnx and onnxscript: pip install 'lab[export]'") from error
    device = next(model.parameters(), example).device
    with tempfile.TemporaryDirectory() as folder, evaluating(model), _quiet():
        draft = Path(folder) / "model.onnx"
        batch = torch.export.Dim("batch")
        torch.onnx.export(
            model,
            (torch.cat([example, example]).to(device),),
            draft,
            dynamo=True,
            dynamic_shapes=({0: batch},),
            input_names=["input"],
            output_names=["output"],
            external_data=False,
            verbose=False,
        )
        store.write(Path(path), loadable(draft.read_bytes()))
    return Path(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter warns and logs of its own internals, and of packages that are not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
