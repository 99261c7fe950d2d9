"""From a trained network to the engine's operators: norms folded, activations and sums fused, rows packed.

Known are convolutions (groups 1 of any square window, depthwise 3 x 3 and 5 x 5), batch norms behind them, ReLU and
ReLU6, sums of two maps, the mean over the picture and linear layers. Anything else is a one-line error that names it.
"""

import math
import operator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from ..core import kernels
from ..core.channels import is_depthwise
from ..core.tracing import module_of, shape, trace
from .packed import Map, Network, Op

BAND = 48 << 10  # floats, about, that a separable pair or a convolution lays out at a time: they stay in the cache
LARGE = 512 << 10  # floats of a map that takes the whole second-level cache
CACHED = 192 << 10  # floats that a chain of operators keeps and lays out in it
CHAIN = 8  # operators in one, as ckernels/engine.c has it
VECTOR = 16  # floats of the longest vector
RUN = 128  # columns of X that stay in the first-level cache
_ACTIVATIONS = {
    nn.ReLU: (0.0, np.inf), nn.ReLU6: (0.0, 6.0), F.relu: (0.0, np.inf), torch.relu: (0.0, np.inf),
    F.relu6: (0.0, 6.0), "relu": (0.0, np.inf),
}  # fmt: skip
_NOTHING = (nn.Dropout, nn.Dropout2d, nn.Identity)
_KNOWN = "convolutions, batch norms behind them, ReLU, ReLU6, sums, the mean over the picture, linear layers"
FREE = (-np.inf, np.inf)


def compile(model: nn.Module, example: torch.Tensor, *, interleaved: bool = False) -> Network:
    """The operators of a network for one input of the example's shape (1, C, H, W); the network is left as it is.

    `interleaved` takes pictures as (H, W, C) instead of (C, H, W). Raises ValueError naming the first operator that the
    engine does not have.
    """
    if example.dim() != 4 or len(example) != 1:
        raise ValueError(f"example has shape {tuple(example.shape)}: the engine takes one picture, (1, C, H, W)")
    graph = trace(model, example).cpu()  # a copy: the network stays on its own device
    return chained(joined(_Builder(graph, interleaved).network()))


