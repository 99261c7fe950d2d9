"""An ONNX file in OpenVINO: as a module that can be scored and timed, and in which precision each layer runs there."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..distribution import install
from .runtime import Deployed

_LAYERS = {"Convolution", "Deconvolution", "FullyConnected", "MatMul"}
_INTEGER = {"i8", "u8"}


class DeployedOpenVINO(nn.Module):
    """A file on OpenVINO's CPU plugin, one thread: tensors in, in the order of its inputs; a tensor out, or several.

    Float is computed as float32, whatever shorter kinds the processor has. Needs the extra `openvino`.
    """

    def __init__(self, model: bytes | str | Path) -> None:
        super().__init__()
        openvino = _openvino()
        core = openvino.Core()
        read = core.read_model(model) if isinstance(model, bytes) else core.read_model(str(model))
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        self.compiled = core.compile_model(read, "CPU", settings)
        self.names = [end.any_name for end in self.compiled.outputs]

    def forward(self, *inputs: Tensor) -> Tensor | dict[str, Tensor]:
        results = self.compiled([x.detach().cpu().contiguous().numpy() for x in inputs])
        outputs = [torch.from_numpy(results[end].copy()) for end in self.compiled.outputs]
        return outputs[0] if len(outputs) == 1 else dict(zip(self.names, outputs, strict=True))


@dataclass(frozen=True)
class OpenVINOReport:
    """Where a file's outputs are and how they are computed.

    difference: the largest between OpenVINO and onnxruntime on the same pictures, as a share of the largest output.
    precisions: how many layers OpenVINO runs in each type of numbers, 'i8' and 'u8' on integers. On x86 processors
    without VNNI it adds two products of 8 bits in 16 bits, which saturate: there weights of 7 bits are exact, and those
    of 8 may be far off.
    """

    difference: float
    precisions: dict[str, int]

    @property
    def integers(self) -> int:
        """How many layers run on integers."""
        return sum(count for kind, count in self.precisions.items() if kind in _INTEGER)


def openvino_report(model: bytes | str | Path, *inputs: Tensor) -> OpenVINOReport:
    """Run one file in OpenVINO and in onnxruntime on the same inputs; needs the extras `openvino` and `export`."""
    theirs, ours = DeployedOpenVINO(model), Deployed(model)
    pairs = [_tensors(run(*inputs)) for run in (theirs, ours)]
    apart = [
        float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in zip(*pairs, strict=True) if b.numel()
    ]
    return OpenVINOReport(max(apart), precisions(theirs))


def precisions(deployed: DeployedOpenVINO) -> dict[str, int]:
    """How many convolutions, linear layers and products are run in each type of numbers, as OpenVINO has chosen."""
    counts: Counter[str] = Counter()
    for operator in deployed.compiled.get_runtime_model().get_ops():
        about: Any = operator.get_rt_info()
        if str(about["layerType"].astype(str)) in _LAYERS:
            counts[str(about["runtimePrecision"].astype(str))] += 1
    return dict(counts)


def _tensors(output: Tensor | dict[str, Tensor]) -> list[Tensor]:
    return list(output.values()) if isinstance(output, dict) else [output]


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise ImportError(f"running ONNX in OpenVINO needs openvino: {install('openvino')}") from error
    return openvino
