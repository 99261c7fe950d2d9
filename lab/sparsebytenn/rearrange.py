"""Whole-network rearrangement: which layers are pruned in blocks, which rows must move together, and moving them.

A block is G rows that stand side by side, so the order of rows decides what is pruned together. A new order of a
layer's output channels is a new order for everything that these channels meet: batch norms, depthwise filters, residual
sums and the columns of all readers. `core.graph.channels` says which axes are one class; a class moves as one, or
not at all. A block of several inputs asks for the same of the columns: who writes them decides their order.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ..core.batch import Example
from ..core.graph.channels import Channels, Layout
from ..core.graph.operators import CONVS, is_depthwise
from ..core.graph.slices import Slice, cut, has_channels
from ..core.graph.tracing import earlier, later, module_of, propagate, shared, trace

LAYERS = (*CONVS, nn.Linear)
Block = int | tuple[int, int]  # its rows, of one input; or its rows and inputs


def sides(block: Block) -> tuple[int, int]:
    """The rows and the inputs of a block."""
    return block if isinstance(block, tuple) else (block, 1)


@dataclass(frozen=True)
class Ground:
    """What of a traced network can be pruned and moved.

    layers: the layers pruned in blocks. dense: those left as they are, with the reason. classes: for each class of
    channels that may move, the pruned layers that write it, under the name of its first writer; with blocks of several
    inputs also of classes that pruned layers only read. fixed: pruned layers whose rows cannot move, with the reason.
    reads: the channels that lie on the columns of a pruned layer.
    """

    layers: tuple[str, ...]
    dense: dict[str, str]
    classes: dict[str, tuple[str, ...]]
    fixed: dict[str, str]
    reads: dict[str, Layout]


def survey(graph: fx.GraphModule, block: Block, channels: Channels | None = None) -> Ground:
    """Sort the layers of a traced network; ValueError in one line if nothing in it can be pruned in blocks.

    `channels` are the network's, where they are known already.
    """
    several, between = shared(graph), (later(graph, _is_layer), earlier(graph, _is_layer))
    listed = filter(_is_layer, graph.graph.nodes)
    nodes = {str(node.target): node for node in listed}
    reasons = {name: _stays_dense(node, several, between, block) for name, node in nodes.items()}
    layers = tuple(name for name, reason in reasons.items() if not reason)
    dense = {name: reason for name, reason in reasons.items() if reason}
    if not layers:
        first = "; ".join(f"{name}: {reason}" for name, reason in list(dense.items())[:4]) or "it has no such layers"
        rows, inputs = sides(block)
        size = f"{rows} rows" if inputs == 1 else f"{rows} rows x {inputs} inputs"
        raise ValueError(f"nothing in this network can be pruned in blocks of {size} ({first})")
    channels = channels or Channels(graph)
    reads = {name: _read(channels, nodes[name]) for name in layers}
    return Ground(layers, dense, *_classes(channels, layers, reads if sides(block)[1] > 1 else {}), reads)


def _read(channels: Channels, node: fx.Node) -> Layout:
    """The channels that lie on the columns of a layer."""
    return channels.entries(node.all_input_nodes[0], -1 if isinstance(module_of(node), nn.Linear) else 1)


def _classes(
    channels: Channels, layers: tuple[str, ...], reads: Mapping[str, Layout]
) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """The classes of channels that pruned layers write, or read as `reads` says, and that may move.

    And the layers whose rows cannot, and why.
    """
    frozen, wanted = _frozen(channels), {a[0] for layout in reads.values() for a in channels.addresses(layout) if a}
    classes: dict[str, tuple[str, ...]] = {}
    fixed: dict[str, str] = {}
    for group, writers in channels.producers.items():
        pruned = tuple(name for name in writers if name in layers)
        if reason := channels.frozen.get(group) or frozen.get(group):
            fixed |= dict.fromkeys(pruned, reason)
        elif pruned or group in wanted:
            classes[writers[0]] = pruned
    written = {name for writers in channels.producers.values() for name in writers}
    fixed |= dict.fromkeys([name for name in layers if name not in written], "its rows are not followed")
    return classes, fixed


def permute(model: nn.Module, orders: Mapping[str, Tensor], example: Example) -> fx.GraphModule:
    """A traced copy of the model with its channels in other orders; it computes the same function.

    `orders` gives for a class, by the name of a layer that writes it, where each new channel stood: (C,) of 0..C-1.
    Raises ValueError for a name, an order or a class that does not allow it.
    """
    graph = trace(model, example)
    return rearranged(graph, moves(Channels(graph), orders), example)


@dataclass(frozen=True)
class Beside:
    """Where the entries of a tensor that stands beside the layers (a layer scale) were before, along one axis."""

    index: Tensor
    axis: int


def rearranged(graph: fx.GraphModule, parts: Mapping[str, Slice | Beside], example: Example) -> fx.GraphModule:
    """The traced network itself, each of its modules with the rows and columns of its part in their new places."""
    for name, part in parts.items():
        if isinstance(part, Slice):
            part.apply(graph.get_submodule(name))
        else:
            parent, _, last = name.rpartition(".")
            cut(graph.get_submodule(parent), last, part.index, axis=part.axis)
    graph.recompile()
    propagate(graph, example)
    return graph


def moves(channels: Channels, orders: Mapping[str, Tensor]) -> dict[str, Slice | Beside]:
    """Where rows and columns of each module, and tensors beside them, stood before, when the classes take these orders.

    Tensors are listed under their own names.
    """
    frozen = _frozen(channels)
    index = {}
    for name, order in orders.items():
        try:
            group = channels.group_of(name)
        except KeyError:
            if name not in channels.shared:
                raise ValueError(f"orders names {name!r}, which writes no channels of this network") from None
            raise ValueError(
                f"the channels of {name} cannot move: the weight of {name} is used more than once; "
                "leave it out of orders"
            ) from None
        if reason := channels.frozen.get(group) or frozen.get(group):
            raise ValueError(f"the channels of {name} cannot move: {reason}; leave it out of orders")
        if not torch.equal(order.sort().values, torch.arange(channels.sizes[group])):
            raise ValueError(
                f"orders[{name!r}] is not an order of {channels.sizes[group]} channels: give each of 0.. once"
            )
        index[group] = order
    parts: dict[str, Slice | Beside] = {}
    for node in channels.graph.graph.nodes:
        if has_channels(node):
            parts[str(node.target)] = Slice(channels, node, index)
        elif node.op == "get_attr" and (layout := channels.layouts.get(node, ())):
            parts[str(node.target)] = Beside(channels.gather(layout, index), channels.axes[node])
    return parts


def _stays_dense(node: fx.Node, several: set[str], between: tuple[set[fx.Node], set[fx.Node]], block: Block) -> str:
    """Why a layer is not pruned, '' if it is; `between` are the nodes behind layers and those before layers."""
    module = module_of(node)
    if not isinstance(module, LAYERS):
        return f"{type(module).__name__} is not pruned"
    if is_depthwise(module):
        return "depthwise"
    if isinstance(module, CONVS) and module.groups > 1:
        return "convolution in groups"
    if node.target in several:
        return "its weight is used more than once"
    if node not in between[0]:
        return "it reads the network's input"
    if node not in between[1]:
        return "it gives the network's answer"
    (rows, inputs), (rows_there, inputs_there) = sides(block), module.weight.shape[:2]
    if rows_there < rows:
        return f"fewer than {rows} rows"
    return f"fewer than {inputs} inputs" if inputs_there < inputs else ""


def _is_layer(node: fx.Node) -> bool:
    """Whether a node calls a module that mixes what it reads: one with a weight of two axes or more."""
    module = module_of(node)
    return module is not None and any(p.dim() > 1 for p in module.parameters())


def _frozen(channels: Channels) -> dict[int, str]:
    """The classes without an order of their own, with the reason."""
    return channels.unordered | dict.fromkeys(channels.heads & set(channels.unordered), "its heads stay whole")
