"""A quantised network as ONNX: integer weights, and a quantiser with its inverse (Q, DQ) wherever a grid begins.

onnxruntime turns what stands between two such pairs into integer kernels. What it asks for is kept here: uint8
activations, with zero point 128 for signed grids and 0 behind a ReLU; int8 weights; int32 biases on the step
s_x * s_w; a pair behind whatever only moves values (concatenation, pixel shuffle), on the step of what it moves.
Fewer than 8 bits are first written on the 8-bit grid of the same largest value, then on their own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from .. import store
from ..graph.calls import bounds, is_relu, two
from ..graph.operators import is_cat
from ..graph.tracing import module_of, shape
from ..quantisation.placement import passes
from ..quantisation.qparams import QParams, int_repr, is_quantiser
from ..task import evaluating
from . import ops
from .ops import no_form, padded, source
from .runtime import loadable

OPSET, IR = 17, 8
ROOM = 2**30  # the largest bias in codes: half of what 32 bits hold, the rest is for the products
LANES = 16  # fewer output channels than this keep onnxruntime from its fast integer kernel: zeros fill them up


@dataclass(frozen=True)
class WrittenGrid:
    """Where a tensor's values lie: scale and zero point as the names of constants, and the scale as a number."""

    scale: str
    zero_point: str
    value: float


def write(model: fx.GraphModule, path: str | Path) -> Path:
    """Write a prepared network, quantised or not, as one ONNX file (N, C, H, W) with free axes; returns the path.

    Raises ImportError without the extra `export`, ValueError naming an operator that is not known here or why
    onnxruntime would not load the file; none leaves a file behind.
    """
    store.write(Path(path), loadable(to_model(model).SerializeToString()))
    return Path(path)


def to_model(model: fx.GraphModule) -> Any:
    """The network as an `onnx.ModelProto`."""
    try:
        from onnx import TensorProto, helper
    except ImportError as error:
        raise ImportError("writing ONNX needs onnx: pip install 'lab[export]'") from error
    writer, (entry, output) = _Writer(model), _ends(model)
    with torch.no_grad(), evaluating(model):
        for node in model.graph.nodes:
            writer.visit(node)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *(f"{axis}{k}" for axis in "CHW"[: rank - 1])])
        for k, (name, rank) in enumerate((("input", len(shape(entry))), ("output", len(shape(output)))))
    ]
    graph = helper.make_graph(writer.nodes, "lab", ends[:1], ends[1:], list(writer.constants.values()))
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, producer_name="lab", ir_version=IR, opset_imports=opsets)


def _ends(model: fx.GraphModule) -> tuple[fx.Node, fx.Node]:
    """What the network reads and what it gives, one tensor of float32 each."""
    entries = [node for node in model.graph.nodes if node.op == "placeholder"]
    if len(entries) != 1:
        raise ValueError(
            f"the network takes {len(entries)} inputs ({', '.join(map(str, entries))}): one is written here"
        )
    (output,) = next(node for node in model.graph.nodes if node.op == "output").args
    if not isinstance(output, fx.Node) or not shape(output):
        raise ValueError(f"the network gives {output}: one tensor is written here, return that alone")
    for node in (entries[0], output):
        if (kind := node.meta["tensor_meta"].dtype) != torch.float32:
            raise ValueError(f"{node.name} is {kind}: real float32 is written here, call float() on network and data")
    return entries[0], output


