"""Where gates sit in a network, which gates a convolution reads through, and what a path through them costs."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..core import cost
from ..core.graph.chains import between, last_affine
from ..core.graph.channels import Channels
from ..core.graph.operators import CONVS, is_cat, is_depthwise, keeps_zero, operands
from ..core.graph.tracing import ancestors, module_of, reached, trace, width
from . import equations as eq
from .layers import Controller, Gate, gates

DENSE = -1  # what a convolution reads without a gate in between
Sources = tuple[tuple[int, int], ...]  # (index of the gate or DENSE, channels), along the input axis


@dataclass(frozen=True)
class Site:
    """One gated convolution: its name, its gate's name, its filters, and through which gates it reads.

    `macs` are its multiply-adds if everything is on, `tail` those of the depthwise layers between it and its gate,
    `control` those of its controller.
    """

    conv: str
    gate: str
    filters: int
    sources: Sources
    macs: int
    tail: int
    control: int


@dataclass(frozen=True)
class Decoupled:
    """A network with gates, their sites, its other multiply-adds, and what stays ungated with the reason."""

    model: fx.GraphModule
    sites: tuple[Site, ...]
    rest: int
    ungated: dict[str, str]

    @property
    def dense(self) -> int:
        """Multiply-adds of the network without gates."""
        return self.rest + sum(site.macs + site.tail for site in self.sites)

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
    """A copy of the network with a gate behind each convolution but the first; the network itself is never changed.

    A gate stands behind the batch norm and the activation, its controller reads what the convolution reads.
    """
    graph = trace(model, example)
    gated, ungated = _gated_convs(graph)
    if not gated:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(ungated.items())[:3])
        raise ValueError(
            f"{type(model).__name__} has no convolution that can be gated ({reasons or 'it has none at all'}): "
            "decoupling needs convolutions behind the first one"
        )
    macs = cost.layer_macs(graph, example)
    sites: list[Site] = []
    for index, (conv, end, tail) in enumerate(gated):
        name, a = f"gate_{index}", conv.all_input_nodes[0]
        controller = Controller(width(a), width(conv), bias)
        graph.add_submodule(name, Gate(controller, mix).to(graph.get_parameter(f"{conv.target}.weight").dtype))
        _insert(graph, end, a, name)
        control = controller.fc1.weight.numel() + controller.fc2.weight.numel()
        conv_macs, tail_macs = macs.pop(str(conv.target), 0), sum(macs.pop(layer, 0) for layer in tail)
        sites.append(Site(str(conv.target), name, width(conv), (), conv_macs, tail_macs, control))
    graph.recompile()
    sources = _sources(graph, {site.gate: index for index, site in enumerate(sites)})
    sites = [Site(**{**vars(site), "sources": sources[site.conv]}) for site in sites]
    return Decoupled(graph.to(next(model.parameters()).device), tuple(sites), sum(macs.values()), ungated)


def strip(graph: fx.GraphModule) -> None:
    """Take every gate out of a network."""
    names = set(gates(graph))
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and node.target in names:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.delete_all_unused_submodules()
    graph.recompile()


def _gated_convs(graph: fx.GraphModule) -> tuple[list[tuple[fx.Node, fx.Node, list[str]]], dict[str, str]]:
    """(convolution, where its gate goes, the depthwise layers in between), and what stays ungated with the reason."""
    channels = Channels(graph)
    gated, ungated = [], {}
    for node in graph.graph.nodes:
        module = module_of(node)
        if not isinstance(module, CONVS) or is_depthwise(module):
            continue
        reason = _reason(node, module, channels)
        if reason:
            ungated[str(node.target)] = reason
            continue
        last, end = last_affine(node)
        gated.append((node, end, [str(n.target) for n in between(node, last) if is_depthwise(module_of(n))]))
    return gated, ungated


def _reason(node: fx.Node, module: Any, channels: Channels) -> str:
    """Why a convolution is not gated, '' if it can be."""
    if not any(isinstance(module_of(above), CONVS) for above in ancestors(node) - {node}):
        return "it is a first layer"
    if node.target in channels.shared:
        return "it is used more than once"
    if module.groups > 1:
        return "it has groups"
    if _is_output(node):
        return "its channels are the network's output"
    return ""


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


def _sources(graph: fx.GraphModule, index: dict[str, int]) -> dict[str, Sources]:
    """For each convolution, the gates whose zeros it reads."""
    origin: dict[fx.Node, Sources] = {}
    read: dict[str, Sources] = {}
    for node in graph.graph.nodes:
        above = node.all_input_nodes
        if node.op == "call_module" and node.target in index:
            origin[node] = ((index[str(node.target)], width(above[0])),)
        elif is_cat(node):
            origin[node] = tuple(part for operand in operands(node) for part in origin[operand])
        elif len(above) == 1 and keeps_zero(node) and width(node) == width(above[0]):
            origin[node] = origin[above[0]]
        else:
            origin[node] = ((DENSE, width(node)),)
        if isinstance(module_of(node), CONVS):
            read[str(node.target)] = origin[above[0]]
    return read
