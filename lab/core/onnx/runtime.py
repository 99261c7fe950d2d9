"""An ONNX file in onnxruntime, on one thread, as a module that can be scored and timed beside others."""

from pathlib import Path
from typing import Any

import numpy as np
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
    options.log_severity_level = 4
    if keep is None:
        options.add_session_config_entry("session.x64quantprecision", "1")
    else:
        options.optimized_model_filepath = str(keep)
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def loadable(content: bytes) -> bytes:
    """`content`, the bytes of a file, if onnx and onnxruntime (where it is installed) load it; else ValueError."""
    import onnx

    try:
        onnx.checker.check_model(content, full_check=True)
        session(content)
    except ImportError:
        pass
    except Exception as error:  # both raise kinds of their own
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the ONNX file would not load, nothing was written: {reason}") from error
    return content


def as_input(x: Tensor) -> np.ndarray:
    """A tensor as onnxruntime reads it; anything but real float32 is a one-line ValueError."""
    if x.dtype != torch.float32:
        raise ValueError(f"x is {x.dtype}: onnxruntime reads real float32 here, call x.float() on real numbers")
    return x.detach().cpu().contiguous().numpy()


class Deployed(nn.Module):
    """A session as a module: (N, C, H, W) float32 in, a tensor out."""

    def __init__(self, model: bytes | str | Path) -> None:
        super().__init__()
        self.session = session(model)
        ends = self.session.get_inputs(), self.session.get_outputs()
        if [len(end) for end in ends] != [1, 1]:
            raise ValueError(f"the file has {len(ends[0])} inputs and {len(ends[1])} outputs: one each is run here")
        self.input = ends[0][0].name

    def forward(self, x: Tensor) -> Tensor:
        (output,) = self.session.run(None, {self.input: as_input(x)})
        return torch.from_numpy(output)
