"""ONNX forms of layers with weights: convolutions, transposed ones, linear layers; in float, or as codes and a step."""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..graph.calls import of_axes
from ..graph.operators import CONVS, TRANSPOSED
from ..graph.tracing import module_of, shape
from ..quantisation.qparams import int_repr, is_quantiser
from .ops import padded
from .shapes import source

ROOM = 2**30  # the largest bias in codes: half of what 32 bits hold, the rest is for the products
LANES = 16  # fewer output channels than this keep onnxruntime from its fast integer kernel: zeros fill them up


def conv(writer: Any, node: fx.Node) -> str:
    """A convolution of one to three axes; onnxruntime's fast integer kernel asks for LANES output channels.

    A picture's few channels are filled up to those where one quantiser reads them, which then cuts the zeros off;
    with groups, more channels would be other groups.
    """
    conv: Any = module_of(node)
    is_transposed, axes = isinstance(conv, TRANSPOSED), len(conv.kernel_size)
    grid = writer.grids.get(node.all_input_nodes[0])
    weight = int_repr(conv)
    runs_on_integers = weight is not None and grid is not None and not is_transposed and _is_quantised(node)
    runs_on_integers &= writer.activation_type == "uint8"
    if runs_on_integers and axes == 2 and conv.out_channels < LANES and conv.groups == 1 and calls(node) == 1:
        writer.padded[node] = conv.out_channels
    parts = _plain(writer, node) if weight is None else _rounded(writer, node, grid, weight)
    reads, before, after = source(writer, node), *_padding(conv)
    if conv.padding_mode != "zeros":
        # torch's own attribute, which counts from the last axis; odd where one number stands for both
        around = list(conv._reversed_padding_repeated_twice)
        reads, before, after = padded(writer, node, around, conv.padding_mode), (0,) * axes, (0,) * axes
    attributes = {"pads": [*before, *after], "kernel_shape": conv.kernel_size}
    ones = (1,) * axes
    defaults = {"strides": ones, "dilations": ones, "group": 1}  # ONNX's, which are left unwritten
    settings = {"strides": of_axes(conv.stride, axes), "dilations": of_axes(conv.dilation, axes), "group": conv.groups}
    attributes |= {key: value for key, value in settings.items() if value != defaults[key]}
    attributes |= {"output_padding": of_axes(conv.output_padding, axes)} if is_transposed else {}
    return writer.emit("ConvTranspose" if is_transposed else "Conv", [reads, *parts], node.name, **attributes)


def _padding(conv: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The padding before and after each axis by number, where a word says it too."""
    axes = len(conv.kernel_size)
    if not isinstance(conv.padding, str):
        return of_axes(conv.padding, axes), of_axes(conv.padding, axes)
    both = zip(of_axes(conv.dilation, axes), conv.kernel_size, strict=True)
    total = [d * (k - 1) if conv.padding == "same" else 0 for d, k in both]
    return tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)


def calls(node: fx.Node) -> int:
    """How often the module that a node calls is called."""
    return sum(other.target == node.target for other in node.graph.nodes if other.op == "call_module")


def _is_quantised(node: fx.Node) -> bool:
    """Whether one quantiser alone reads a node."""
    readers = list(node.users)
    return len(readers) == 1 and is_quantiser(module_of(readers[0]))


def _plain(writer: Any, node: fx.Node) -> list[str]:
    conv: Any = module_of(node)
    name = str(node.target)
    parts = [writer.constant(f"{name}.weight", conv.weight)]
    return parts if conv.bias is None else [*parts, writer.constant(f"{name}.bias", conv.bias)]


def _rounded(writer: Any, node: fx.Node, grid: Any, weight: tuple[Tensor, Tensor]) -> list[str]:
    """The weight as codes, the bias as int32 where the input lies on a grid and the runtime takes it so."""
    layer: Any = module_of(node)
    name, (int_weights, step) = str(node.target), weight
    is_product = _is_product(node)
    if writer.activation_type == "int8" or is_product:
        grid = None
    if grid is not None and layer.bias is not None:
        int_weights, step = _with_room(int_weights, step, layer, grid)
    is_per_channel = step.numel() > 1
    axis = {"axis": int(isinstance(layer, TRANSPOSED) or is_product)} if is_per_channel else {}
    flat = step.flatten() if is_per_channel else step.reshape(())
    if short := -len(int_weights) % LANES if node in writer.padded else 0:
        int_weights = F.pad(int_weights, (0, 0) * 3 + (0, short))
        flat = F.pad(flat, (0, short), value=1.0) if is_per_channel else flat
    again = f"#{node.name}" if f"{name}.w" in writer.constants else ""  # runtimes change codes where they are read
    codes = writer.codes(f"{name}.w{again}", int_weights.T if is_product else int_weights)
    zeros = torch.zeros_like(flat, dtype=torch.int8)
    weight_inputs = [
        codes,
        writer.constant(f"{name}.w.step{again}", flat),
        writer.codes(f"{name}.w.zero{again}", zeros, like=codes),
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


def _with_room(int_weights: Tensor, step: Tensor, layer: Any, grid: Any) -> tuple[Tensor, Tensor]:
    """Codes and step of a weight on which the bias fits into 32 bits.

    Weights of nearly 0 have a step so fine that a plain bias is more than 2^31 of it; what a coarser one loses of them
    is nothing beside that bias.
    """
    bias = layer.bias.detach().double().abs()
    largest = bias.view(_repeats(layer), -1).amax(0).view_as(step) if step.numel() > 1 else bias.max()
    coarse = torch.maximum(step.double(), largest / (ROOM * grid.value)).to(step)
    if not (coarse > step).any():
        return int_weights.to(torch.int8), step
    codes = torch.where(coarse > step, (int_weights * (step.double() / coarse)).round(), int_weights)
    return codes.to(torch.int8), coarse


def _repeats(layer: Any) -> int:
    """How often a step a channel of the weight stands for a channel that is written: once for each transposed group."""
    return layer.groups if isinstance(layer, TRANSPOSED) else 1


def linear(writer: Any, node: fx.Node) -> str:
    """A linear layer; on more than two axes as a matrix product, which every runtime takes there."""
    layer: Any = module_of(node)
    weight = int_repr(layer)
    if weight is not None:
        parts = _rounded(writer, node, writer.grids.get(node.all_input_nodes[0]), weight)
    else:
        parts = _plain(writer, node)
    if not _is_product(node):
        return writer.emit("Gemm", [source(writer, node), *parts], node.name, transB=1)
    if weight is None:
        parts[0] = writer.constant(f"{node.target}.turned.weight", layer.weight.T)
    if layer.bias is None:
        return writer.emit("MatMul", [source(writer, node), *parts], node.name)
    product = writer.emit("MatMul", [source(writer, node), parts[0]], f"{node.name}.product")
    return writer.emit("Add", [product, parts[1]], node.name)


def _is_product(node: fx.Node) -> bool:
    return isinstance(module_of(node), nn.Linear) and len(shape(node)) != 2


FORMS = dict.fromkeys((*CONVS, *TRANSPOSED), conv) | {nn.Linear: linear}
