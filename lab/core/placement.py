"""Where quantisers stand in a traced network: the places, how they are put in, and which nodes share a grid."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional as F

from .channels import is_cat
from .surgery import is_add
from .tracing import ancestors, descendants, module_of, shape

# What these give was in what they got: no new rounding.
_PASSING = (nn.PixelShuffle, nn.Identity, nn.MaxPool2d, nn.Flatten, nn.Dropout)
_PASSING_FUNCTIONS = {F.pixel_shuffle, torch.pixel_shuffle, F.max_pool2d, torch.flatten, "flatten"}


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
    ends = {node if (relu := only_relu(node)) is None else relu for node in layers}
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
        is_relu(node) or is_cat(node) or passes(node) or (is_add(node) and all(map(varies, node.all_input_nodes)))
    )
    return node.op.startswith("call") and varies(node) and not on_grids


def kind_of(node: fx.Node) -> str:
    module = module_of(node)
    return type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))


def is_relu(node: fx.Node) -> bool:
    module = module_of(node)
    return isinstance(module, nn.ReLU) if module is not None else node.target in (torch.relu, F.relu, "relu")


def only_relu(node: fx.Node) -> fx.Node | None:
    """The ReLU that alone reads a node, if there is one."""
    readers = list(node.users)
    return readers[0] if len(readers) == 1 and is_relu(readers[0]) else None


def is_positive(node: fx.Node) -> bool:
    """Whether a node gives nothing negative."""
    if is_cat(node) or passes(node):
        return all(map(is_positive, node.all_input_nodes))
    return is_relu(node) or isinstance(module_of(node), nn.Sigmoid)


def passes(node: fx.Node) -> bool:
    module = module_of(node)
    return isinstance(module, _PASSING) if module is not None else node.target in _PASSING_FUNCTIONS


def varies(node: fx.Node) -> bool:
    """Whether a node depends on the network's input, and is no number."""
    return bool(shape(node)) and any(source.op == "placeholder" for source in ancestors(node))