@dataclass
class _Writer:
    """The graph as far as it is written: each node's tensor by name, and the grid that it lies on."""

    model: fx.GraphModule
    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)
    names: dict[fx.Node, str] = field(default_factory=dict)
    grids: dict[fx.Node, WrittenGrid] = field(default_factory=dict)
    padded: dict[fx.Node, int] = field(default_factory=dict)

    def visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.names[node] = "input"
        elif node.op == "output":
            self.append("Identity", [self.names[node.all_input_nodes[0]]], "output")
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
        elif bounds(node) is not None:
            make = _clamp
        else:
            make = ops.FORMS.get(node.target)
        if make is None:
            kind = type(module).__name__ if module is not None else getattr(node.target, "__name__", node.target)
            raise ValueError(f"{node.name} ({kind}) has no ONNX form here: known are {', '.join(_supported())}")
        return make(self, node)

    def emit(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Write one node; gives the name of its output, which is not that of the file's own two ends."""
        return self.append(kind, inputs, f"{output}." if output in ("input", "output") else output, **attributes)

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
        zero_point = self.constant(f"zero{qparams.zero_point}", np.uint8(qparams.zero_point))
        return WrittenGrid(scale, zero_point, qparams.scale)

    def keep_grid(self, node: fx.Node) -> None:
        """Behind an operator that moves values: round them to the grid that all of them lie on already."""
        grids = {self.grids.get(source) for source in node.all_input_nodes}
        grid = grids.pop() if len(grids) == 1 else None
        if grid is not None:
            self.grids[node] = grid
            self.names[node] = self.pair(self.names[node], f"{node.name}.same", grid)


# -- one function an operator ------------------------------------------------------------------------------------------


def _quantise(writer: _Writer, node: fx.Node) -> str:
    quantiser: Any = module_of(node)
    qparams: QParams = quantiser.qparams()
    name, value = str(node.target).removeprefix("quantisers."), source(writer, node)
    if qparams.bits < 8:  # saturation of 8-bit codes clamps to more: first their grid, which a convolution can write
        wide = writer.grid(f"{name}.wide", qparams.to_8bit())
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
    if is_relu(node) and qparams and qparams.qmin < 0 and qparams.bits == 8 and _calls(reader) > 1:
        name = str(reader.target).removeprefix("quantisers.")
        before = writer.pair(source(writer, node), f"{node.name}.before", writer.grid(name, qparams))
        return writer.emit("Relu", [before], node.name)
    return ops.clamp(writer, node)


def _conv(writer: _Writer, node: fx.Node) -> str:
    """A convolution; onnxruntime's fast integer kernel asks for LANES output channels, so that few are filled up.

    Only where one quantiser reads it, which then cuts the zeros off; with groups, more channels would be other groups.
    """
    conv: Any = module_of(node)
    is_transposed = isinstance(conv, nn.ConvTranspose2d)
    grid = writer.grids.get(node.all_input_nodes[0])
    weight = int_repr(conv)
    runs_on_integers = weight is not None and grid is not None and not is_transposed and _is_quantised(node)
    if runs_on_integers and conv.out_channels < LANES and conv.groups == 1 and _calls(node) == 1:
        writer.padded[node] = conv.out_channels
    parts = _plain(writer, node) if weight is None else _rounded(writer, node, grid, weight)
    reads, before, after = source(writer, node), *_padding(conv)
    if conv.padding_mode != "zeros":
        # torch's own attribute, which counts from the last axis; odd where one number stands for both
        around = list(conv._reversed_padding_repeated_twice)
        reads, before, after = padded(writer, node, around, conv.padding_mode), (0, 0), (0, 0)
    attributes = {"pads": [*before, *after], "kernel_shape": conv.kernel_size}
    defaults = {"strides": (1, 1), "dilations": (1, 1), "group": 1}  # ONNX's, which are left unwritten
    settings = {"strides": two(conv.stride), "dilations": two(conv.dilation), "group": conv.groups}
    attributes |= {key: value for key, value in settings.items() if value != defaults[key]}
    attributes |= {"output_padding": two(conv.output_padding)} if is_transposed else {}
    return writer.emit("ConvTranspose" if is_transposed else "Conv", [reads, *parts], node.name, **attributes)


def _padding(conv: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The padding before and after each axis by number, where a word says it too."""
    if not isinstance(conv.padding, str):
        return two(conv.padding), two(conv.padding)
    both = zip(two(conv.dilation), conv.kernel_size, strict=True)
    total = [d * (k - 1) if conv.padding == "same" else 0 for d, k in both]
    return tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)


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


def _rounded(writer: _Writer, node: fx.Node, grid: WrittenGrid | None, weight: tuple[Tensor, Tensor]) -> list[str]:
    """The weight as int8 codes, the bias as int32 where the input lies on a grid."""
    layer: Any = module_of(node)
    name, (int_weights, step) = str(node.target), weight
    if grid is not None and layer.bias is not None:
        int_weights, step = _with_room(int_weights, step, layer, grid)
    is_per_channel = step.numel() > 1
    axis = {"axis": int(isinstance(layer, nn.ConvTranspose2d))} if is_per_channel else {}
    flat = step.flatten() if is_per_channel else step.reshape(())
    if short := -len(int_weights) % LANES if node in writer.padded else 0:
        int_weights = F.pad(int_weights, (0, 0) * 3 + (0, short))
        flat = F.pad(flat, (0, short), value=1.0) if is_per_channel else flat
    again = f"#{node.name}" if f"{name}.w" in writer.constants else ""  # runtimes change codes where they are read
    weight_inputs = [
        writer.constant(f"{name}.w{again}", int_weights),
        writer.constant(f"{name}.w.step{again}", flat),
        writer.constant(f"{name}.w.zero{again}", torch.zeros_like(flat, dtype=torch.int8)),
    ]
    parts = [writer.emit("DequantizeLinear", weight_inputs, f"{node.name}.weight", **axis)]
    axis = axis and {"axis": 0}
    if layer.bias is None:
        return parts
    if grid is None:
        return [*parts, writer.constant(f"{name}.bias", layer.bias)]
    unit = (flat.repeat(_repeats(layer)) if is_per_channel else flat).double() * grid.value
    bias = (F.pad(layer.bias.detach().double(), (0, short)) / unit).round().to(torch.int32)
    pair = [writer.constant(f"{node.name}.b", bias), writer.constant(f"{node.name}.b.step", unit.float())]
    return [*parts, writer.emit("DequantizeLinear", pair, f"{node.name}.bias", **axis)]


def _with_room(int_weights: Tensor, step: Tensor, layer: Any, grid: WrittenGrid) -> tuple[Tensor, Tensor]:
    """Codes and step of a weight on which the bias fits into 32 bits.

    Weights of nearly 0 have a step so fine that a plain bias is more than 2^31 of it; what a coarser one loses of them
    is nothing beside that bias.
    """
    bias = layer.bias.detach().double().abs()
    largest = bias.view(_repeats(layer), -1).amax(0).view_as(step) if step.numel() > 1 else bias.max()
    coarse = torch.maximum(step.double(), largest / (ROOM * grid.value)).to(step)
    codes = torch.where(coarse > step, (int_weights * (step.double() / coarse)).round(), int_weights)
    return codes.to(torch.int8), coarse


def _repeats(layer: Any) -> int:
    """How often a step a channel of the weight stands for a channel that is written: once for each transposed group."""
    return layer.groups if isinstance(layer, nn.ConvTranspose2d) else 1


def _attribute(model: nn.Module, name: str) -> Any:
    return reduce(getattr, name.split("."), model)


def _linear(writer: _Writer, node: fx.Node) -> str:
    if len(shape(node)) != 2:
        raise no_form(node, f"a linear layer on an input of {len(shape(node))} axes", "flatten it to (N, C)")
    grid = writer.grids.get(node.all_input_nodes[0])
    weight = int_repr(module_of(node))
    parts = _plain(writer, node) if weight is None else _rounded(writer, node, grid, weight)
    return writer.emit("Gemm", [source(writer, node), *parts], node.name, transB=1)


_MODULES: dict[Any, Callable] = {
    nn.Conv2d: _conv,
    nn.ConvTranspose2d: _conv,
    nn.Linear: _linear,
    nn.ReLU: _clamp,
    nn.Hardtanh: _clamp,
    **{kind: make for kind, make in ops.FORMS.items() if isinstance(kind, type)},
}


def _supported() -> list[str]:
    names = {getattr(target, "__name__", target) for target in (*_MODULES, *ops.FORMS)}
    return sorted({name.lower() for name in names} | {"clamp", "relu"})
