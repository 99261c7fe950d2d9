"""A quantised network as ONNX: whole-number weights, and a quantiser with its inverse (Q, DQ) wherever a grid begins.

onnxruntime turns what stands between two such pairs into integer kernels. What it asks for is kept here: uint8
activations, with zero point 128 for signed grids and 0 behind a ReLU; int8 weights; int32 biases on the step
s_x * s_w; a pair behind whatever only moves values (concatenation, pixel shuffle), on the step of what it moves.
Fewer than 8 bits are first written on the 8-bit grid of the same largest value, then on their own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from .. import store
from ..graph.calls import bounds, is_relu, two
from ..graph.channels import is_cat
from ..graph.tracing import module_of, shape
from ..quantisation.grids import Grid, codes, is_quantiser
from ..quantisation.placement import passes
from ..task import evaluating
from . import operators
from .operators import no_form, padded, source
from .runtime import loadable

OPSET, IR = 17, 8
ROOM = 2**30  # the largest bias in codes: half of what 32 bits hold, the rest is for the products
LANES = 16  # fewer output channels than this keep onnxruntime from its fast integer kernel: zeros fill them up


@dataclass(frozen=True)
class Written:
    """Where a tensor's values lie: (code - zero) * step, by the names of its step and zero point, and the step."""

    step: str
    zero: str
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
    writer, (entry, answer) = _Writer(model), _ends(model)
    with torch.no_grad(), evaluating(model):
        for node in model.graph.nodes:
            writer.visit(node)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *(f"{axis}{k}" for axis in "CHW"[: rank - 1])])
        for k, (name, rank) in enumerate((("input", len(shape(entry))), ("output", len(shape(answer)))))
    ]
    graph = helper.make_graph(writer.nodes, "lab", ends[:1], ends[1:], list(writer.constants.values()))
    return helper.make_model(
        graph, producer_name="lab", ir_version=IR,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )  # fmt: skip


def _ends(model: fx.GraphModule) -> tuple[fx.Node, fx.Node]:
    """What the network reads and what it gives, one tensor of float32 each."""
    entries = [node for node in model.graph.nodes if node.op == "placeholder"]
    if len(entries) != 1:
        raise ValueError(
            f"the network takes {len(entries)} inputs ({', '.join(map(str, entries))}): one is written here"
        )
    (answer,) = next(node for node in model.graph.nodes if node.op == "output").args
    if not isinstance(answer, fx.Node) or not shape(answer):
        raise ValueError(f"the network gives {answer}: one tensor is written here, return that alone")
    for node in (entries[0], answer):
        if (kind := node.meta["tensor_meta"].dtype) != torch.float32:
            raise ValueError(f"{node.name} is {kind}: real float32 is written here, call float() on network and data")
    return entries[0], answer


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
            make = operators.FORMS.get(node.target)
        if make is None:
            kind = type(module).__name__ if module is not None else getattr(node.target, "__name__", node.target)
            raise ValueError(f"{node.name} ({kind}) has no ONNX form here: known are {', '.join(_known())}")
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
    name, value = str(node.target).removeprefix("quantisers."), source(writer, node)
    own: Grid = q.grid()
    if own.bits < 8:  # no saturation of 8-bit codes would clamp: first the 8-bit grid, which a convolution can write
        wide = writer.grid(f"{name}.wide", own.wide())
        reach = {"low": own.low * own.step, "high": own.high * own.step}
        ends = [writer.constant(f"{name}.{end}", np.float32(value)) for end, value in reach.items()]
        value = writer.emit("Clip", [writer.pair(value, f"{node.name}.wide", wide), *ends], f"{node.name}.clip")
    grid = writer.grids[node] = writer.grid(name, own)
    if (channels := writer.padded.get(node.all_input_nodes[0])) is None:
        return writer.pair(value, node.name, grid)
    ends = [writer.constant(f"whole {k}", np.array([k])) for k in (0, channels, 1)]
    return writer.pair(writer.emit("Slice", [writer.pair(value, f"{node.name}.padded", grid), *ends],
                                   f"{node.name}.slice"), node.name, grid)  # fmt: skip


def _clamp(writer: _Writer, node: fx.Node) -> str:
    """A clamp; before a ReLU whose quantiser is signed, as parts of a concatenation share one, values are rounded too.

    A convolution fuses with a ReLU only if the lowest code is 0; what is rounded and then cut at 0 stays on its grid.
    """
    reader = next(iter(node.users)) if len(node.users) == 1 else node
    q: Any = module_of(reader)
    own = q.grid() if is_quantiser(q) else None
    if is_relu(node) and own is not None and own.low < 0 and own.bits == 8 and _calls(reader) > 1:
        name = str(reader.target).removeprefix("quantisers.")
        before = writer.pair(source(writer, node), f"{node.name}.before", writer.grid(name, own))
        return writer.emit("Relu", [before], node.name)
    return operators.clamp(writer, node)


