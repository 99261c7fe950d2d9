"""The decoupled network as it saves time: one picture at a time, filters that are off are not computed at all."""

import time
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..core import cost
from ..core.graph.chains import between
from ..core.graph.operators import CONVS, NORMS
from ..core.graph.tracing import module_of
from . import equations as eq
from .layers import Controller, gates
from .placement import DENSE, Decoupled, Sources, axis_of

ROUNDS = 5  # times that a layer is timed in each way
_CONVOLVE = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}  # by the number of axes of what is read, (N, C, ...)


class Skipping(nn.Module):
    """A decoupled network that computes only what is on: the same outputs as with gates, picture by picture."""

    graph: Any

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.graph(image) for image in x.split(1)])


class GatedLayer(nn.Module):
    """A gated layer, what stands between it and its gate, and the gate, for the filters and inputs that are on.

    `on` are the filters of the present picture; a later layer that reads them asks here for its columns. Where it is
    `densified` it computes everything and gates it, which is faster where there is little to compute.
    """

    layer: Any  # Conv1d, Conv2d, Conv3d or Linear
    controller: Any

    def __init__(self, layer: Any, chain: list[fx.Node], controller: Controller, sources: Sources) -> None:
        super().__init__()
        self.layer, self.controller, self.sources, self.densified = layer, controller, sources, False
        self.axis = axis_of(layer)
        self.parts = nn.ModuleList(module_of(node) or Call(node) for node in chain)
        if len(self.parts) and isinstance(self.parts[0], NORMS) and self.parts[0].running_mean is not None:
            self.layer = torch.nn.utils.fusion.fuse_conv_bn_eval(layer, self.parts[0])
            del self.parts[0]
        self.readable: list[GatedLayer] = []  # all of them, by the number of their gate
        self.on = torch.empty(0, dtype=torch.int64)

    def forward(self, a: Tensor) -> Tensor:
        """a (1, C_in, ...) -> (1, C_out, ...), exactly zero where filters are off; of tokens (1, ..., C)."""
        z = eq.encoding(self.controller(a.movedim(self.axis, 1)))
        self.on = z[0].nonzero().flatten()
        if self.densified or not len(self.on):
            y = self.layer(a)
            for part in self.parts:
                y = part(y)
            return eq.gated(y.movedim(self.axis, 1), z).movedim(1, self.axis)
        weight = self.layer.weight.index_select(0, self.on)
        a, weight = _read(a, weight, self)
        bias = None if self.layer.bias is None else self.layer.bias.index_select(0, self.on)
        y = _compute(self.layer, a, weight, bias)
        for part in self.parts:
            y = _apply(part, y, self.on)
        size = list(y.shape)
        size[self.axis] = len(self.layer.weight)
        return y.new_zeros(size).index_copy(self.axis, self.on, y)


class ReadingLayer(nn.Module):
    """A linear layer without a gate, on the hidden units that are on."""

    layer: Any

    def __init__(self, layer: Any, sources: Sources) -> None:
        super().__init__()
        self.layer, self.sources, self.densified, self.axis = layer, sources, False, -1
        self.readable: list[GatedLayer] = []

    def forward(self, a: Tensor) -> Tensor:
        """a (1, ..., C_in) -> (1, ..., C_out)."""
        if self.densified:
            return self.layer(a)
        a, weight = _read(a, self.layer.weight, self)
        return _compute(self.layer, a, weight, self.layer.bias)


def _read(a: Tensor, weight: Tensor, part: GatedLayer | ReadingLayer) -> tuple[Tensor, Tensor]:
    """What a layer reads and its weight, for the inputs that are on, or may be."""
    if all(gate == DENSE for gate, _ in part.sources):
        return a, weight
    start, columns = 0, []
    for gate, count in part.sources:
        on = torch.arange(count, device=a.device) if gate == DENSE else part.readable[gate].on
        columns.append(on + start)
        start += count
    index = torch.cat(columns)
    if len(index):
        return a.index_select(part.axis, index), weight.index_select(1, index)
    return torch.zeros_like(a.narrow(part.axis, 0, 1)), torch.zeros_like(weight[:, :1])  # what is left is the bias


class Call(nn.Module):
    """A function or method of the graph, such as F.relu, as a module."""

    target: Any

    def __init__(self, node: fx.Node) -> None:
        super().__init__()
        self.op, self.target, self.rest, self.named = node.op, node.target, node.args[1:], dict(node.kwargs)

    def forward(self, x: Tensor) -> Tensor:
        if self.op == "call_method":
            return getattr(x, self.target)(*self.rest, **self.named)
        return self.target(x, *self.rest, **self.named)


