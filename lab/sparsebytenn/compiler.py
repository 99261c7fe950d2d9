"""From a trained network to the engine's operators: norms folded, activations and sums fused, rows packed.

The engine has convolutions (groups 1 of any square window, depthwise 3 x 3 and 5 x 5), batch norms behind them, ReLU
and all that clamps, sums of two maps, the mean over the picture and linear layers. Anything else is a one-line error
that names it.

A value may be fused into what reads it only if nothing else reads it, and only by how it is read: as an input or as
what is added.
"""

import operator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from ..core import kernels
from ..core.batch import Example
from ..core.graph.calls import arguments, bounds, two
from ..core.graph.operators import is_depthwise
from ..core.graph.tracing import module_of, shape, trace
from .packed import Map, Network, Op
from .scheduling import chained, joined, tile_rows

K_TILE = 128  # columns of W whose rows of X stay in the first-level cache
_NOTHING = (nn.Dropout, nn.Dropout2d, nn.Identity)
_HAS = "convolutions, batch norms behind them, ReLU, ReLU6, clamps, sums, the mean over the picture, linear layers"
_FLATTENINGS = {"flatten", "view", "reshape", "squeeze", torch.flatten, torch.reshape, torch.squeeze}
FREE = (-np.inf, np.inf)


def compile(model: nn.Module, example: Example, *, interleaved: bool = False) -> Network:
    """The operators of a network for one input of the example's shape (1, C, H, W); the network is left as it is.

    `interleaved` takes pictures as (H, W, C) instead of (C, H, W). Raises ValueError naming the first operator that the
    engine does not have.
    """
    if not isinstance(example, torch.Tensor):
        raise ValueError(f"the network reads {len(example)} inputs: the engine takes one picture, (1, C, H, W)")
    if example.dim() != 4 or len(example) != 1:
        raise ValueError(f"example has shape {tuple(example.shape)}: the engine takes one picture, (1, C, H, W)")
    if any(tensor.is_complex() for tensor in (example, *model.parameters(), *model.buffers())):
        raise ValueError("the network or its example holds complex numbers: the engine computes with real ones")
    graph = trace(model, example).cpu()  # a copy: the network stays on its own device
    return chained(joined(_Builder(graph, interleaved).network()))


