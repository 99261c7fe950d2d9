"""A quantised network as ONNX: integer weights, and a quantiser with its inverse (Q, DQ) wherever a grid begins.

onnxruntime turns what stands between two such pairs into integer kernels. What it asks for is kept here: uint8
activations, with zero point 128 for signed grids and 0 behind a ReLU; int8 weights; int32 biases on the step
s_x * s_w; a pair behind whatever only moves values (concatenation, pixel shuffle), on the step of what it moves.
Fewer than 8 bits are first written on the 8-bit grid of the same largest value, then on their own.

TensorRT asks for other bytes: int8 activations with zero point 0, and biases in float. A grid of more codes than those
hold, such as the 256 behind a ReLU, is then written with the 127 of the same largest value.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from .. import store
from ..distribution import install
from ..graph.calls import bounds, is_relu
from ..graph.operators import is_cat
from ..graph.tracing import attribute, is_record, module_of, shape
from ..quantisation.placement import kind_of, passes
from ..quantisation.qparams import QParams, is_quantiser
from ..task import evaluating
from . import layers, norms, ops, shapes
from .runtime import loadable
from .shapes import source

OPSETS = (17, 21)  # the oldest with layer norms, and the newest that is written here
TYPES = {torch.float32: np.float32, torch.int64: np.int64, torch.int32: np.int32, torch.bool: np.bool_}
ACTIVATION_TYPES = {"uint8": np.uint8, "int8": np.int8}


@dataclass(frozen=True)
class WrittenGrid:
    """Where a tensor's values lie: scale and zero point as the names of constants, and the scale as a number."""

    scale: str
    zero_point: str
    value: float


def write(model: fx.GraphModule, path: str | Path, opset: int = 17, activation_type: str = "uint8") -> Path:
    """Write a prepared network, quantised or not, as one ONNX file; returns the path.

    It reads 'input' and gives 'output'. Several inputs are called as in forward, several outputs 'output0', 'output1'
    and so on, or by the keys of a dictionary.

    Its axes are free, but all except N are the example's where an operator needs their lengths. activation_type:
    'uint8', or 'int8' with zero point 0. From opset 21 on, weights of up to 4 bits are stored as such.

    Raises ImportError without the extra `export`, ValueError naming an operator that is not known here or why
    onnxruntime would not load the file; none leaves a file behind.
    """
    store.write(Path(path), loadable(to_model(model, opset, activation_type).SerializeToString()))
    return Path(path)


def to_model(model: fx.GraphModule, opset: int = 17, activation_type: str = "uint8") -> Any:
    """The network as an `onnx.ModelProto`."""
    if isinstance(opset, bool) or not isinstance(opset, int) or not OPSETS[0] <= opset <= OPSETS[1]:
        raise ValueError(f"opset={opset!r}: {OPSETS[0]} to {OPSETS[1]} are written here")
    if activation_type not in ACTIVATION_TYPES:
        raise ValueError(f"activation_type={activation_type!r}: choose {' or '.join(ACTIVATION_TYPES)}")
    try:
        from onnx import helper
    except ImportError as error:
        raise ImportError(f"writing ONNX needs onnx: {install('export')}") from error
    inputs, outputs = _inputs(model), _outputs(model)
    writer = _Writer(model, inputs, outputs, opset, activation_type)
    with torch.no_grad(), evaluating(model):
        for node in model.graph.nodes:
            writer.visit(node)
    fixed, described = writer.input_axes(), []
    for k, (name, node) in enumerate((inputs | outputs).items()):
        free = ["N", *(f"{axis}{k}" for axis in range(1, len(shape(node))))]
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(TYPES[node.meta["tensor_meta"].dtype]))
        described.append(helper.make_tensor_value_info(name, kind, fixed.get(name, free)))
    ends = described[: len(inputs)], described[len(inputs) :]
    graph = helper.make_graph(writer.nodes, "lab", *ends, list(writer.constants.values()))
    opsets = [helper.make_opsetid("", opset)]
    ir = helper.find_min_ir_version_for(opsets)
    return helper.make_model(graph, producer_name="lab", ir_version=ir, opset_imports=opsets)


def _inputs(model: fx.GraphModule) -> dict[str, fx.Node]:
    """What the network reads, by name: 'input', or the names of its forward's parameters where it reads several."""
    entries = [node for node in model.graph.nodes if node.op == "placeholder" and shape(node)]
    named = {"input": entries[0]} if len(entries) == 1 else {str(node.target): node for node in entries}
    return {name: _validated(node) for name, node in named.items()}


def _outputs(model: fx.GraphModule) -> dict[str, fx.Node]:
    """What the network gives, by name: 'output', 'output0' and so on, the keys of a dictionary or a record's fields."""
    (tree,) = next(node for node in model.graph.nodes if node.op == "output").args
    outputs = dict(_leaves(tree, "" if isinstance(tree, dict) or is_record(tree) else "output"))
    if not outputs or not all(isinstance(leaf, fx.Node) and shape(leaf) for leaf in outputs.values()):
        raise ValueError(f"the network gives {tree}: tensors are written here, alone, in tuples or in dictionaries")
    return {name: _validated(node) for name, node in outputs.items()}


