"""What onnxruntime makes of an exported network: which layers and products run on integers, why others do not, and how
near each tensor is to torch's.
"""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from ..distribution import install, needed
from ..graph.tracing import module_of
from ..quantisation.qparams import FixedQuantiser, is_quantiser
from ..task import evaluating
from .qdq import to_model, written
from .runtime import fed, session

_INTEGER = {"QLinearConv", "ConvInteger", "QGemm", "MatMulIntegerToFloat", "QLinearMatMul", "MatMulInteger"}
_LAYERS = {"Conv", "ConvTranspose", "Gemm"}
_UNKNOWN = "onnxruntime left it in float on this machine, although all around it is quantised"


@dataclass(frozen=True)
class Fused:
    """A layer of the exported graph, or a product of two tensors: whether it runs on integers here, and if not why."""

    layer: str
    integer: bool
    reason: str = ""


@dataclass(frozen=True)
class Fusion:
    """Layers and products one by one; `share` of them on integers, `operators` of the optimised graph by name."""

    rows: tuple[Fused, ...]
    operators: dict[str, int]

    @property
    def share(self) -> float:
        return sum(row.integer for row in self.rows) / len(self.rows) if self.rows else 0.0

    def __repr__(self) -> str:
        count = sum(row.integer for row in self.rows)
        lines = [f"{count} of {len(self.rows)} layers run on integers"]
        return "\n".join(lines + [f"  {row.layer}: float, {row.reason}" for row in self.rows if not row.integer])

    def to_frame(self) -> Any:
        """One row a layer, as a pandas DataFrame."""
        with needed():
            import pandas

        return pandas.DataFrame([vars(row) for row in self.rows]).set_index("layer")


def fusion(model: fx.GraphModule | bytes | str | Path) -> Fusion:
    """Ask onnxruntime for its optimised graph of a network (or of an ONNX file) and say what became of each layer."""
    onnx = _onnx()
    source = to_model(model) if isinstance(model, fx.GraphModule) else _loaded(onnx, model)
    for node in source.graph.node:
        node.name = node.output[0]  # a node that takes another's place keeps its name
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        session(source.SerializeToString(), keep=path)
        optimised = onnx.load(path).graph
    running = {weight for node in optimised.node if node.op_type in _INTEGER for weight in node.input}
    graph = _Graph(source.graph)
    rows = []
    for conv in filter(graph.is_layer, source.graph.node):
        weight = graph.made_by.get(conv.input[1])
        codes = weight.input[0] if weight is not None and weight.op_type == "DequantizeLinear" else None
        is_integer = codes in running and codes is not None
        rows.append(Fused(graph.layer(conv), is_integer, "" if is_integer else graph.reason(conv)))
    kinds = {node.name: node.op_type for node in optimised.node}
    for product in filter(graph.is_product, source.graph.node):
        is_integer = kinds.get(product.name) in _INTEGER
        rows.append(Fused(product.name, is_integer, "" if is_integer else graph.product_reason(product)))
    names = [node.op_type for node in optimised.node]
    return Fusion(tuple(rows), {name: names.count(name) for name in sorted(set(names))})