def skipping(decoupled: Decoupled, example: Tensor | None = None) -> Skipping:
    """The network as it is run one picture at a time, on copies of its weights; filters that are off cost nothing.

    With an `example` (1, C, H, W) each layer is timed both ways on it, and computed densely and gated where that
    is faster: picking weights out takes time, too. Left out, every layer is skipped filter by filter.
    """
    graph = deepcopy(decoupled.model).eval()
    nodes = {str(node.target): node for node in graph.graph.nodes if node.op == "call_module"}
    gates_of = gates(graph)
    gated: list[GatedLayer] = []
    for site in decoupled.sites:
        node, gate = nodes[site.layer], nodes[site.gate]
        chain = between(node, gate.all_input_nodes[0])
        gated.append(GatedLayer(module_of(node), chain, gates_of[site.gate].controller, site.sources))
        _replace(graph, [node, *chain, gate], f"skip_{site.gate}", gated[-1])
    reading = [ReadingLayer(graph.get_submodule(reader.layer), reader.sources) for reader in decoupled.readers]
    for reader, layer in zip(decoupled.readers, reading, strict=True):
        _replace(graph, [nodes[reader.layer]], f"skip_{reader.layer.replace('.', '_')}", layer)
    parts: list[Any] = [*gated, *reading]
    for part in parts:
        object.__setattr__(part, "readable", gated)  # a plain list: they are not one another's children
    graph.delete_all_unused_submodules()
    graph.recompile()
    net = Skipping(graph).eval()
    if example is not None:
        _choose(net, parts, example[:1])
    return net


def _replace(graph: fx.GraphModule, chain: list[fx.Node], name: str, module: nn.Module) -> None:
    """Call a module in the place of a chain of nodes."""
    graph.add_submodule(name, module)
    with graph.graph.inserting_before(chain[0]):
        node = graph.graph.call_module(name, (chain[0].all_input_nodes[0],))
    chain[-1].replace_all_uses_with(node)
    for old in reversed(chain):
        graph.graph.erase_node(old)


@torch.no_grad()
def _choose(net: Skipping, parts: list[Any], x: Tensor) -> None:
    """Let each layer be computed densely where that takes less time, on what reaches it for this picture."""
    reads: dict[nn.Module, Tensor] = {}
    hooks = [part.register_forward_pre_hook(lambda part, inputs: reads.update({part: inputs[0]})) for part in parts]
    try:
        net(x)
    finally:
        for hook in hooks:
            hook.remove()
    for part in parts:
        times: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(ROUNDS):
            for densified, seconds in times.items():
                seconds.append(_seconds(part, reads[part], densified))
        part.densified = min(times[True]) < min(times[False])


def _seconds(part: Any, a: Tensor, densified: bool) -> float:
    part.densified = densified
    cost.settle(a.device)
    start = time.perf_counter()
    part(a)
    cost.settle(a.device)
    return time.perf_counter() - start


def _compute(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The layer with other weights."""
    return F.linear(x, weight, bias) if isinstance(layer, nn.Linear) else _convolve(layer, x, weight, bias)


def _convolve(conv: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if conv.padding_mode != "zeros":
        x = F.pad(x, conv._reversed_padding_repeated_twice, mode=conv.padding_mode)
    padding = conv.padding if conv.padding_mode == "zeros" else 0
    return _CONVOLVE[x.dim()](x, weight, bias, conv.stride, padding, conv.dilation)


def _apply(part: Any, y: Tensor, on: Tensor) -> Tensor:
    """A part on the channels that are on."""
    if isinstance(part, NORMS):
        values = (part.running_mean, part.running_var, part.weight, part.bias)
        mean, var, weight, bias = (None if value is None else value[on] for value in values)
        is_fresh = part.running_mean is None  # a norm without statistics takes those of the picture
        return F.batch_norm(y, mean, var, weight, bias, is_fresh, 0.0, part.eps)
    if isinstance(part, CONVS):  # depthwise
        bias = None if part.bias is None else part.bias[on]
        return _CONVOLVE[y.dim()](y, part.weight[on], bias, part.stride, part.padding, part.dilation, len(on))
    if isinstance(part, nn.PReLU) and part.num_parameters > 1:
        return F.prelu(y, part.weight[on])
    return part(y)