def _conv(writer: _Writer, node: fx.Node) -> str:
    conv: Any = module_of(node)
    is_transposed = isinstance(conv, nn.ConvTranspose2d)
    grid = writer.grids.get(node.all_input_nodes[0])
    few = not is_transposed and conv.out_channels < LANES and conv.groups == 1  # filled up, groups would be others
    whole = codes(conv) is not None
    if whole and grid is not None and few and _is_quantised(node) and _calls(node) == 1:
        writer.padded[node] = conv.out_channels
    parts = _rounded(writer, node, grid) if whole else _plain(writer, node)
    reads, before, after = source(writer, node), *_padding(conv)
    if conv.padding_mode != "zeros":
        around = list(
            conv._reversed_padding_repeated_twice
        )  # torch's own, which is odd where one number stands for two
        reads, before, after = padded(writer, node, around, conv.padding_mode), (0, 0), (0, 0)
    common = {"pads": [*before, *after], "kernel_shape": conv.kernel_size}
    usual = {"strides": (1, 1), "dilations": (1, 1), "group": 1}
    asked = {"strides": two(conv.stride), "dilations": two(conv.dilation), "group": conv.groups}
    common |= {key: value for key, value in asked.items() if value != usual[key]}
    common |= {"output_padding": two(conv.output_padding)} if is_transposed else {}
    return writer.emit("ConvTranspose" if is_transposed else "Conv", [reads, *parts], node.name, **common)


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


def _rounded(writer: _Writer, node: fx.Node, grid: Written | None) -> list[str]:
    """The weight as int8 codes, the bias as int32 where the input lies on a grid."""
    conv: Any = module_of(node)
    name, (whole, step) = str(node.target), codes(conv) or ()
    if grid is not None and conv.bias is not None:
        whole, step = _roomy(whole, step, conv, grid)
    many = step.numel() > 1
    axis = {"axis": int(isinstance(conv, nn.ConvTranspose2d))} if many else {}
    flat = step.flatten() if many else step.reshape(())
    if short := -len(whole) % LANES if node in writer.padded else 0:
        whole = F.pad(whole, (0, 0) * 3 + (0, short))
        flat = F.pad(flat, (0, short), value=1.0) if many else flat
    again = f"#{node.name}" if f"{name}.w" in writer.constants else ""  # runtimes change codes where they are read
    weight = [
        writer.constant(f"{name}.w{again}", whole),
        writer.constant(f"{name}.w.step{again}", flat),
        writer.constant(f"{name}.w.zero{again}", torch.zeros_like(flat, dtype=torch.int8)),
    ]
    parts = [writer.emit("DequantizeLinear", weight, f"{node.name}.weight", **axis)]
    axis = axis and {"axis": 0}
    if conv.bias is None:
        return parts
    if grid is None:
        return [*parts, writer.constant(f"{name}.bias", conv.bias)]
    unit = (flat.repeat(_repeats(conv)) if many else flat).double() * grid.value
    bias = (F.pad(conv.bias.detach().double(), (0, short)) / unit).round().to(torch.int32)
    pair = [writer.constant(f"{node.name}.b", bias), writer.constant(f"{node.name}.b.step", unit.float())]
    return [*parts, writer.emit("DequantizeLinear", pair, f"{node.name}.bias", **axis)]


def _roomy(whole: Tensor, step: Tensor, conv: Any, grid: Written) -> tuple[Tensor, Tensor]:
    """Codes and step of a weight on which the bias fits into 32 bits.

    Weights of nearly 0 have a step so fine that a plain bias is more than 2^31 of it; what a coarser one loses of them
    is nothing beside that bias.
    """
    bias = conv.bias.detach().double().abs()
    most = bias.view(_repeats(conv), -1).amax(0).view_as(step) if step.numel() > 1 else bias.max()
    wide = torch.maximum(step.double(), most / (ROOM * grid.value)).to(step)
    return torch.where(wide > step, (whole * (step.double() / wide)).round(), whole).to(torch.int8), wide


def _repeats(conv: Any) -> int:
    """How often a step a channel of the weight stands for a channel that is written: once for each transposed group."""
    return conv.groups if isinstance(conv, nn.ConvTranspose2d) else 1


def _attribute(model: nn.Module, name: str) -> Tensor:
    for part in name.split("."):
        model = getattr(model, part)
    return model


def _linear(writer: _Writer, node: fx.Node) -> str:
    if len(shape(node)) != 2:
        raise no_form(node, f"a linear layer on an input of {len(shape(node))} axes", "flatten it to (N, C)")
    grid = writer.grids.get(node.all_input_nodes[0])
    known = codes(module_of(node)) is not None
    parts = _rounded(writer, node, grid) if known else _plain(writer, node)
    return writer.emit("Gemm", [source(writer, node), *parts], node.name, transB=1)


_MODULES: dict[Any, Callable] = {
    nn.Conv2d: _conv, nn.ConvTranspose2d: _conv, nn.Linear: _linear, nn.ReLU: _clamp, nn.Hardtanh: _clamp,
    **{kind: make for kind, make in operators.FORMS.items() if isinstance(kind, type)},
}  # fmt: skip


def _known() -> list[str]:
    names = {getattr(target, "__name__", target) for target in (*_MODULES, *operators.FORMS)}
    return sorted({name.lower() for name in names} | {"clamp", "relu"})
