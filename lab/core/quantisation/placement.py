"""Where quantisers stand in a traced network: the places, how they are put in, and which nodes share a grid."""

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional as F

from ..graph.calls import arguments, bounds
from ..graph.channels import is_cat
from ..graph.surgery import is_add
from ..graph.tracing import ancestors, descendants, module_of, shape

# What these give was in what they got: no new rounding.
_PASSING = (nn.PixelShuffle, nn.Identity, nn.MaxPool2d, nn.Flatten, nn.Dropout, nn.Dropout2d)
_PASSING_FUNCTIONS = {
    F.pixel_shuffle, torch.pixel_shuffle, F.max_pool2d, torch.max_pool2d, torch.flatten, "flatten", F.dropout,
    torch.dropout, F.dropout2d, "contiguous",
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
_POWERS = {torch.pow, operator.pow, "pow"}


@dataclass(frozen=True)
class Spot:
    """A quantiser's place: the node it follows, the nodes that then read it, and which spots share its alpha.

    signed: whether the tensor may be negative. picture: whether it is the network's input or output, which keep 8 bits.
    """

    source: str
    readers: tuple[str, ...]
    group: str
    signed: bool
    picture: bool = False


@dataclass(frozen=True)
class Placement:
    """The layers whose weights are rounded, where activations are, and what stays in float and why.

    `feature` is the node whose output a student must share with its teacher, where a method asks for one.
    """

    convs: tuple[str, ...]
    spots: tuple[Spot, ...]
    left: dict[str, str]
    feature: str = ""

    def groups(self) -> dict[str, Spot]:
        """One spot for each alpha."""
        found: dict[str, Spot] = {}
        for spot in self.spots:
            found.setdefault(spot.group, spot)
        return found


def attach(
    graph: fx.GraphModule, found: Placement, quantiser: Callable[[Spot], nn.Module],
    rounded: Callable[[nn.Conv2d], nn.Module],
) -> list[nn.Module]:  # fmt: skip
    """Put the placement's quantisers and rounded convolutions into the network; gives the quantisers, one an alpha."""
    for name in found.convs:
        graph.set_submodule(name, rounded(graph.get_submodule(name)))
    made = {group: quantiser(spot) for group, spot in found.groups().items()}
    nodes = {node.name: node for node in graph.graph.nodes}
    for spot in found.spots:
        graph.add_submodule(f"quantisers.{spot.group}", made[spot.group])
        source = nodes[spot.source]
        with graph.graph.inserting_after(source):
            call = graph.graph.call_module(f"quantisers.{spot.group}", (source,))
        call.meta = dict(source.meta)  # it has the same shape
        for reader in spot.readers:
            nodes[reader].replace_input_with(source, call)
    graph.recompile()
    return [made[group] for group in dict.fromkeys(spot.group for spot in found.spots)]


def watched(graph: fx.GraphModule, feature: str) -> fx.GraphModule:
    """The same modules in a network that gives its output and the output of the node `feature`."""
    copied, copies = fx.Graph(), {}  # type: ignore[var-annotated]
    answer = copied.graph_copy(graph.graph, copies)
    (node,) = (node for node in graph.graph.nodes if node.name == feature)
    copied.output((answer, copies[node]))
    return fx.GraphModule(graph, copied)


# -- everything --------------------------------------------------------------------------------------------------------


def everywhere(graph: fx.GraphModule, layers: list[fx.Node]) -> list[Spot]:
    """Behind every layer (and its ReLU) and every sum, and wherever a layer reads what is still float."""
    ends = {node if (relu := only_clamp(node)) is None else relu for node in layers}
    sums = {node for node in graph.graph.nodes if is_add(node) and all(map(varies, node.all_input_nodes))}
    sources, ties = ends | sums, {}  # type: ignore[var-annotated]
    for node in [node.all_input_nodes[0] for node in layers] + [x for add in sums for x in add.all_input_nodes]:
        _reach(node, sources, ties)
    heads = {node for node in sources if ancestors(node).isdisjoint(layers)}
    spots = []
    for node in sources:
        is_last = (descendants(node) - {node}).isdisjoint(layers)
        spots.append(
            Spot(node.name, tuple(user.name for user in node.users), _root(node, ties).name, not is_positive(node),
                 node in heads or is_last)
        )  # fmt: skip
    return spots


def _reach(node: fx.Node, sources: set[fx.Node], ties: dict[fx.Node, fx.Node]) -> None:
    """Make sure that what `node` gives lies on a grid; a concatenation's parts share theirs."""
    if node in sources:
        return
    if not (is_cat(node) or passes(node)):
        sources.add(node)
        return
    inputs = node.all_input_nodes
    for one in inputs:
        _reach(one, sources, ties)
        a, b = _root(_grid_of(one), ties), _root(_grid_of(inputs[0]), ties)
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


def spot_behind(source: fx.Node, readers: Iterable[fx.Node]) -> Spot:
    return Spot(source.name, tuple(node.name for node in readers), source.name, not is_positive(source))


def in_order(graph: fx.GraphModule, spots: list[Spot]) -> list[Spot]:
    order = {node.name: index for index, node in enumerate(graph.graph.nodes)}
    return sorted(spots, key=lambda spot: order[spot.source])


def signs_of(spots: list[Spot], unsigned: bool) -> dict[str, bool]:
    """Whether each group needs negative values: if any of its tensors does."""
    signs: dict[str, bool] = {}
    for spot in spots:
        signs[spot.group] = signs.get(spot.group, False) or spot.signed or not unsigned
    return signs


def computes(node: fx.Node) -> bool:
    """Whether a node is an operator on values, other than what runs on the grids: ReLU, sums, what moves values."""
    on_grids = (
        starts_at_zero(node)
        or is_cat(node)
        or passes(node)
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
        keeps = passes(node) or (isinstance(module, _KEEPING) and getattr(module, "mode", "") != "bicubic")
        return [] if isinstance(module, _POSITIVE) else node.all_input_nodes if keeps else None
    if node.target in _POSITIVE_FUNCTIONS or _is_even_power(node):
        return []
    if not (passes(node) or node.target in _KEEPING_FUNCTIONS):
        return None
    asked = arguments(node)
    numbers = [asked.get(name) for name in ("input", "other", "alpha", "value")]
    negative = any(isinstance(number, (int, float)) and number < 0 for number in numbers)
    return None if negative or asked.get("mode") == "bicubic" else node.all_input_nodes


def _is_even_power(node: fx.Node) -> bool:
    """x * x, or x to the power of 2, 4 and so on."""
    if node.target in _PRODUCTS:
        asked = arguments(node)
        return asked["input"] is asked["other"]
    exponent = list(arguments(node).values())[1] if node.target in _POWERS else None
    return isinstance(exponent, (int, float)) and exponent % 2 == 0


def passes(node: fx.Node) -> bool:
    module = module_of(node)
    return isinstance(module, _PASSING) if module is not None else node.target in _PASSING_FUNCTIONS


def varies(node: fx.Node) -> bool:
    """Whether a node depends on the network's input, and is no number."""
    return bool(shape(node)) and any(source.op == "placeholder" for source in ancestors(node))
