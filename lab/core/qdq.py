"""A quantised network as ONNX: whole-number weights, and a quantiser with its inverse (Q, DQ) wherever a grid begins.

onnxruntime turns what stands between two such pairs into integer kernels. What it asks for is kept here: uint8
activations, with zero point 128 for signed grids and 0 behind a ReLU; int8 weights; int32 biases on the step
s_x * s_w; a pair behind whatever only moves values (concatenation, pixel shuffle), on the step of what it moves.
Fewer than 8 bits are first written on the 8-bit grid of the same largest value, then on their own.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from . import operators, store
from .channels import is_cat, operands
from .grids import Grid, codes, is_quantiser
from .placement import passes
from .task import evaluating
from .tracing import module_of, shape

OPSET, IR = 17, 8
LANES = 16  # fewer output channels than this keep onnxruntime from its fast integer kernel: zeros fill them up


@dataclass(frozen=True)
class Written:
    """Where a tensor's values lie: (code - zero) * step, by the names of its step and zero point, and the step."""

    step: str
    zero: str
    value: float


def write(model: fx.GraphModule, path: str | Path) -> Path:
    """Write a prepared network, quantised or not, as one ONNX file (N, C, H, W) with free axes; returns the path.

    Raises ImportError without the extra `export`, ValueError naming an operator that is not known here; neither
    leaves a file behind.
    """
    store.write(Path(path), to_model(model).SerializeToString())
    return Path(path)


def to_model(model: fx.GraphModule) -> Any:
    """The network as an `onnx.ModelProto`."""
    try:
        from onnx import TensorProto, helper
    except ImportError as error:
        raise ImportError("writing ONNX needs onnx: pip install 'lab[export]'") from error
    writer = _Writer(model)
    with torch.no_grad(), evaluating(model):
        for node in model.graph.nodes:
            writer.visit(node)
    (entry,) = (node for node in model.graph.nodes if node.op == "placeholder")
    (answer,) = next(iter(node for node in model.graph.nodes if node.op == "output")).all_input_nodes
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *(f"{axis}{k}" for axis in "CHW"[: rank - 1])])
        for k, (name, rank) in enumerate(((writer.names[entry], 4), ("output", len(shape(answer)) or 4)))
    ]
    graph = helper.make_graph(writer.nodes, "lab", ends[:1], ends[1:], list(writer.constants.values()))
    return helper.make_model(
        graph, producer_name="lab", ir_version=IR,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )  # fmt: skip


