"""What a quantised network's outcome can do on integers, whichever method quantised it."""

from pathlib import Path

from torch import fx, nn

from .. import cost, program
from ..batch import Example
from ..graph.tracing import arguments_of
from ..outcome import Outcome
from ..quantisation.bn_folding import fold_batch_norms
from . import qdq
from .openvino import OpenVINOReport, openvino_report
from .ort_report import Fusion, Parity, fusion, parity
from .runtime import Deployed


class IntegerOutcome(Outcome):
    """An outcome with a quantised `model` and one `example`, a picture (1, C, H, W), or several inputs.

    Where a method takes x, several inputs are a tuple, or a dictionary by the names that forward has for them.
    """

    model: fx.GraphModule
    example: Example

    def export(self, path: str | Path, opset: int = 17, activation_type: str = "uint8") -> Path:
        """Write the network as ONNX with quantisers around every quantised layer; needs the extra `export`.

        A path that ends in .pt2 is written as a `torch.export` program instead, which computes what `model` does.

        activation_type: 'uint8', or 'int8' with zero point 0 and float biases, as TensorRT asks: the 256 codes of a
        tensor that is never negative are then 128. opset: 17 to 21; at 21 weights of up to 4 bits are stored as int4,
        which onnxruntime computes in float.

        A processor without VNNI answers exactly only in a session whose option 'session.x64quantprecision' is '1', as
        `core.onnx.runtime` makes them: onnxruntime's own choice there are products that overflow 16 bits.
        """
        if Path(path).suffix == ".pt2":
            return program.write(self.model, path, self.example)
        return qdq.write(self.model, path, opset, activation_type)

    def fusion(self) -> Fusion:
        """Which layers of the exported network onnxruntime runs on integers, and why others not."""
        return fusion(self.model)

    def parity(self, x: Example | None = None, activation_type: str = "uint8") -> tuple[Parity, ...]:
        """How far each quantised tensor is apart in torch and onnxruntime, on a picture (N, C, H, W)."""
        return parity(self.model, self._inputs(x), activation_type)

    def openvino(self, x: Example | None = None, activation_type: str = "uint8") -> OpenVINOReport:
        """How far OpenVINO's answers to (N, C, H, W) are from onnxruntime's, and how many layers it runs on integers.

        Both read the same file, of this `activation_type`. Needs the extra `openvino`.
        """
        content = qdq.to_model(self.model, activation_type=activation_type).SerializeToString()
        return openvino_report(content, *self._inputs(x))

    def race(self, net: nn.Module, x: Example | None = None, repeats: int = 30) -> dict[str, cost.Latency]:
        """ms of the float network `net` and of this one in onnxruntime, interleaved on one thread: 'fp32', 'int8'."""
        graphs = {"fp32": fold_batch_norms(net, self.example if x is None else x), "int8": self.model}
        deployed = {name: Deployed(qdq.to_model(graph).SerializeToString()) for name, graph in graphs.items()}
        return cost.latencies(deployed, self._inputs(x), repeats=repeats)

    def _inputs(self, x: Example | None) -> tuple:
        """What a file of the network reads, in order: of x, or of the example."""
        return tuple(part for part in arguments_of(self.model, self.example if x is None else x) if part is not None)
