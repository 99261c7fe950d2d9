"""Where quantisers stand in a traced network: the places, how they are put in, and which nodes share a grid."""

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import fx, nn
from torch.nn import functional as F

from ..graph.calls import arguments, bounds
from ..graph.operators import is_cat
from ..graph.surgery import is_add
from ..graph.tracing import earlier, gives_tensors, later, module_of, reached, shape

# What these give was in what they got: no new rounding.
_PASSING = (nn.PixelShuffle, nn.Identity, nn.MaxPool2d, nn.Flatten, nn.Dropout, nn.Dropout2d)
_PASSING_FUNCTIONS = {
    F.pixel_shuffle, torch.pixel_shuffle, F.max_pool2d, torch.max_pool2d, torch.flatten, "flatten", F.dropout,
    torch.dropout, F.dropout2d, "contiguous",
}  # fmt: skip
# These move values too, but on no grid that is kept behind them: whatever reads them has a quantiser of its own.
_MOVING = (nn.Unflatten, nn.ZeroPad2d)
_MOVING_FUNCTIONS = {
    torch.reshape, "reshape", "view", torch.unflatten, "unflatten", torch.permute, "permute", torch.transpose,
    "transpose", torch.swapaxes, "swapaxes", torch.movedim, "movedim", torch.t, "t", torch.squeeze, "squeeze",
    torch.unsqueeze, "unsqueeze", torch.chunk, "chunk", torch.split, "split", torch.tensor_split, "tensor_split",
    torch.unbind, "unbind", torch.stack, operator.getitem, getattr, "expand", "expand_as", "repeat", torch.roll, "roll",
}  # fmt: skip
# These give nothing negative, whatever they get.
_POSITIVE = (nn.Sigmoid, nn.Softmax, nn.Softmax2d, nn.Hardsigmoid, nn.Softplus)
_POSITIVE_FUNCTIONS = {
    torch.sigmoid, F.sigmoid, "sigmoid", F.softmax, torch.softmax, "softmax", F.hardsigmoid, F.softplus, torch.abs,
    "abs", operator.abs, torch.square, "square", torch.exp, "exp",
}  # fmt: skip
# These give nothing negative where they get nothing negative, and no negative number stands among their arguments.
_KEEPING = (
    nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SiLU,
    nn.GELU, nn.Hardswish, nn.Tanh, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.ZeroPad2d,
)  # fmt: skip
_KEEPING_FUNCTIONS = {
    F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate, F.leaky_relu, F.elu, F.silu, F.gelu,
    F.hardswish, torch.tanh, F.tanh, "tanh", torch.sqrt, "sqrt", F.pad, torch.mean, "mean", torch.sum, "sum",
    torch.amax, "amax", torch.cat, torch.concat, torch.stack, torch.add, operator.add, "add", torch.mul, operator.mul,
    "mul", torch.div, operator.truediv, "div", torch.maximum, torch.minimum, torch.reshape, "reshape", "view",
    torch.permute, "permute", torch.transpose, "transpose", torch.squeeze, "squeeze", torch.unsqueeze, "unsqueeze",
    torch.chunk, "chunk", torch.split, "split", operator.getitem, torch.index_select, "expand", "repeat",
}  # fmt: skip
_PRODUCTS = {torch.mul, operator.mul, "mul"}
_MATMULS = {torch.matmul, operator.matmul, "matmul", torch.bmm, "bmm"}
_POWERS = {torch.pow, operator.pow, "pow"}


Quantiser = TypeVar("Quantiser", bound=nn.Module)


@dataclass(frozen=True)
class QuantPoint:
    """A quantiser's place: the node it follows, the nodes that then read it, and which points share its range.

    signed: whether the tensor may be negative. image: whether it is the network's input or output, which keep 8 bits.
    """

    source: str
    readers: tuple[str, ...]
    group: str
    signed: bool
    image: bool = False

    def __post_init__(self) -> None:
        if hasattr(nn.Module, self.group):  # x.to(...) is a node called 'to', which no module may be
            object.__setattr__(self, "group", f"{self.group}_")


@dataclass(frozen=True)
class Placement:
    """The layers whose weights are rounded, where activations are, and what stays in float and why.

    `feature` is the node whose output a student must share with its teacher, where a method asks for one.
    """

    layers: tuple[str, ...]
    points: tuple[QuantPoint, ...]
    unquantised: dict[str, str]
    feature: str = ""

    def groups(self) -> dict[str, QuantPoint]:
        """One point for each range."""
        first: dict[str, QuantPoint] = {}
        for point in self.points:
            first.setdefault(point.group, point)
        return first


