"""A network as an ONNX file that runs without the lab and without Python."""

import tempfile
from pathlib import Path

import torch
from torch import nn

from .. import program, store
from ..batch import Example
from ..distribution import install
from ..errors import first_line, quiet
from ..quantisation.bn_folding import fold_batch_norms
from ..task import evaluating
from . import qdq
from .runtime import loadable


def onnx(model: nn.Module, path: str | Path, example: Example, opset: int = 17) -> Path:
    """Write the model in eval mode as one ONNX file, its batch axis free; returns the path.

    `example` is one input with its batch axis, or several. Batch norms are folded into their convolutions. A network
    with an operator that `qdq` has no form for is left to torch.onnx.export, which takes one input and its own opset.
    A path that ends in .pt2 is written as a `torch.export` program. All else needs the extra `export`. ValueError where
    neither can write it; a failed export leaves no file behind.
    """
    if Path(path).suffix == ".pt2":
        return program.write(model, path, example)
    try:
        return qdq.write(fold_batch_norms(model, example), path, opset)
    except ValueError as error:
        if not isinstance(example, torch.Tensor) or not qdq.OPSETS[0] <= opset <= qdq.OPSETS[1]:
            raise
        reason = first_line(error)
    try:
        return _by_torch(model, path, example)
    except ImportError as error:
        raise ImportError(f"exporting to ONNX needs onnx and onnxscript: {install('export')}") from error
    except Exception as error:  # of many kinds, some with pages of advice
        raise ValueError(f"{reason}; nor can torch.onnx.export write it ({type(error).__name__})") from error


def _by_torch(model: nn.Module, path: str | Path, example: torch.Tensor) -> Path:
    """The same by torch's exporter, which asks for two samples: one alone would be a number to it."""
    device = next(model.parameters(), example).device
    with tempfile.TemporaryDirectory() as folder, evaluating(model), quiet("torch.onnx"):
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