def _leaves(tree: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The parts of an output by name; what is None is left out."""
    if is_record(tree):
        yield from _leaves(tree.kwargs, name)
    elif isinstance(tree, dict):
        for key, part in tree.items():
            yield from _leaves(part, f"{name}.{key}" if name else str(key))
    elif isinstance(tree, (tuple, list)):
        for k, part in enumerate(tree):
            yield from _leaves(part, f"{name}{k}")
    elif tree is not None:
        yield name, tree


def _validated(node: fx.Node) -> fx.Node:
    if (kind := node.meta["tensor_meta"].dtype) not in TYPES:
        raise ValueError(f"{node.name} is {kind}: real float32 is written here, call float() on network and data")
    return node


@dataclass
class _Writer:
    """The graph as far as it is written: each node's tensor by name, or several, and the grid that it lies on.

    is_fixed: whether an operator was written that needs the lengths of the picture's axes.
    """

    model: fx.GraphModule
    inputs: dict[str, fx.Node]
    outputs: dict[str, fx.Node]
    opset: int
    activation_type: str
    is_fixed: bool = False
    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)
    names: dict[fx.Node, Any] = field(default_factory=dict)
    grids: dict[fx.Node, WrittenGrid] = field(default_factory=dict)
    padded: dict[fx.Node, int] = field(default_factory=dict)

    @cached_property
    def sizes(self) -> tuple[dict[fx.Node, Any], dict[fx.Node, Any]]:
        """What `shapes.sizes` finds."""
        return shapes.sizes(self.model, list(self.inputs.values()), self.constant_calls)

    @cached_property
    def constant_calls(self) -> set[fx.Node]:
        """What `shapes.constants` finds."""
        return shapes.constants(self.model)

    def input_axes(self) -> dict[str, list[Any]]:
        """The lengths of the inputs' axes by name, or nothing where all of them are free."""
        if not self.is_fixed:
            return {}
        few, more = self.sizes
        pairs = {name: zip(few[node], more[node], strict=True) for name, node in self.inputs.items()}
        return {name: ["N" if a != b else a for a, b in lengths] for name, lengths in pairs.items()}

    def visit(self, node: fx.Node) -> None:
        if is_record(node) or (node.op.startswith("call") and "tensor_meta" not in node.meta):
            return  # outputs, which have their names, or a number, which is taken from `sizes` where one is needed
        if node.op == "placeholder":
            self.names[node] = next((name for name, entry in self.inputs.items() if entry is node), "")
        elif node.op == "output":
            for name, source in self.outputs.items():
                self.append("Identity", [self.names[source]], name)
        elif node.op == "get_attr":
            self.names[node] = self.constant(str(node.target), attribute(self.model, str(node.target)))
        elif (value := shapes.fixed(self, node)) is not None:
            several = isinstance(value, (tuple, list))
            parts = {f"{node.name}.{k}": part for k, part in enumerate(value)} if several else {node.name: value}
            names = tuple(self.constant(name, part) for name, part in parts.items())
            self.names[node] = names if several else names[0]
        else:
            self.names[node] = self.operator(node)
            if is_cat(node) or passes(node):
                self.keep_grid(node)

    def operator(self, node: fx.Node) -> Any:
        """Write one operator; the name of what it gives, or the names."""
        module = module_of(node)
        make: Callable | None
        if is_quantiser(module):
            make = _quantise
        elif module is not None:
            make = next((make for kind, make in _MODULES.items() if isinstance(module, kind)), None)
        elif bounds(node) is not None:
            make = _clamp
        else:
            make = _FORMS.get(node.target)
        if make is None:
            raise ValueError(
                f"{node.name} ({kind_of(node)}) has no ONNX form here: write it in operators that have one, such as "
                "those of lab.core.onnx.ops"
            )
        return make(self, node)

    def emit(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Write one node; gives the name of its output, which is not that of the file's own ends."""
        is_end = output in self.inputs or output in self.outputs
        return self.append(kind, inputs, f"{output}." if is_end else output, **attributes)

    def emit_all(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> tuple[str, ...]:
        """Write one node with several outputs; gives their names."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, outputs, **attributes))
        return tuple(outputs)

    def reduce(self, kind: str, name: str, output: str, axes: list[int], keepdims: bool) -> str:
        """Write a mean, sum or extreme; before opset 18 axes are attributes, but those of a sum."""
        if kind == "ReduceSum" or self.opset >= 18:
            return self.emit(kind, [name, self.integers(axes)], output, keepdims=int(keepdims))
        return self.emit(kind, [name], output, axes=axes, keepdims=int(keepdims))

    def integers(self, values: Iterable[int]) -> str:
        """A constant of integers, such as a shape or axes."""
        listed = list(values)
        return self.constant(f"integers {listed}", np.array(listed, np.int64))

    def append(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        from onnx import numpy_helper

        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def pair(self, source: str, name: str, grid: WrittenGrid) -> str:
        """Round `source` to a grid and give it back as float."""
        code = self.emit("QuantizeLinear", [source, grid.scale, grid.zero_point], f"{name}.q")
        return self.emit("DequantizeLinear", [code, grid.scale, grid.zero_point], name)

    def grid(self, name: str, qparams: QParams) -> WrittenGrid:
        """Write the constants of a grid."""
        scale = self.constant(f"{name}.step", np.float32(qparams.scale))
        byte = ACTIVATION_TYPES[self.activation_type]
        zero_point = self.constant(f"zero{qparams.zero_point}", byte(qparams.zero_point))
        return WrittenGrid(scale, zero_point, qparams.scale)

    def codes(self, name: str, int_weights: Tensor, like: str = "") -> str:
        """A constant of a weight's codes: 4 bits each where they fit and this opset has them, else 8; or as `like`."""
        from onnx import TensorProto, helper

        fits = self.opset >= 21 and int_weights.min() >= -8 and int_weights.max() <= 7
        if not fits or (like and self.constants[like].data_type == TensorProto.INT8):
            return self.constant(name, int_weights)
        if name not in self.constants:
            values = int_weights.flatten().tolist()
            self.constants[name] = helper.make_tensor(name, TensorProto.INT4, int_weights.shape, values)
        return name

    def keep_grid(self, node: fx.Node) -> None:
        """Behind an operator that moves values: round them to the grid that all of them lie on already."""
        grids = {self.grids.get(source) for source in node.all_input_nodes}
        grid = grids.pop() if len(grids) == 1 else None
        if grid is not None:
            self.grids[node] = grid
            self.names[node] = self.pair(self.names[node], f"{node.name}.same", grid)


def written(qparams: QParams, activation_type: str) -> QParams:
    """The grid that a file of this type holds in place of a quantiser's."""
    return qparams.to_int8() if activation_type == "int8" else qparams


# -- one function an operator ------------------------------------------------------------------------------------------


def _quantise(writer: _Writer, node: fx.Node) -> str:
    quantiser: Any = module_of(node)
    qparams = written(quantiser.qparams(), writer.activation_type)
    name, value = str(node.target).removeprefix("quantisers."), source(writer, node)
    is_full = qparams.bits == 8 or (qparams.zero_point, qparams.qmax) == (0, 127)
    if not is_full:  # saturation of 8-bit codes clamps to more: first their grid, which a convolution can write
        wide = writer.grid(f"{name}.wide", written(qparams.to_8bit(), writer.activation_type))
        limits = zip(("low", "high"), qparams.range, strict=True)
        ends = [writer.constant(f"{name}.{end}", np.float32(limit)) for end, limit in limits]
        value = writer.emit("Clip", [writer.pair(value, f"{node.name}.wide", wide), *ends], f"{node.name}.clip")
    grid = writer.grids[node] = writer.grid(name, qparams)
    if (channels := writer.padded.get(node.all_input_nodes[0])) is None:
        return writer.pair(value, node.name, grid)
    # The zero channels that `_conv` filled up are cut off: starts, ends, axes.
    ends = [writer.constant(f"whole {k}", np.array([k])) for k in (0, channels, 1)]
    padded_value = writer.pair(value, f"{node.name}.padded", grid)
    return writer.pair(writer.emit("Slice", [padded_value, *ends], f"{node.name}.slice"), node.name, grid)


def _clamp(writer: _Writer, node: fx.Node) -> str:
    """A clamp; before a ReLU whose quantiser is signed, as parts of a concatenation share one, values are rounded too.

    A convolution fuses with a ReLU only if the lowest code is 0; what is rounded and then cut at 0 stays on its grid.
    """
    reader = next(iter(node.users)) if len(node.users) == 1 else node
    quantiser: Any = module_of(reader)
    qparams = quantiser.qparams() if is_quantiser(quantiser) else None
    if is_relu(node) and qparams and qparams.qmin < 0 and qparams.bits == 8 and layers.calls(reader) > 1:
        name = str(reader.target).removeprefix("quantisers.")
        before = writer.pair(source(writer, node), f"{node.name}.before", writer.grid(name, qparams))
        return writer.emit("Relu", [before], node.name)
    return ops.clamp(writer, node)


_FORMS: dict[Any, Callable] = ops.FORMS | shapes.FORMS | norms.FORMS | layers.FORMS
_MODULES: dict[Any, Callable] = {
    nn.ReLU: _clamp,
    nn.Hardtanh: _clamp,
    **{kind: make for kind, make in _FORMS.items() if isinstance(kind, type)},
}
