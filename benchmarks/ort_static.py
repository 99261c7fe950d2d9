"""onnxruntime's own static quantisation of a float network, at 8 bits: the rival of PAMS and DQSS outside the lab.

At 4 bits it puts codes of 4 bits in front of a pooling, which it then refuses to load.
"""

import tempfile
from copy import deepcopy
from pathlib import Path

import onnx
import torch
from onnxruntime import quantization
from torch import fx

from lab.core.batch import moved
from lab.core.onnx import qdq
from lab.core.onnx.runtime import Deployed, as_input
from lab.core.quantisation.bn_folding import fold_batch_norms
from lab.core.task import Task


def deployed(task: Task, pictures: list[torch.Tensor], method: str) -> Deployed:
    """`quantised` of the task's network, as a module that has a hash."""
    graph = fold_batch_norms(deepcopy(task.model).cpu(), moved(task.example, "cpu"))  # it runs on the processor alone
    content = quantised(graph, pictures, method)
    network = Deployed(content)
    network.register_buffer("file", torch.frombuffer(bytearray(content), dtype=torch.uint8))  # so that it has a hash
    return network


def quantised(graph: fx.GraphModule, pictures: list[torch.Tensor], method: str) -> bytes:
    """`quantize_static` of a float graph: QDQ pairs, unsigned activations, signed weights, a step a tensor.

    `method` calibrates, 'MinMax', 'Entropy' or 'Percentile'.
    """
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "float.onnx", Path(folder) / "rounded.onnx"
        model = qdq.to_model(graph)
        for node in model.graph.node:
            node.name = node.output[0]
        onnx.save(model, before)
        quantization.quantize_static(
            before,
            after,
            Pictures(pictures),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod[method],
        )
        return after.read_bytes()


class Pictures(quantization.CalibrationDataReader):
    """Pictures as onnxruntime's tool asks for them."""

    def __init__(self, pictures: list[torch.Tensor]) -> None:
        self.rest = iter(pictures)

    def get_next(self) -> dict | None:
        x = next(self.rest, None)
        return None if x is None else {"input": as_input(x)}
