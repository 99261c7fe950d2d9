"""An ONNX file in onnxruntime, on one thread, as a module that can be scored and timed beside others."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..distribution import install


def session(model: bytes | str | Path, keep: str | Path | None = None) -> Any:
    """An onnxruntime session of a file or its bytes, one thread; `keep` is where the optimised graph is written.

    A processor without VNNI adds two products of uint8 and int8 in 16 bits, which overflow: onnxruntime is told to take
    exact kernels there, which it does not by itself. The graph that is kept still names the codes as they were written.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"running ONNX needs onnxruntime: {install('export')}") from error
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


def as_input(x: Tensor, kind: str = "tensor(float)") -> np.ndarray:
    """A tensor as onnxruntime reads it; one that is not of this kind is a one-line ValueError."""
    wanted = {"tensor(int64)": torch.int64, "tensor(int32)": torch.int32, "tensor(bool)": torch.bool}.get(kind)
    if wanted is None and x.dtype != torch.float32:
        raise ValueError(f"x is {x.dtype}: onnxruntime reads real float32 here, call x.float() on real numbers")
    if wanted is not None and x.dtype != wanted:
        raise ValueError(f"x is {x.dtype}: this input of the file reads {kind}, call x.to({wanted})")
    return x.detach().cpu().contiguous().numpy()


def fed(ends: list[Any], inputs: tuple[Tensor, ...]) -> dict[str, np.ndarray]:
    """Tensors by the names of the inputs that a session has, in their order."""
    if len(ends) != len(inputs):
        names = ", ".join(end.name for end in ends)
        raise ValueError(f"{len(inputs)} tensors were given, the file reads {len(ends)}: give {names}")
    return {end.name: as_input(x, end.type) for end, x in zip(ends, inputs, strict=True)}


class Deployed(nn.Module):
    """A session as a module: tensors in, in the order of the file's inputs; a tensor out, or several by name."""

    def __init__(self, model: bytes | str | Path) -> None:
        super().__init__()
        self.session = session(model)
        self.names = [end.name for end in self.session.get_outputs()]

    def forward(self, *inputs: Tensor) -> Tensor | dict[str, Tensor]:
        outputs = [torch.from_numpy(y) for y in self.session.run(None, fed(self.session.get_inputs(), inputs))]
        return outputs[0] if len(outputs) == 1 else dict(zip(self.names, outputs, strict=True))
