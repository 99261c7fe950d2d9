"""The decoupled network as it saves time: one picture at a time, filters that are off are not computed at all."""

import time
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..core.graph.chains import between
from ..core.graph.operators import CONVS, NORMS
from ..core.graph.tracing import module_of
from . import equations as eq
from .layers import Controller, gates
from .placement import DENSE, Decoupled, Site

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


class GatedConv(nn.Module):
    """A convolution, what stands between it and its gate, and the gate, for the filters and inputs that are on.

    `on` are the filters of the present picture; a later convolution that reads them asks here for its columns. Where
    it is `densified` it computes everything and gates it, which is faster where there is little to compute.
    """

    conv: Any  # Conv1d, Conv2d or Conv3d
    controller: Any

    def __init__(self, conv: Any, chain: list[fx.Node], controller: Controller, site: Site) -> None:
        super().__init__()
        self.conv, self.controller, self.sources, self.densified = conv, controller, site.sources, False
        self.parts = nn.ModuleList(module_of(node) or Call(node) for node in chain)
        if len(self.parts) and isinstance(self.parts[0], NORMS) and self.parts[0].running_mean is not None:
            self.conv = torch.nn.utils.fusion.fuse_conv_bn_eval(conv, self.parts[0])
            del self.parts[0]
        self.readable: list[GatedConv] = []  # all of them, by the number of their gate
        self.on = torch.empty(0, dtype=torch.int64)

    def forward(self, a: Tensor) -> Tensor:
        """a (1, C_in, ...) -> (1, C_out, ...), exactly zero where filters are off."""
        z = eq.encoding(self.controller(a))
        self.on = z[0].nonzero().flatten()
        if self.densified or not len(self.on):
            y = self.conv(a)
            for part in self.parts:
                y = part(y)
            return eq.gated(y, z)
        weight = self.conv.weight.index_select(0, self.on)
        if any(gate != DENSE for gate, _ in self.sources):
            columns = self._columns(a.device)
            a, weight = a.index_select(1, columns), weight.index_select(1, columns)
        bias = None if self.conv.bias is None else self.conv.bias.index_select(0, self.on)
        if not a.shape[1]:  # nothing comes in: what is left is the bias
            a, weight = _one_dark_channel(a), _one_dark_channel(weight)
        y = _convolve(self.conv, a, weight, bias)
        for part in self.parts:
            y = _apply(part, y, self.on)
        return y.new_zeros(1, len(self.conv.weight), *y.shape[2:]).index_copy(1, self.on, y)

    def _columns(self, device: torch.device) -> Tensor:
        """The input channels that are on, or may be."""
        start, columns = 0, []
        for gate, count in self.sources:
            on = torch.arange(count, device=device) if gate == DENSE else self.readable[gate].on
            columns.append(on + start)
            start += count
        return torch.cat(columns)


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
    convs: list[GatedConv] = []
    for site in decoupled.sites:
        conv, gate = nodes[site.conv], nodes[site.gate]
        chain = between(conv, gate.all_input_nodes[0])
        convs.append(GatedConv(graph.get_submodule(site.conv), chain, gates_of[site.gate].controller, site))
        name = f"skip_{site.gate}"
        graph.add_submodule(name, convs[-1])
        with graph.graph.inserting_before(conv):
            skip = graph.graph.call_module(name, (conv.all_input_nodes[0],))
        gate.replace_all_uses_with(skip)
        for node in (gate, *reversed(chain), conv):
            graph.graph.erase_node(node)
    for conv in convs:
        object.__setattr__(conv, "readable", convs)  # a plain list: they are not one another's children
    graph.delete_all_unused_submodules()
    graph.recompile()
    net = Skipping(graph).eval()
    if example is not None:
        _choose(net, convs, example[:1])
    return net


@torch.no_grad()
def _choose(net: Skipping, convs: list[GatedConv], x: Tensor) -> None:
    """Let each layer be computed densely where that takes less time, on what reaches it for this picture."""
    reads: dict[nn.Module, Tensor] = {}
    hooks = [conv.register_forward_pre_hook(lambda conv, inputs: reads.update({conv: inputs[0]})) for conv in convs]
    try:
        net(x)
    finally:
        for hook in hooks:
            hook.remove()
    for conv in convs:
        times: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(ROUNDS):
            for densified, seconds in times.items():
                seconds.append(_seconds(conv, reads[conv], densified))
        conv.densified = min(times[True]) < min(times[False])


def _seconds(conv: GatedConv, a: Tensor, densified: bool) -> float:
    conv.densified = densified
    start = time.perf_counter()
    conv(a)
    return time.perf_counter() - start


def _convolve(conv: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if conv.padding_mode != "zeros":
        x = F.pad(x, conv._reversed_padding_repeated_twice, mode=conv.padding_mode)
    padding = conv.padding if conv.padding_mode == "zeros" else 0
    return _CONVOLVE[x.dim()](x, weight, bias, conv.stride, padding, conv.dilation)


def _one_dark_channel(x: Tensor) -> Tensor:
    return x.new_zeros(len(x), 1, *x.shape[2:])


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
