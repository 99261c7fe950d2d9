"""Where gates sit in a network, which gates a convolution reads through, and what a path through them costs."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..core import cost
from ..core.graph.chains import between, last_affine
from ..core.graph.operators import (
    CONVS,
    is_cat,
    is_depthwise,
    is_homogeneous,
    keeps_zero,
    operands,
    sees_pixels,
)  # fmt: skip
from ..core.graph.tracing import gives_tensors, later, module_of, reached, repeated, shape, trace, width
from . import equations as eq
from .layers import Controller, Gate, gates

DENSE = -1  # what a convolution reads without a gate in between
Sources = tuple[tuple[int, int], ...]  # (index of the gate or DENSE, channels), along the input axis


@dataclass(frozen=True)
class Site:
    """One gated layer: its name, its gate's name, its filters, and through which gates it reads.

    It is a convolution, or a linear layer whose filters are the hidden units of an MLP over tokens. `macs` are its
    multiply-adds if everything is on, `tail` those of the depthwise layers between it and its gate, `control` those of
    its controller.
    """

    layer: str
    gate: str
    filters: int
    sources: Sources
    macs: int
    tail: int
    control: int


@dataclass(frozen=True)
class UnitReader:
    """A linear layer without a gate that reads hidden units through gates: its name, the gates, its multiply-adds."""

    layer: str
    sources: Sources
    macs: int


@dataclass(frozen=True)
class Decoupled:
    """A network with gates, their sites, what reads through them, its other multiply-adds, and what stays ungated with
    the reason."""

    model: fx.GraphModule
    sites: tuple[Site, ...]
    readers: tuple[UnitReader, ...]
    rest: int
    ungated: dict[str, str]

    @property
    def dense(self) -> int:
        """Multiply-adds of the network without gates."""
        readers = sum(reader.macs for reader in self.readers)
        return self.rest + readers + sum(site.macs + site.tail for site in self.sites)

    @property
    def control(self) -> int:
        """Multiply-adds of all controllers."""
        return sum(site.control for site in self.sites)

    def macs(self, z: list[Tensor]) -> Tensor:
        """Multiply-adds of each picture's path with the controllers': encodings (N, C_l) of every site -> (N,)."""
        on = [bits.double().mean(1) for bits in z]  # (N,) each
        read = [_share_read(site.sources, z) for site in self.sites]
        all_on = torch.ones_like(on[0])
        terms = [(site.macs, read[i], on[i]) for i, site in enumerate(self.sites)]
        terms += [(site.tail, all_on, on[i]) for i, site in enumerate(self.sites)]
        terms += [(reader.macs, _share_read(reader.sources, z), all_on) for reader in self.readers]
        terms += [(self.rest + self.control, all_on, all_on)]
        macs, on_in, on_out = zip(*terms, strict=True)
        return eq.path_macs(all_on.new_tensor(macs), torch.stack(on_in, 1), torch.stack(on_out, 1))


def _share_read(sources: Sources, z: list[Tensor]) -> Tensor:
    """The share of the input channels that is on, for each picture: (N,)."""
    parts = [
        z[gate].double().sum(1) if gate != DENSE else z[0].new_full((len(z[0]),), n, dtype=torch.float64)
        for gate, n in sources
    ]
    return torch.stack(parts).sum(0) / sum(n for _, n in sources)


def insert_gates(model: nn.Module, example: Tensor, *, bias: float = 2.0, mix: str = "sample") -> Decoupled:
    """A copy of the network with a gate behind each convolution but the first, and behind the hidden units of MLPs over
    tokens; the network itself is never changed.

    A gate stands behind the batch norm and the activation, its controller reads what the layer reads.
    """
    return insert_gates_in(trace(model, example), example, bias=bias, mix=mix)


def insert_gates_in(graph: fx.GraphModule, example: Tensor, *, bias: float = 2.0, mix: str = "sample") -> Decoupled:
    """`insert_gates` in a traced network itself, not in a copy."""
    several = repeated(graph)
    gated, ungated = _gated_layers(graph, several)
    if not gated:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(ungated.items())[:3])
        raise ValueError(
            f"{type(graph).__name__} has no convolution that can be gated ({reasons or 'it has none at all'}): "
            "decoupling needs convolutions behind the first one, or MLPs over tokens"
        )
    macs = cost.layer_macs(graph, example)
    sites: list[Site] = []
    for index, (node, end, tail) in enumerate(gated):
        name, a, axis = f"gate_{index}", node.all_input_nodes[0], axis_of(module_of(node))
        controller = Controller(shape(a)[axis], shape(node)[axis], bias)
        gate = Gate(controller, mix, axis).to(graph.get_parameter(f"{node.target}.weight").dtype)
        graph.add_submodule(name, gate)
        _insert(graph, end, a, name)
        control = controller.fc1.weight.numel() + controller.fc2.weight.numel()
        layer_macs, tail_macs = macs.pop(str(node.target), 0), sum(macs.pop(layer, 0) for layer in tail)
        sites.append(Site(str(node.target), name, shape(node)[axis], (), layer_macs, tail_macs, control))
    graph.recompile()
    sources = _sources(graph, {site.gate: index for index, site in enumerate(sites)}, several)
    sites = [Site(**{**vars(site), "sources": sources.pop(site.layer)}) for site in sites]
    readers = [
        UnitReader(name, read, macs.pop(name, 0))
        for name, read in sources.items()
        if axis_of(graph.get_submodule(name)) == -1 and any(gate != DENSE for gate, _ in read)
    ]
    device = next(graph.parameters()).device
    return Decoupled(graph.to(device), tuple(sites), tuple(readers), sum(macs.values()), ungated)


def axis_of(layer: nn.Module | None) -> int:
    """The axis of a layer's filters: 1, or -1 for the units of a linear layer."""
    return -1 if isinstance(layer, nn.Linear) else 1