@dataclass
class _Writer:
    """The graph as far as it is written: each node's tensor by name, and the grid that it lies on."""

    model: fx.GraphModule
    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)
    names: dict[fx.Node, str] = field(default_factory=dict)
    grids: dict[fx.Node, Written] = field(default_factory=dict)
    padded: dict[fx.Node, int] = field(default_factory=dict)

    def visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.names[node] = "input"
        elif node.op == "output":
            self.emit("Identity", [self.names[node.all_input_nodes[0]]], "output")
        elif node.op == "get_attr":
            self.names[node] = self.constant(str(node.target), _attribute(self.model, str(node.target)))
        else:
            self.names[node] = self.operator(node)
            if is_cat(node) or passes(node):
                self.keep_grid(node)

    def operator(self, node: fx.Node) -> str:
        """Write one operator; the name of what it gives."""
        module = module_of(node)
        make: Callable | None
        if is_quantiser(module):
            make = _quantise
        elif module is not None:
            make = next((make for kind, make in _MODULES.items() if isinstance(module, kind)), None)
        elif is_cat(node):
            make = _concat
        else:
            make = _FUNCTIONS.get(node.target)
        if make is None:
            kind = type(module).__name__ if module is not None else getattr(node.target, "__name__", node.target)
            raise ValueError(f"{node.name} ({kind}) has no ONNX form here: known are {', '.join(_known())}")
        return make(self, node)

    def emit(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        from onnx import numpy_helper

        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def pair(self, source: str, name: str, grid: Written) -> str:
        """Round `source` to a grid and give it back as float."""
        code = self.emit("QuantizeLinear", [source, grid.step, grid.zero], f"{name}.q")
        return self.emit("DequantizeLinear", [code, grid.step, grid.zero], name)

    def grid(self, name: str, grid: Grid) -> Written:
        step = self.constant(f"{name}.step", np.float32(grid.step))
        return Written(step, self.constant(f"zero{grid.zero}", np.uint8(grid.zero)), grid.step)

    def keep_grid(self, node: fx.Node) -> None:
        """Behind an operator that moves values: round them to the grid that all of them lie on already."""
        grids = {self.grids.get(source) for source in node.all_input_nodes}
        grid = grids.pop() if len(grids) == 1 else None
        if grid is not None:
            self.grids[node] = grid
            self.names[node] = self.pair(self.names[node], f"{node.name}.same", grid)


# -- one function an operator ------------------------------------------------------------------------------------------


def _quantise(writer: _Writer, node: fx.Node) -> str:
    q: Any = module_of(node)
    name, source = str(node.target).removeprefix("quantisers."), writer.names[node.all_input_nodes[0]]
    own: Grid = q.grid()
    if own.bits < 8:  # no saturation of 8-bit codes would clamp: first the 8-bit grid, which a convolution can write
        wide = writer.grid(f"{name}.wide", own.wide())
        reach = {"low": own.low * own.step, "high": own.high * own.step}
        ends = [writer.constant(f"{name}.{end}", np.float32(value)) for end, value in reach.items()]
        source = writer.emit("Clip", [writer.pair(source, f"{node.name}.wide", wide), *ends], f"{node.name}.clip")
    grid = writer.grids[node] = writer.grid(name, own)
    if (channels := writer.padded.get(node.all_input_nodes[0])) is None:
        return writer.pair(source, node.name, grid)
    ends = [writer.constant(f"whole {k}", np.array([k])) for k in (0, channels, 1)]
    return writer.pair(writer.emit("Slice", [writer.pair(source, f"{node.name}.padded", grid), *ends],
                                   f"{node.name}.slice"), node.name, grid)  # fmt: skip


def _relu(writer: _Writer, node: fx.Node) -> str:
    """A ReLU; where its quantiser is signed, as parts of a concatenation share one, the values are rounded before too.

    A convolution fuses with a ReLU only if the lowest code is 0; what is rounded and then cut at 0 stays on its grid.
    """
    source = writer.names[node.all_input_nodes[0]]
    reader = next(iter(node.users)) if len(node.users) == 1 else node
    q: Any = module_of(reader)
    own = q.grid() if is_quantiser(q) else None
    if own is not None and own.low < 0 and own.bits == 8 and _calls(reader) > 1:
        name = str(reader.target).removeprefix("quantisers.")
        source = writer.pair(source, f"{node.name}.before", writer.grid(name, own))
    return writer.emit("Relu", [source], node.name)


def _conv(writer: _Writer, node: fx.Node) -> str:
    conv: Any = module_of(node)
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise ValueError(f"{node.target}: padding {conv.padding!r}, {conv.padding_mode!r}: ONNX takes zeros by number")
    source = node.all_input_nodes[0]
    grid = writer.grids.get(source)
    few = (
        type(conv) is not nn.ConvTranspose2d and conv.out_channels < LANES and conv.groups == 1
    )  # filled up, groups would be other groups
    whole = codes(conv) is not None
    if whole and grid is not None and few and _is_quantised(node) and _calls(node) == 1:
        writer.padded[node] = conv.out_channels
    parts = _rounded(writer, node, grid) if whole else _plain(writer, node)
    inputs = [writer.names[source], *parts]
    common = {"pads": [*conv.padding, *conv.padding], "kernel_shape": conv.kernel_size}
    usual = {"strides": (1, 1), "dilations": (1, 1), "group": 1}
    asked = {"strides": conv.stride, "dilations": conv.dilation, "group": conv.groups}
    common |= {key: value for key, value in asked.items() if value != usual[key]}
    if isinstance(conv, nn.ConvTranspose2d):
        kind, common["output_padding"] = "ConvTranspose", conv.output_padding
    else:
        kind = "Conv"
    return writer.emit(kind, inputs, node.name, **common)


def _calls(node: fx.Node) -> int:
    """How often the module that a node calls is called."""
    return sum(other.target == node.target for other in node.graph.nodes if other.op == "call_module")


def _is_quantised(node: fx.Node) -> bool:
    """Whether one quantiser alone reads a node."""
    readers = list(node.users)
    return len(readers) == 1 and is_quantiser(module_of(readers[0]))


def _plain(writer: _Writer, node: fx.Node) -> list[str]:
    conv: Any = module_of(node)
    name = str(node.target)
    parts = [writer.constant(f"{name}.weight", conv.weight)]
    return parts if conv.bias is None else [*parts, writer.constant(f"{name}.bias", conv.bias)]


def _rounded(writer: _Writer, node: fx.Node, grid: Written | None) -> list[str]:
    """The weight as int8 codes, the bias as int32 where the input lies on a grid."""
    conv: Any = module_of(node)
    name, (whole, step) = str(node.target), codes(conv) or ()
    many = step.numel() > 1
    axis = {"axis": int(isinstance(conv, nn.ConvTranspose2d))} if many else {}
    flat = step.flatten() if many else step.reshape(())
    if short := -len(whole) % LANES if node in writer.padded else 0:
        whole = F.pad(whole, (0, 0) * 3 + (0, short))
        flat = F.pad(flat, (0, short), value=1.0) if many else flat
    again = f"#{node.name}" if f"{name}.w" in writer.constants else ""  # runtimes change codes where they are read
    weight = [
        writer.constant(f"{name}.w{again}", whole),
        writer.constant(f"{name}.w.step", flat),
        writer.constant(f"{name}.w.zero{again}", torch.zeros_like(flat, dtype=torch.int8)),
    ]
    parts = [writer.emit("DequantizeLinear", weight, f"{node.name}.weight", **axis)]
    axis = axis and {"axis": 0}
    if conv.bias is None:
        return parts
    if grid is None:
        return [*parts, writer.constant(f"{name}.bias", conv.bias)]
    unit = flat.double() * grid.value
    bias = (F.pad(conv.bias.detach().double(), (0, short)) / unit).round().clamp(-(2**31), 2**31 - 1).to(torch.int32)
    pair = [writer.constant(f"{node.name}.b", bias), writer.constant(f"{node.name}.b.step", unit.float())]
    return [*parts, writer.emit("DequantizeLinear", pair, f"{node.name}.bias", **axis)]


def _concat(writer: _Writer, node: fx.Node) -> str:
    return writer.emit("Concat", [writer.names[one] for one in operands(node)], node.name, axis=1)


def _shuffle(writer: _Writer, node: fx.Node) -> str:
    module: Any = module_of(node)
    factor = module.upscale_factor if module is not None else node.args[1]
    return writer.emit("DepthToSpace", _tensors(writer, node), node.name, blocksize=factor, mode="CRD")


def _enlarge(writer: _Writer, node: fx.Node) -> str:
    module: Any = module_of(node)
    given = dict(zip(("size", "scale_factor", "mode"), node.args[1:], strict=False)) | node.kwargs
    how = vars(module) if module is not None else given
    mode, factor = how.get("mode") or "nearest", how.get("scale_factor")
    if factor is None or mode not in ("nearest", "bilinear", "bicubic") or how.get("antialias"):
        raise ValueError(f"{node.name}: interpolation {mode!r} with scale_factor={factor}: give nearest, bilinear or "
                         "bicubic, and a scale_factor")  # fmt: skip
    places = "align_corners" if how.get("align_corners") else "half_pixel"
    sizes = writer.constant(f"{node.name}.factors", np.array([1, 1, *np.broadcast_to(factor, 2)], np.float32))
    kind = {"nearest": "nearest", "bilinear": "linear", "bicubic": "cubic"}[mode]
    extra = {"nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"} if mode == "nearest" else {
        "coordinate_transformation_mode": places, "cubic_coeff_a": -0.75}  # fmt: skip
    return writer.emit("Resize", [*_tensors(writer, node), "", sizes], node.name, mode=kind, **extra)


def _simple(kind: str, **attributes: Callable[[Any], Any]) -> Callable:
    """An operator of the same tensors in the same order; numbers among them become constants."""

    def make(writer: _Writer, node: fx.Node) -> str:
        module = module_of(node)
        found = {name: take(module if module is not None else node) for name, take in attributes.items()}
        return writer.emit(kind, _tensors(writer, node), node.name, **found)

    return make


def _tensors(writer: _Writer, node: fx.Node) -> list[str]:
    """The operands of a node: tensors by name, and numbers as constants where it takes two."""
    two = node.op != "call_module" and node.target in _ARITHMETIC
    args = node.args[:2] if two else node.args[:1]
    return [
        writer.names[arg] if isinstance(arg, fx.Node) else writer.constant(f"number {arg}", np.float32(arg))
        for arg in args
    ]


def _prelu(writer: _Writer, node: fx.Node) -> str:
    module: Any = module_of(node)
    slope = writer.constant(f"{node.target}.slope", module.weight.view(-1, 1, 1))
    return writer.emit("PRelu", [*_tensors(writer, node), slope], node.name)


def _slope(thing: Any) -> float:
    if isinstance(thing, fx.Node):
        return thing.args[1] if len(thing.args) > 1 else thing.kwargs.get("negative_slope", 0.01)
    return thing.negative_slope


def _attribute(model: nn.Module, name: str) -> Tensor:
    for part in name.split("."):
        model = getattr(model, part)
    return model


def _same(writer: _Writer, node: fx.Node) -> str:
    return writer.names[node.all_input_nodes[0]]


def _linear(writer: _Writer, node: fx.Node) -> str:
    if len(shape(node)) != 2:
        raise ValueError(f"{node.target}: a linear layer on an input of {len(shape(node))} axes has no form here: "
                         "flatten it to (N, C)")  # fmt: skip
    source = node.all_input_nodes[0]
    known = codes(module_of(node)) is not None
    parts = _rounded(writer, node, writer.grids.get(source)) if known else _plain(writer, node)
    return writer.emit("Gemm", [writer.names[source], *parts], node.name, transB=1)


_ARITHMETIC: dict[Any, str] = {
    operator.add: "Add", torch.add: "Add", operator.sub: "Sub", torch.sub: "Sub", operator.mul: "Mul", torch.mul: "Mul",
    operator.truediv: "Div",
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div",
}  # fmt: skip
_LEAKY, _SIGMOID = _simple("LeakyRelu", alpha=_slope), _simple("Sigmoid")
_MODULES: dict[type, Callable] = {
    nn.Conv2d: _conv, nn.ConvTranspose2d: _conv, nn.Linear: _linear, nn.ReLU: _relu, nn.LeakyReLU: _LEAKY,
    nn.PReLU: _prelu, nn.Sigmoid: _SIGMOID, nn.Tanh: _simple("Tanh"), nn.PixelShuffle: _shuffle, nn.Upsample: _enlarge,
    nn.Identity: _same, nn.Dropout: _same, **operators.MODULES,
}  # fmt: skip
_FUNCTIONS: dict[Any, Callable] = {
    **{target: _simple(kind) for target, kind in _ARITHMETIC.items()}, F.relu: _relu, torch.relu: _relu,
    "relu": _relu, F.leaky_relu: _LEAKY, "sigmoid": _SIGMOID, torch.sigmoid: _SIGMOID,
    F.pixel_shuffle: _shuffle, torch.pixel_shuffle: _shuffle, F.interpolate: _enlarge, **operators.FUNCTIONS,
}  # fmt: skip


def _known() -> list[str]:
    return sorted({kind.__name__ for kind in _MODULES} | set(_ARITHMETIC.values()) | {"cat", "interpolate"})