class _Builder:
    """Walks a traced graph and writes down operators.

    `values` says which map holds a node's output; `rows` holds the matrix of the operator that writes a map, until all
    norms are folded into it and it is packed. A vector (1, C), and a picture's mean (1, C, 1, 1), is a map of one row.
    """

    def __init__(self, graph: fx.GraphModule, interleaved: bool) -> None:
        self.graph, self.interleaved = graph, interleaved
        self.maps: list[Map] = []
        self.ops: list[Op] = []
        self.values: dict[fx.Node, int] = {}
        self.rows: dict[int, np.ndarray] = {}
        self.deinterleaved: dict[int, int] = {}  # the image whose channels are interleaved -> its planes

    def network(self) -> Network:
        output = image = -1
        meta: dict[str, Any] = {}
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                if image >= 0:
                    raise ValueError(f"the network takes a second input, {node.name}: the engine takes one picture")
                _, c, h, w = shape(node)
                image = self.values[node] = self._new(Map(c, h, w, self.interleaved))
            elif node.op == "output":
                output, meta = self._output(node.args[0])
            else:
                self._operator(node)
        ops = [replace(op, weights=packed_rows(op, self.rows[op.y])) if op.y in self.rows else op for op in self.ops]
        return Network(self.maps, ops, (image,), (output,), meta)

    def _output(self, output: Any) -> tuple[int, dict[str, Any]]:
        """The map that holds the network's output, and its shape without the batch axis."""
        if not isinstance(output, fx.Node):
            kind = type(output).__name__.removeprefix("immutable_")
            raise ValueError(f"the network answers with a {kind}: the engine gives one tensor, return that alone")
        index = self._planes(output)
        m = self.maps[index]
        return index, {"classes": m.w if m.c == 1 else m.c, "answer": list(shape(output)[1:])}

    def _new(self, m: Map) -> int:
        self.maps.append(m)
        return len(self.maps) - 1

    def _operator(self, node: fx.Node) -> None:
        module, target = module_of(node), node.target if node.op in ("call_function", "call_method") else None
        if isinstance(module, nn.Conv2d):
            self._convolution(node, module)
        elif isinstance(module, nn.BatchNorm2d):
            self._norm(node, module)
        elif isinstance(module, nn.Linear):
            self._linear(node, module)
        elif (clamp := bounds(node)) is not None:
            self._activation(node, clamp)
        elif target in (operator.add, torch.add, "add"):
            self._sum(node)
        elif _is_mean(node, module):
            self._mean(node)
        elif isinstance(module, _NOTHING):
            self.values[node] = self._map(_source(node))
        elif _is_flatten(node, module):
            self.values[node] = self._planes(_source(node))
        elif not (node.op == "get_attr" or not shape(node)):
            raise self._lacks(node)

    def _lacks(self, node: fx.Node) -> ValueError:
        return ValueError(f"the engine has no operator for {_called(node, module_of(node))}: it has {_HAS}")

    def _map(self, node: fx.Node) -> int:
        """The number of the map that holds what a node gives."""
        if node not in self.values:
            raise self._lacks(node)
        return self.values[node]

    def _planes(self, node: fx.Node) -> int:
        """The map that holds what a node gives as planes: only a convolution reads an image of interleaved channels.

        For all others a 1 x 1 convolution with the unit matrix takes the channels apart, once.
        """
        index = self._map(node)
        m = self.maps[index]
        if not m.interleaved:
            return index
        if index not in self.deinterleaved:
            planes = self.deinterleaved[index] = self._new(Map(m.c, m.h, m.w))
            self.rows[planes] = np.eye(m.c)
            rows = tile_rows(m.h, m.w, m.c)
            self.ops.append(Op("conv", "planes", index, planes, tile_rows=rows, bias=np.zeros(m.c)))
        return self.deinterleaved[index]

    def _emit(self, op: Op, node: fx.Node) -> None:
        self.ops.append(op)
        self.values[node] = op.y

    def _is_vector(self, node: fx.Node) -> bool:
        """Whether a picture of 1 x 1 pixels lies in a map of one row."""
        m = self.maps[self._map(node)]
        return shape(node)[1:] != (m.c, m.h, m.w)

    def _writer(self, node: fx.Node) -> Op:
        """The operator behind `node`, if nobody else reads what it gives."""
        source = _source(node)
        op = next((op for op in self.ops if op.y == self._map(source)), None)
        if op is None or op.y in self.deinterleaved.values() or not self._is_alone(source):
            raise ValueError(
                f"{_called(node, module_of(node))} follows {source.name}, which the engine cannot join it to: it must "
                "stand right behind a convolution, a linear layer, a mean or a sum, and be the only one that reads it"
            )
        return op

    def _is_alone(self, node: fx.Node) -> bool:
        """Whether one node alone reads the map that `node` stands for, under this name or another, such as a view's."""
        while sum(bool(shape(user)) or user.op == "output" for user in node.users) == 1:
            before = node.all_input_nodes[:1]
            if not before or self.values.get(before[0]) != self.values[node]:
                return True
            node = before[0]
        return False

    def _convolution(self, node: fx.Node, module: nn.Conv2d) -> None:
        source = _source(node)
        x = self._map(source)
        k, stride, pad = _window(node, module)
        _, c, h, w = shape(node)
        weight = module.weight.detach().double().numpy()  # (OC, IC / groups, k, k)
        bias = np.zeros(c) if module.bias is None else module.bias.detach().double().numpy()
        op = Op("conv", str(node.target), x, self._new(Map(c, h, w)), k=(k, k), stride=(stride, stride), pad=(pad, pad))
        op.bias = bias
        op.tile_rows = tile_rows(h, w, module.in_channels // module.groups * k * k if module.groups == 1 else c)
        if self._is_vector(source):
            if module.groups != 1 or (h, w) != (1, 1):
                raise ValueError(f"{node.target} reads a single pixel: the engine has 1 group there, and gives 1 x 1")
            op = Op("linear", op.name, x, op.y, bias=bias)
            self.maps[op.y], self.rows[op.y] = Map(1, 1, c), weight[:, :, pad, pad]  # the one tap that meets it
        elif is_depthwise(module) and module.in_channels == module.out_channels and module.in_channels > 1:
            if k not in (3, 5) or stride > 2:
                raise ValueError(
                    f"{node.target}: depthwise {k} x {k}, stride {stride}: the engine has 3 x 3 and 5 x 5, 1 and 2"
                )
            op.kind, op.taps, op.taps_bias, op.bias = "depthwise", weight.reshape(c, k * k), bias, None
            op.x = self._planes(source)
        elif module.groups != 1:
            raise ValueError(f"{node.target} has {module.groups} groups: the engine has 1 group, or depthwise")
        else:
            op.kind = "pointwise" if (k, stride, pad) == (1, 1, 0) and not self.maps[x].interleaved else "conv"
            self.rows[op.y] = weight.reshape(c, -1)
        self._emit(op, node)

    def _norm(self, node: fx.Node, module: nn.BatchNorm2d) -> None:
        """Fold y = (x - mean) / std * weight + bias into the convolution before it."""
        if module.running_mean is None or module.running_var is None:
            raise ValueError(f"{node.target} (BatchNorm2d) keeps no running statistics: the engine folds those alone")
        op = self._writer(node)
        if op.clamp != FREE or op.add is not None or not (op.taps is not None or op.y in self.rows):
            raise ValueError(
                f"{node.target} (BatchNorm2d) does not stand right behind a convolution: the engine folds it there"
            )
        mean, var = (t.double().numpy() for t in (module.running_mean, module.running_var))
        scale = 1 / np.sqrt(var + module.eps)
        if module.weight is not None:
            scale = scale * module.weight.detach().double().numpy()
        shift = (0 if module.bias is None else module.bias.detach().double().numpy()) - mean * scale
        if op.taps is not None:
            op.taps, op.taps_bias = op.taps * scale[:, None], op.taps_bias * scale + shift
        else:
            self.rows[op.y], op.bias = self.rows[op.y] * scale[:, None], op.bias * scale + shift
        self.values[node] = op.y

    def _activation(self, node: fx.Node, clamp: tuple[float, float]) -> None:
        op = self._writer(node)
        low, high = np.minimum(np.maximum(op.clamp, clamp[0]), clamp[1])  # one clamp behind the other is a clamp
        op.clamp = float(low), float(high)
        self.values[node] = op.y

    def _mean(self, node: fx.Node) -> None:
        source = _source(node)
        if self._is_vector(source):  # the mean of one pixel
            self.values[node] = self._map(source)
            return
        x = self._planes(source)
        self._emit(Op("mean", node.name, x, self._new(Map(1, 1, self.maps[x].c))), node)

    def _sum(self, node: fx.Node) -> None:
        """Fuse a sum into the convolution that made one of its terms last, else add two maps."""
        call = arguments(node)
        terms = [t for t in (call["input"], call["other"]) if isinstance(t, fx.Node) and shape(t) == shape(node)]
        maps = [self._planes(term) for term in terms]
        sizes = {(m.c, m.h, m.w) for m in (self.maps[i] for i in maps)}
        if len(terms) != 2 or len(sizes) != 1 or call.get("alpha", 1) != 1:
            raise ValueError(f"the engine has no operator for {node.name}: it adds two maps of one shape, unscaled")
        for last, other in ((0, 1), (1, 0)):
            if self._can_add(terms[last]) and maps[other] != maps[last]:
                self.ops[-1].add = maps[other]
                self.values[node] = maps[last]
                return
        self._emit(Op("binary", node.name, maps[0], self._new(Map(*sizes.pop())), add=maps[1], fn="add"), node)

    def _can_add(self, term: fx.Node) -> bool:
        """Whether the last operator is a convolution that made this term of a sum, for nobody else."""
        op = self.ops[-1] if self.ops else None
        if op is None or op.y != self.values[term] or op.kind not in ("conv", "pointwise"):
            return False
        return op.add is None and op.clamp == FREE and self._is_alone(term)

    def _linear(self, node: fx.Node, module: nn.Linear) -> None:
        """A linear layer on a vector; on a flattened map, a convolution whose window is the whole map."""
        if len(shape(node)) != 2:
            raise ValueError(f"{node.target} reads {shape(_source(node))}: the engine has linear layers on (1, C)")
        x = self._planes(_source(node))
        source = self.maps[x]
        weight = module.weight.detach().double().numpy()
        bias = np.zeros(len(weight)) if module.bias is None else module.bias.detach().double().numpy()
        if source.c == 1 and source.h == 1:
            op = Op("linear", str(node.target), x, self._new(Map(1, 1, len(weight))), bias=bias)
        else:
            if source.h != source.w or source.h > 64:
                raise ValueError(
                    f"{node.target} reads a flattened map of {source.h} x {source.w}: the engine needs a square, up to "
                    "64 x 64"
                )
            kind = "pointwise" if source.h == 1 else "conv"
            op = Op(kind, str(node.target), x, self._new(Map(len(weight), 1, 1)), k=(source.h, source.w), bias=bias)
        self.rows[op.y] = weight
        self._emit(op, node)


def packed_rows(op: Op, weight: np.ndarray) -> kernels.Sparse:
    """The blocks of a matrix (OC, columns), in k-tiles where a map is multiplied.

    Zero blocks are left out, but where there are none to speak of: an index costs a load each.
    """
    block, k_tile = (kernels.GEMV_BLOCK, kernels.MAX_K_TILE) if op.kind == "linear" else (kernels.BLOCK, K_TILE)
    sparse = kernels.pack(weight, block=block, k_tile=k_tile)
    is_sparse = len(sparse.blocks) < 0.97 * sparse.groups * sparse.columns
    return sparse if is_sparse else kernels.pack(weight, block=block, k_tile=k_tile, dense=True)


def densified(network: Network) -> Network:
    """The network with its zeros stored and multiplied, but for int8: the dense baseline in the same engine."""
    dense = [op if op.weights is None or op.int8 else replace(op, weights=_dense(op.weights)) for op in network.ops]
    return replace(network, ops=dense)


def _dense(weights: kernels.Sparse) -> kernels.Sparse:
    return kernels.pack(weights.to_dense(), block=weights.block, k_tile=weights.k_tile, dense=True)


def _window(node: fx.Node, module: nn.Conv2d) -> tuple[int, int, int]:
    """Kernel size, stride and padding of a square convolution."""
    k, stride, dilation = (two(v) for v in (module.kernel_size, module.stride, module.dilation))
    if module.padding == "same":
        pad = tuple((size - 1) / 2 for size in k)  # a half where one side gets more than the other
    else:
        pad = (0, 0) if module.padding == "valid" else two(module.padding)
    square = all(v[0] == v[1] for v in (k, stride, pad)) and dilation == (1, 1) and pad[0] % 1 == 0
    if not square or module.padding_mode != "zeros" or pad[0] >= k[0] or k[0] > 64:
        raise ValueError(
            f"{node.target}: {module}: the engine has square windows, one stride, zero padding below the window's size"
        )
    return k[0], stride[0], int(pad[0])


def _source(node: fx.Node) -> fx.Node:
    return node.all_input_nodes[0]


def _is_mean(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node gives the mean over the picture: (1, C, H, W) -> (1, C, 1, 1) or (1, C)."""
    if isinstance(module, nn.AdaptiveAvgPool2d) or node.target is F.adaptive_avg_pool2d:
        return len(shape(node)) == 4 and shape(node)[2:] == (1, 1)
    if node.op not in ("call_function", "call_method") or node.target not in ("mean", torch.mean):
        return False
    axes, kind = (arguments(node).get(name) for name in ("dim", "dtype"))
    is_over = isinstance(axes, (tuple, list)) and sorted(axis % 4 for axis in axes) == [2, 3]
    return is_over and len(shape(_source(node))) == 4 and kind in (None, torch.float32)


def _is_flatten(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node only drops axes of one picture: (1, C, H, W) -> (1, C * H * W)."""
    before = shape(_source(node)) if node.all_input_nodes else ()
    is_named = isinstance(module, nn.Flatten) or (module is None and node.target in _FLATTENINGS)
    return is_named and shape(node) == (1, int(np.prod(before)))


def _called(node: fx.Node, module: nn.Module | None) -> str:
    if module is not None:
        return f"{node.target} ({type(module).__name__})"
    return f"{node.name} ({getattr(node.target, '__name__', node.target)})"