def strip(graph: fx.GraphModule) -> None:
    """Take every gate out of a network."""
    names = set(gates(graph))
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and node.target in names:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.delete_all_unused_submodules()
    graph.recompile()


def _gated_layers(
    graph: fx.GraphModule, several: set[str]
) -> tuple[list[tuple[fx.Node, fx.Node, list[str]]], dict[str, str]]:
    """(layer, where its gate goes, the depthwise layers in between), and what stays ungated with the reason."""
    gated, ungated = [], {}
    behind_layers = later(graph, _is_layer)
    for node in graph.graph.nodes:
        if not _is_candidate(node):
            continue
        reason = _reason(node, node in behind_layers, several)
        if reason:
            ungated[str(node.target)] = reason
            continue
        last, end = gate_position(node)
        gated.append((node, end, [str(n.target) for n in between(node, last) if is_depthwise(module_of(n))]))
    return gated, ungated


def _is_layer(node: fx.Node) -> bool:
    """Whether a node calls a convolution, or a linear layer over tokens."""
    return isinstance(module_of(node), CONVS) or _over_tokens(node)


def _is_candidate(node: fx.Node) -> bool:
    """Whether a node calls a convolution that mixes channels, or a linear layer over tokens."""
    return _is_layer(node) and not is_depthwise(module_of(node))


def _over_tokens(node: fx.Node) -> bool:
    """Whether a node calls a linear layer over tokens: (N, ..., C)."""
    return isinstance(module_of(node), nn.Linear) and len(shape(node)) > 2


def gate_position(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The last layer with weights on the way to a layer's gate, and the node behind which the gate stands."""
    if not _over_tokens(node):
        return last_affine(node)
    end = node
    while len(end.users) == 1 and _keeps_units(next(iter(end.users))) and is_homogeneous(next(iter(end.users))):
        end = next(iter(end.users))
    return node, end


def _keeps_units(node: fx.Node) -> bool:
    """Whether a node gives every unit of every token alone, and zero for zero."""
    above = node.all_input_nodes
    return len(above) == 1 and shape(node) == shape(above[0]) and keeps_zero(node) and not sees_pixels(node)


def _reason(node: fx.Node, is_behind: bool, several: set[str]) -> str:
    """Why a layer is not gated, '' if it can be; `is_behind` another layer."""
    module: Any = module_of(node)
    if not is_behind:
        return "it is a first layer"
    if node.target in several:
        return "it is used more than once"
    given = next(above for above in node.graph.nodes if above.op == "placeholder")
    if shape(node)[0] != shape(given)[0]:
        return "its first axis is not that of the pictures"
    if isinstance(module, nn.Linear):
        return _reason_of_units(node)
    if module.groups > 1:
        return "it has groups"
    if _is_output(node):
        return "its channels are the network's output"
    return ""


def _reason_of_units(node: fx.Node) -> str:
    """Why a linear layer over tokens is not gated: only the hidden units of an MLP can be filters."""
    behind = reached(node, lambda present: present.users if present is node or _keeps_units(present) else ())[1:]
    behind = [user for user in behind if gives_tensors(user) or user.op == "output"]
    hidden = all(_keeps_units(user) or _over_tokens(user) for user in behind)
    return "" if hidden else "its units are not read by linear layers through an activation alone, as an MLP's are"


def _is_output(node: fx.Node) -> bool:
    """Whether a layer's channels reach the network's output without another layer that reads them."""
    behind = reached(node, lambda present: present.users if present is node or not _mixes(present) else ())
    return any(present.op == "output" for present in behind)


def _mixes(node: fx.Node) -> bool:
    """Whether a node calls a layer that reads several channels."""
    module = module_of(node)
    return isinstance(module, (nn.Linear, *CONVS)) and not is_depthwise(module)


def _insert(graph: fx.GraphModule, end: fx.Node, a: fx.Node, name: str) -> None:
    """Call the gate on the output of `end`, for all who read it; its controller reads `a`."""
    with graph.graph.inserting_after(end):
        gate = graph.graph.call_module(name, (end, a))
    gate.meta = dict(end.meta)
    for user in [user for user in end.users if user is not gate]:
        user.replace_input_with(end, gate)


def _sources(graph: fx.GraphModule, index: dict[str, int], several: set[str]) -> dict[str, Sources]:
    """For each convolution, and each linear layer behind hidden units, the gates whose zeros it reads."""
    origin: dict[fx.Node, Sources] = {}
    units: dict[fx.Node, Sources] = {}  # of nodes whose last axis is that of gated hidden units
    read: dict[str, Sources] = {}
    for node in graph.graph.nodes:
        above = node.all_input_nodes
        gate = module_of(node) if node.op == "call_module" and node.target in index else None
        origin[node] = ((DENSE, width(node)),)
        if isinstance(gate, Gate):
            (units if gate.axis == -1 else origin)[node] = ((index[str(node.target)], shape(node)[gate.axis]),)
        elif is_cat(node):
            origin[node] = tuple(part for operand in operands(node) for part in origin[operand])
        elif len(above) == 1 and keeps_zero(node) and width(node) == width(above[0]):
            origin[node] = origin[above[0]]
        if above and above[0] in units and _keeps_units(node):
            units[node] = units[above[0]]
        if isinstance(module_of(node), CONVS):
            read[str(node.target)] = origin[above[0]]
        elif _over_tokens(node) and node.target not in several:
            read[str(node.target)] = units.get(above[0], ((DENSE, shape(above[0])[-1]),))
    return read