def insert_quantisers(
    graph: fx.GraphModule,
    placement: Placement,
    quantiser_for: Callable[[QuantPoint], Quantiser],
    rounded: Callable[[Any], nn.Module] = lambda layer: layer,
) -> list[Quantiser]:
    """Put quantisers and rounded layers into the network, in place; gives the quantisers, one a group."""
    for name in placement.layers:
        graph.set_submodule(name, rounded(graph.get_submodule(name)))
    quantisers = {group: quantiser_for(point) for group, point in placement.groups().items()}
    nodes = {node.name: node for node in graph.graph.nodes}
    for point in placement.points:
        graph.add_submodule(f"quantisers.{point.group}", quantisers[point.group])
        source = nodes[point.source]
        with graph.graph.inserting_after(source):
            call = graph.graph.call_module(f"quantisers.{point.group}", (source,))
        call.meta = dict(source.meta)  # it has the same shape
        for reader in point.readers:
            nodes[reader].replace_input_with(source, call)
    graph.recompile()
    return list(quantisers.values())


def with_feature_output(graph: fx.GraphModule, feature: str) -> fx.GraphModule:
    """A network of the same modules that gives its output and the output of the node `feature`."""
    copied = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    output = copied.graph_copy(graph.graph, copies)
    (node,) = (node for node in graph.graph.nodes if node.name == feature)
    copied.output((output, copies[node]))
    return fx.GraphModule(graph, copied)


# -- everything --------------------------------------------------------------------------------------------------------


def everywhere(graph: fx.GraphModule, layers: list[fx.Node]) -> list[QuantPoint]:
    """Behind every layer (and its ReLU) and every sum, and wherever a layer or a product reads what is still float."""
    ends = {node if (relu := only_clamp(node)) is None else relu for node in layers}
    sums = {node for node in graph.graph.nodes if is_add(node) and all(map(varies, node.all_input_nodes))}
    sources, ties = ends | sums, dict[fx.Node, fx.Node]()
    read = [node.all_input_nodes[0] for node in layers]
    for node in read + [x for several in (*sums, *matrix_products(graph)) for x in several.all_input_nodes]:
        _reach(node, sources, ties)
    is_layer = set(layers).__contains__
    behind, before = later(graph, is_layer), earlier(graph, is_layer)
    points = []
    for node in sources:
        is_first = node not in behind and not is_layer(node)
        readers = tuple(user.name for user in node.users)
        group, is_image = _root(node, ties).name, is_first or node not in before
        points.append(QuantPoint(node.name, readers, group, not is_positive(node), is_image))
    return points


def _reach(node: fx.Node, sources: set[fx.Node], ties: dict[fx.Node, fx.Node]) -> None:
    """Make sure that what `node` gives lies on a grid; a concatenation's parts share theirs.

    `sources` are the nodes that a quantiser follows; `ties` leads from a node to the one whose grid it shares, as a
    union-find does.
    """
    if node in sources:
        return
    if not (is_cat(node) or passes(node)):
        sources.add(node)
        return
    inputs = list(filter(gives_tensors, node.all_input_nodes))  # a window may be as large as a size says
    for part in inputs:
        _reach(part, sources, ties)
        a, b = _root(_grid_of(part), ties), _root(_grid_of(inputs[0]), ties)
        if a is not b:
            ties[a] = b


def _grid_of(node: fx.Node) -> fx.Node:
    """The node whose quantiser what `node` gives still lies on."""
    while is_cat(node) or passes(node):
        node = node.all_input_nodes[0]
    return node


def _root(node: fx.Node, ties: dict[fx.Node, fx.Node]) -> fx.Node:
    while node in ties:
        node = ties[node]
    return node


# -- what a node is ----------------------------------------------------------------------------------------------------


def matrix_products(graph: fx.GraphModule) -> list[fx.Node]:
    """The products of two tensors that both depend on the input, as attention has them, in the graph's order."""
    return [node for node in graph.graph.nodes if _is_matrix_product(node)]


def _is_matrix_product(node: fx.Node) -> bool:
    return node.target in _MATMULS and all(map(varies, node.all_input_nodes))


def operands_of(product: fx.Node) -> list[QuantPoint]:
    """The points before a product of two tensors, each of a group of its own."""
    sides = [product.name] if len(product.all_input_nodes) == 1 else [f"{product.name}_left", f"{product.name}_right"]
    return [
        QuantPoint(source.name, (product.name,), side, not is_positive(source))
        for source, side in zip(product.all_input_nodes, sides, strict=True)
    ]


def point_behind(source: fx.Node, readers: Iterable[fx.Node]) -> QuantPoint:
    """A point of a group of its own."""
    return QuantPoint(source.name, tuple(node.name for node in readers), source.name, not is_positive(source))


