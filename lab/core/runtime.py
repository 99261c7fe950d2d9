"""An ONNX file in onnxruntime, on one thread, as a module that can be scored and timed beside others."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def session(model: bytes | str | Path, keep: str | Path | None = None) -> Any:
    """An onnxruntime session of a file or its bytes, one thread; `keep` is where the optimised graph is written."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("running ONNX needs onnxruntime: pip install 'lab[export]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if keep is not None:
        options.optimized_model_filepath = str(keep)
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


class Deployed(nn.Module):
    """A session as a module: (N, C, H, W) float32 in, a tensor out."""

    def __init__(self, model: bytes | str | Path) -> None:
        super().__init__()
        self.session = session(model)
        self.input = self.session.get_inputs()[0].name

    def forward(self, x: Tensor) -> Tensor:
        (answer,) = self.session.run(None, {self.input: x.contiguous().numpy()})
        return torch.from_numpy(answer)