class _Builder:
    """Walks a traced graph and writes down operators.

    `values` says which map holds a node's output; `rows` holds the matrix of the operator that writes a map, until all
    norms are folded into it and it is packed.
    """

    def __init__(self, graph: fx.GraphModule, interleaved: bool) -> None:
        self.graph, self.interleaved = graph, interleaved
        self.maps: list[Map] = []
        self.ops: list[Op] = []
        self.values: dict[fx.Node, int] = {}
        self.rows: dict[int, np.ndarray] = {}

    def network(self) -> Network:
        output = first = -1
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                if first >= 0:
                    raise ValueError(f"the network takes a second input, {node.name}: the engine takes one picture")
                _, c, h, w = shape(node)
                first = self.values[node] = self._new(Map(c, h, w, self.interleaved))
            elif node.op == "output":
                output = self.values[node.all_input_nodes[0]]
            else:
                self._operator(node)
        meta = {"classes": self.maps[output].w if self.maps[output].c == 1 else self.maps[output].c}
        ops = [replace(op, weights=packed_rows(op, self.rows[op.y])) if op.y in self.rows else op for op in self.ops]
        return Network(self.maps, ops, first, output, meta)

    def _new(self, made: Map) -> int:
        self.maps.append(made)
        return len(self.maps) - 1

    def _operator(self, node: fx.Node) -> None:
        module, target = module_of(node), node.target
        if isinstance(module, nn.Conv2d):
            self._convolution(node, module)
        elif isinstance(module, nn.BatchNorm2d):
            self._norm(node, module)
        elif isinstance(module, nn.Linear):
            self._linear(node, module)
        elif (bounds := _ACTIVATIONS.get(target if module is None else type(module))) is not None:
            self._activation(node, bounds)
        elif target in (operator.add, torch.add, "add") and len(node.all_input_nodes) == 2:
            self._sum(node)
        elif _is_mean(node, module):
            x = self._source(node)
            self._emit(Op("mean", node.name, x, self._new(Map(1, 1, self.maps[x].c))), node)
        elif isinstance(module, _NOTHING) or _is_flatten(node, module):
            self.values[node] = self._source(node)
        elif not (node.op == "get_attr" or not shape(node)):
            raise ValueError(f"the engine has no operator for {_called(node, module)}: it has {_KNOWN}")

    def _source(self, node: fx.Node) -> int:
        return self.values[node.all_input_nodes[0]]

    def _emit(self, op: Op, node: fx.Node) -> None:
        self.ops.append(op)
        self.values[node] = op.y

    def _writer(self, node: fx.Node) -> Op:
        """The operator behind `node`, if nobody else reads what it gives."""
        source = node.all_input_nodes[0]
        op = next((op for op in self.ops if op.y == self.values[source]), None)
        while len(source.users) == 1 and module_of(source) is not None and isinstance(module_of(source), _NOTHING):
            source = source.all_input_nodes[0]
        if op is None or len(source.users) != 1:
            raise ValueError(
                f"{_called(node, module_of(node))} follows {source.name}, which the engine cannot join it to: it must "
                "stand right behind a convolution, a linear layer or a sum, and be the only one that reads it"
            )
        return op

    def _convolution(self, node: fx.Node, module: nn.Conv2d) -> None:
        x = self._source(node)
        k, stride, pad = _window(node, module)
        _, c, h, w = shape(node)
        weight = module.weight.detach().double().numpy()  # (OC, IC / groups, k, k)
        bias = np.zeros(c) if module.bias is None else module.bias.detach().double().numpy()
        op = Op("conv", str(node.target), x, self._new(Map(c, h, w)), k=k, stride=stride, pad=pad, bias=bias)
        op.band = _band(h, w, module.in_channels // module.groups * k * k if module.groups == 1 else c)
        if is_depthwise(module) and module.in_channels == module.out_channels and module.in_channels > 1:
            if k not in (3, 5) or stride > 2:
                raise ValueError(
                    f"{node.target}: depthwise {k} x {k}, stride {stride}: the engine has 3 x 3 and 5 x 5, 1 and 2"
                )
            op.kind, op.taps, op.taps_bias, op.bias = "depthwise", weight.reshape(c, k * k), bias, None
        elif module.groups != 1:
            raise ValueError(f"{node.target} has {module.groups} groups: the engine has 1 group, or depthwise")
        else:
            op.kind = "pointwise" if (k, stride, pad) == (1, 1, 0) and not self.maps[x].interleaved else "conv"
            self.rows[op.y] = weight.reshape(c, -1)
        self._emit(op, node)

    def _norm(self, node: fx.Node, module: nn.BatchNorm2d) -> None:
        """Fold y = (x - mean) / std * weight + bias into the convolution before it."""
        op = self._writer(node)
        if op.clamp != FREE or op.add is not None or op.kind not in ("conv", "pointwise", "depthwise"):
            raise ValueError(
                f"{node.target} (BatchNorm2d) does not stand right behind a convolution: the engine folds it there"
            )
        mean, var = (t.double().numpy() for t in (module.running_mean, module.running_var))
        gain = 1 / np.sqrt(var + module.eps)
        if module.weight is not None:
            gain = gain * module.weight.detach().double().numpy()
        shift = (0 if module.bias is None else module.bias.detach().double().numpy()) - mean * gain
        if op.taps is not None:
            op.taps, op.taps_bias = op.taps * gain[:, None], op.taps_bias * gain + shift
        else:
            self.rows[op.y], op.bias = self.rows[op.y] * gain[:, None], op.bias * gain + shift
        self.values[node] = op.y

    def _activation(self, node: fx.Node, bounds: tuple[float, float]) -> None:
        op = self._writer(node)
        op.clamp = max(op.clamp[0], bounds[0]), min(op.clamp[1], bounds[1])
        self.values[node] = op.y

    def _sum(self, node: fx.Node) -> None:
        """Fuse a sum into the convolution that made one of its parts last, else add two maps."""
        a, b = node.args[:2]
        if (
            not all(isinstance(part, fx.Node) and shape(part) == shape(node) for part in (a, b))
            or node.kwargs.get("alpha", 1) != 1
        ):
            raise ValueError(f"the engine has no operator for {node.name}: it adds two maps of one shape")
        for part, other in ((a, b), (b, a)):
            op = self.ops[-1]
            fits = (
                op.y == self.values[part] and op.kind in ("conv", "pointwise") and op.add is None and op.clamp == FREE
            )
            if (
                fits
                and len(part.users) == 1
                and self.values[other] != op.y
                and not self.maps[self.values[other]].interleaved
            ):
                op.add = self.values[other]
                self.values[node] = op.y
                return
        x = self.maps[self.values[a]]
        self._emit(Op("add", node.name, self.values[a], self._new(Map(x.c, x.h, x.w)), add=self.values[b]), node)

    def _linear(self, node: fx.Node, module: nn.Linear) -> None:
        """A linear layer on a vector; on a flattened map, a convolution whose window is the whole map."""
        x = self._source(node)
        source = self.maps[x]
        weight = module.weight.detach().numpy()
        bias = np.zeros(len(weight)) if module.bias is None else module.bias.detach().numpy()
        if source.c == 1 and source.h == 1:
            op = Op("linear", str(node.target), x, self._new(Map(1, 1, len(weight))), bias=bias)
        else:
            if source.h != source.w:
                raise ValueError(
                    f"{node.target} reads a flattened map of {source.h} x {source.w}: the engine needs a square"
                )
            kind = "pointwise" if source.h == 1 else "conv"
            op = Op(kind, str(node.target), x, self._new(Map(len(weight), 1, 1)), k=source.h, bias=bias)
        self.rows[op.y] = weight
        self._emit(op, node)


def packed_rows(op: Op, weight: np.ndarray) -> Any:
    """The blocks of a matrix (OC, columns), in runs that stay in the cache where a map is multiplied.

    Zero blocks are left out, but where there are none to speak of: an index costs a load each.
    """
    block, chunk = (kernels.LONG_BLOCK, kernels.CHUNK) if op.kind == "linear" else (kernels.BLOCK, RUN)
    packed = kernels.pack(weight, block=block, chunk=chunk)
    whole = packed.groups * packed.columns
    return packed if len(packed.blocks) < 0.97 * whole else kernels.pack(weight, block=block, chunk=chunk, dense=True)


def whole(network: Network) -> Network:
    """The same network with its zeros stored and multiplied, but for int8: the dense rival in the same engine."""
    dense = [op if op.weights is None or op.bytes else replace(op, weights=_dense(op.weights)) for op in network.ops]
    return replace(network, ops=dense)


def _dense(weights: Any) -> Any:
    return kernels.pack(weights.to_dense(), block=weights.block, chunk=weights.chunk, dense=True)


def joined(network: Network) -> Network:
    """Depthwise convolutions joined to the pointwise one that alone reads them: their map is never written out."""
    readers: dict[int, list[Op]] = {}
    for op in network.ops:
        for read in (op.x, op.add):
            if read is not None:
                readers.setdefault(read, []).append(op)
    gone: list[Op] = []
    ops = []
    for op in network.ops:
        behind = readers.get(op.y, [])
        if op.kind == "depthwise" and len(behind) == 1 and behind[0].kind == "pointwise" and op.y != network.output:
            gone.append(op)
        else:
            ops.append(op)
    halves = {op.y: op for op in gone}
    return replace(network, ops=[_pair(halves[op.x], op) if op.x in halves else op for op in ops])


def _pair(first: Op, second: Op) -> Op:
    window = {name: getattr(first, name) for name in ("x", "k", "stride", "pad", "band", "taps", "taps_bias")}
    return replace(second, kind="separable", inner=first.clamp, **window)


def chained(network: Network) -> Network:
    """Large maps kept in part: whoever reads one alone, right after it is written, has its rows made as it needs them.

    The map is never whole and stays in the cache. The last operator of a chain of such maps has the highest bands for
    which all that the chain keeps and lays out is CACHED.
    """
    network = replace(network, maps=[replace(m) for m in network.maps], ops=[replace(op) for op in network.ops])
    reads = [m for op in network.ops for m in (op.x, op.add)]
    first = 0
    for i, op in enumerate(network.ops):
        m = network.maps[op.y]
        links = i + 1 < len(network.ops) and network.ops[i + 1].x == op.y and reads.count(op.y) == 1
        spatial = {"conv", "pointwise", "depthwise", "separable"}
        fits = links and op.kind in spatial and network.ops[i + 1].kind in spatial - {"pointwise"}
        if not fits or op.y == network.output or m.c * m.pixels < LARGE or i + 1 - first == CHAIN:
            if first < i:
                _keep_in_part(network.maps, network.ops[first : i + 1])
            first = i + 1
    return network


def _keep_in_part(maps: list[Map], chain: list[Op]) -> None:
    out = maps[chain[-1].y]
    step = _whole_vectors(out.w)
    for band in [*range(out.h // step * step, 0, -step), 1]:
        for op, before in zip(reversed(chain), [*reversed(chain[:-1]), None], strict=True):
            op.band = band
            if before is not None:
                m = maps[op.x]
                m.part = min(m.h, (band - 1) * op.stride + max(op.k, op.stride))
                band = min(m.h, (band - 1) * op.stride + max(op.k - op.pad, op.stride))
        kept = sum(maps[op.x].floats for op in chain[1:]) + max(op.room(maps[op.x], maps[op.y]) for op in chain)
        if kept <= CACHED:
            return


def _window(node: fx.Node, module: nn.Conv2d) -> tuple[int, int, int]:
    """Kernel size, stride and padding of a square convolution."""
    k, stride, pad, dilation = module.kernel_size, module.stride, module.padding, module.dilation
    if pad == "same" and stride == (1, 1):
        pad = tuple((size - 1) // 2 for size in k) if all(size % 2 for size in k) else pad
    pad = (0, 0) if pad == "valid" else pad
    square = isinstance(pad, tuple) and all(v[0] == v[1] for v in (k, stride, pad)) and dilation == (1, 1)
    if not square or module.padding_mode != "zeros" or pad[0] >= k[0] or k[0] > 64:
        raise ValueError(
            f"{node.target}: {module}: the engine has square windows, one stride, zero padding below the window's size"
        )
    return k[0], stride[0], int(pad[0])


def _band(h: int, w: int, rows: int) -> int:
    """Rows of a band of about BAND floats, at least 384 pixels, bands as equal as can be.

    Where they can, bands are whole vectors: they begin on a cache line's border, and no vector is half full.
    """
    bands = max(1, round(h * w / max(384, BAND // rows)))
    whole = _whole_vectors(w)
    return min(h, -(-h // bands // whole) * whole) if h > whole else -(-h // bands)


def _whole_vectors(w: int) -> int:
    """The least number of rows that is whole vectors."""
    return VECTOR // math.gcd(VECTOR, w)


def _is_mean(node: fx.Node, module: nn.Module | None) -> bool:
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return module.output_size in (1, (1, 1))
    if node.target in (F.adaptive_avg_pool2d,):
        return node.args[1] in (1, (1, 1))
    if node.target not in ("mean", torch.mean):
        return False
    axes = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    return isinstance(axes, (tuple, list)) and sorted(a % 4 for a in axes) == [2, 3]


def _is_flatten(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node only drops axes of one picture: (1, C, H, W) -> (1, C * H * W)."""
    named = isinstance(module, nn.Flatten) or node.target in (
        "flatten",
        "view",
        "reshape",
        "squeeze",
        torch.flatten,
        torch.squeeze,
    )
    before = shape(node.all_input_nodes[0]) if node.all_input_nodes else ()
    return named and shape(node) == (1, int(np.prod(before)))


def _called(node: fx.Node, module: nn.Module | None) -> str:
    if module is not None:
        return f"{node.target} ({type(module).__name__})"
    return f"{node.name} ({getattr(node.target, '__name__', node.target)})"