def left_in_float(graph: fx.GraphModule, layers: Iterable[str], operators: bool = True) -> dict[str, str]:
    """Why the other layers with weights stay in float, and which `operators` are computed in it, by name."""
    reasons = {}
    for node in graph.graph.nodes:
        module = module_of(node)
        if module is not None and any(True for _ in module.parameters()):
            if node.target not in layers:
                reasons[str(node.target)] = f"{type(module).__name__} is not quantised here"
        elif operators and computes(node):
            reasons[node.name] = f"{kind_of(node)} is computed in float"
    return reasons


def in_graph_order(graph: fx.GraphModule, points: list[QuantPoint]) -> list[QuantPoint]:
    """The points as their sources come in the graph."""
    order = {node.name: index for index, node in enumerate(graph.graph.nodes)}
    return sorted(points, key=lambda point: order[point.source])


def with_group_signs(points: list[QuantPoint], unsigned: bool = True) -> list[QuantPoint]:
    """The points, signed where any tensor of their group may be negative; without `unsigned` all of them."""
    signs: dict[str, bool] = {}
    for point in points:
        signs[point.group] = signs.get(point.group, False) or point.signed or not unsigned
    return [replace(point, signed=signs[point.group]) for point in points]


def computes(node: fx.Node) -> bool:
    """Whether a node is an operator on values, but none that runs on grids: ReLU, sums, products, what moves values."""
    on_grids = (
        starts_at_zero(node)
        or is_cat(node)
        or passes(node)
        or _moves(node)
        or _is_matrix_product(node)
        or (is_add(node) and all(map(varies, node.all_input_nodes)))
    )
    return node.op.startswith("call") and varies(node) and not on_grids


def kind_of(node: fx.Node) -> str:
    module = module_of(node)
    return type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))


def starts_at_zero(node: fx.Node) -> bool:
    """Whether a node clamps to a range from 0, as ReLU and ReLU6 do: a grid from 0 can do it by itself."""
    clamp = bounds(node)
    return clamp is not None and clamp[0] == 0


def only_clamp(node: fx.Node) -> fx.Node | None:
    """The clamp from 0 (a ReLU) that alone reads a node, if there is one."""
    readers = list(node.users)
    return readers[0] if len(readers) == 1 and starts_at_zero(readers[0]) else None


def is_positive(node: fx.Node) -> bool:
    """Whether a node is known to give nothing negative."""
    todo, seen = [node], set()
    while todo:
        present = todo.pop()
        if present in seen:
            continue
        seen.add(present)
        needed = _positive_if(present)
        if needed is None:
            return False
        todo += needed
    return True


def _positive_if(node: fx.Node) -> list[fx.Node] | None:
    """What must not be negative for a node not to be; None where that would not do."""
    module, clamp = module_of(node), bounds(node)
    if clamp is not None:
        return [] if clamp[0] >= 0 else node.all_input_nodes if clamp[1] >= 0 else None
    if module is not None:
        is_preserved = passes(node) or (isinstance(module, _KEEPING) and getattr(module, "mode", "") != "bicubic")
        return [] if isinstance(module, _POSITIVE) else node.all_input_nodes if is_preserved else None
    if node.target in _POSITIVE_FUNCTIONS or _is_even_power(node):
        return []
    if not (passes(node) or node.target in _KEEPING_FUNCTIONS):
        return None
    given = arguments(node)
    numbers = [given.get(name) for name in ("input", "other", "alpha", "value")]
    negative = any(isinstance(number, (int, float)) and number < 0 for number in numbers)
    return None if negative or given.get("mode") == "bicubic" else node.all_input_nodes


def _is_even_power(node: fx.Node) -> bool:
    """x * x, or x to the power of 2, 4 and so on."""
    if node.target in _PRODUCTS:
        given = arguments(node)
        return given["input"] is given["other"]
    exponent = list(arguments(node).values())[1] if node.target in _POWERS else None
    return isinstance(exponent, (int, float)) and exponent % 2 == 0


def passes(node: fx.Node) -> bool:
    module = module_of(node)
    return isinstance(module, _PASSING) if module is not None else node.target in _PASSING_FUNCTIONS


def _moves(node: fx.Node) -> bool:
    module = module_of(node)
    return isinstance(module, _MOVING) if module is not None else node.target in _MOVING_FUNCTIONS


def varies(node: fx.Node) -> bool:
    """Whether a node depends on the values of the network's input, and is no number: a mask of its sizes does not."""
    above = reached(node, lambda present: filter(gives_tensors, present.all_input_nodes))
    return bool(shape(node)) and any(source.op == "placeholder" for source in above)