class _Graph:
    """An ONNX graph by who makes and who reads each tensor."""

    def __init__(self, graph: Any) -> None:
        self.made_by = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[Any]] = {}
        self.constants = {constant.name: constant for constant in graph.initializer}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def is_layer(self, node: Any) -> bool:
        """Whether a node is one of the network's layers; a product of two tensors is none."""
        if node.op_type != "MatMul":
            return node.op_type in _LAYERS
        weight = self.made_by.get(node.input[1])
        return node.input[1].endswith(".weight") and (weight is None or weight.op_type == "DequantizeLinear")

    def is_product(self, node: Any) -> bool:
        """Whether a node is a product of two tensors, as attention has them."""
        return node.op_type == "MatMul" and not self.is_layer(node) and not self.constants.keys() & set(node.input)

    def product_reason(self, product: Any) -> str:
        """Why a product of two tensors cannot run on integers."""
        made = [self.made_by[name].op_type if name in self.made_by else "the input" for name in product.input]
        floats = [kind for kind in made if kind != "DequantizeLinear"]
        return f"it reads a float tensor ({floats[0]})" if floats else _UNKNOWN

    def layer(self, conv: Any) -> str:
        """The name of a convolution's layer, by its weight."""
        weight = self.made_by.get(conv.input[1])
        name = (weight.input[0] if weight is not None else conv.input[1]).partition("#")[0]
        for end in (".w", "_quantized", ".weight"):
            name = name.removesuffix(end)
        return name

    def reason(self, conv: Any) -> str:
        """Why a convolution cannot run on integers, as far as the graph tells."""
        if conv.op_type == "ConvTranspose":
            return "onnxruntime has no integer transposed convolution"
        if conv.input[1] in self.constants:
            return "its weight is float"
        if (bits := self._weight_bits(conv)) < 8:
            return f"onnxruntime has no integer layer for weights of {bits} bits"
        source = self.made_by.get(conv.input[0])
        if source is None or source.op_type != "DequantizeLinear":
            return f"it reads a float tensor ({source.op_type if source is not None else 'the input'})"
        if conv.op_type == "MatMul":
            return _UNKNOWN
        readers = self.readers.get(conv.output[0], [])
        relu = len(readers) == 1 and readers[0].op_type == "Relu"
        behind = self.readers.get(readers[0].output[0], []) if relu else readers
        if not behind or any(node.op_type != "QuantizeLinear" for node in behind):
            kinds = sorted({node.op_type for node in behind if node.op_type != "QuantizeLinear"}) or ["the output"]
            return f"no quantiser stands right behind it ({', '.join(kinds)} reads it)"
        if len(behind) > 1:
            return "several quantisers read it"
        if relu and not self._starts_at_zero(behind[0]):
            return "a ReLU stands before a signed quantiser: its lowest code is not 0, take grid='unsigned'"
        return _UNKNOWN

    def _weight_bits(self, conv: Any) -> int:
        from onnx import TensorProto

        weight = self.made_by[conv.input[1]]
        return 4 if self.constants[weight.input[0]].data_type == TensorProto.INT4 else 8

    def _starts_at_zero(self, quantise: Any) -> bool:
        from onnx import numpy_helper

        zero = numpy_helper.to_array(self.constants[quantise.input[2]])
        return bool(np.all(zero == np.iinfo(zero.dtype).min))


# -- parity ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parity:
    """One quantised tensor: torch's codes beside onnxruntime's, both from onnxruntime's own inputs.

    steps: the largest difference in steps of the grid; unequal: the share of codes that differ.
    """

    tensor: str
    steps: int
    unequal: float


def parity(model: fx.GraphModule, x: Tensor | tuple[Tensor, ...], activation_type: str = "uint8") -> tuple[Parity, ...]:
    """Run a picture, or several inputs, through onnxruntime, and each layer through torch on what onnxruntime fed it.

    Both round to the grids of a file of this `activation_type`.
    """
    onnx = _onnx()
    exported = to_model(model, activation_type=activation_type)
    names = [node.name for node in model.graph.nodes if is_quantiser(module_of(node))]
    codes = [f"{name}.q" for name in names]  # the outputs of the QuantizeLinear nodes
    kind = getattr(onnx.TensorProto, activation_type.upper())
    exported.graph.output.extend(onnx.helper.make_tensor_value_info(c, kind, None) for c in codes)
    given, run = x if isinstance(x, tuple) else (x,), session(exported.SerializeToString())
    values = run.run(codes, fed(run.get_inputs(), given))
    comparison = _Comparison(model, dict(zip(names, values, strict=True)), activation_type)
    with torch.no_grad(), evaluating(model):
        comparison.run(*given)
    return tuple(comparison.rows)


class _Comparison(fx.Interpreter):
    """Runs the network in torch; behind every quantiser it goes on with what onnxruntime had there."""

    def __init__(self, model: fx.GraphModule, codes: dict[str, np.ndarray], activation_type: str) -> None:
        super().__init__(model)
        self.codes, self.activation_type = codes, activation_type
        self.rows: list[Parity] = []

    def run_node(self, n: fx.Node) -> Any:
        output = super().run_node(n)
        if n.name not in self.codes:
            return output
        quantiser: Any = module_of(n)
        qparams = written(quantiser.qparams(), self.activation_type)
        if self.activation_type == "int8":
            output = FixedQuantiser(qparams).to(output.device)(self.env[n.all_input_nodes[0]])
        theirs = torch.from_numpy(self.codes[n.name].astype(np.float32)) - qparams.zero_point
        apart = ((output.cpu() / qparams.scale).round() - theirs).abs()
        self.rows.append(Parity(n.name, int(apart.max()), float((apart > 0).float().mean())))
        return (theirs * qparams.scale).to(output)


def worst(rows: Iterable[Parity]) -> Parity:
    """The tensor that is farthest apart."""
    return max(rows, key=lambda row: (row.steps, row.unequal))


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise ImportError(f"reading ONNX needs onnx: {install('export')}") from error
    return onnx


def _loaded(onnx: Any, model: bytes | str | Path) -> Any:
    return onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(str(model))
