"""An ONNX file in onnxruntime, on one thread, as a module that can be scored and timed beside others."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def session(model: bytes | str | Path, keep: str | Path | None = None) -> Any:
    """An onnxruntime session of a file or its bytes, one thread; `keep` is where the optimised graph is written.

    A processor without VNNI adds two products of uint8 and int8 in 16 bits, which overflow: onnxruntime is told to take
    exact kernels there, which it does not by itself. The graph that is kept still names the codes as they were written.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("running ONNX needs onnxruntime: pip install 'lab[export]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if keep is None:
        options.add_session_config_entry("session.x64quantprecision", "1")
    else:
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
