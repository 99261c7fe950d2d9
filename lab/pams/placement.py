"""Which tensors are quantised: the paper's drawing, its released code, the later correction, and everything.

The three published placements disagree, so every report names the one it was made with. A placement is found in a
traced network: a residual block is a sum whose branch holds convolutions and no other such sum.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import fx, nn
from torch.nn import functional as F

from ..core.channels import is_cat, operands
from ..core.surgery import is_add, residual_branch
from ..core.tracing import ancestors, descendants, module_of, shape
from .layers import QuantisedConv2d

PLACEMENTS = ("fig1", "repo", "cadyq", "full")
_UPSAMPLING = (nn.PixelShuffle, nn.Upsample, nn.ConvTranspose2d)
_UPSAMPLING_FUNCTIONS = {F.pixel_shuffle, F.interpolate, torch.pixel_shuffle}
_PASSING = (nn.PixelShuffle, nn.Identity, nn.MaxPool2d)  # what they give was in what they got: no new rounding
_PASSING_FUNCTIONS = {F.pixel_shuffle, torch.pixel_shuffle, F.max_pool2d}


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
    """The convolutions whose weights are rounded, where activations are, and what stays in float and why.

    `feature` is the node whose output the student must share with its teacher: what the upsampler reads.
    """

    convs: tuple[str, ...]
    spots: tuple[Spot, ...]
    left: dict[str, str]
    feature: str

    def groups(self) -> dict[str, Spot]:
        """One spot for each alpha."""
        found: dict[str, Spot] = {}
        for spot in self.spots:
            found.setdefault(spot.group, spot)
        return found


def place(graph: fx.GraphModule, placement: str, unsigned: bool = True) -> Placement:
    """Find a placement in a traced network; `unsigned` uses the grid from 0 behind ReLUs.

    Raises ValueError where nothing could be quantised.
    """
    feature = _feature(graph)
    convs = [node for node in graph.graph.nodes if _is_conv(node)]
    if not convs:
        raise ValueError("the network has no Conv2d, and only those are quantised: give a convolutional network")
    if placement == "full":
        scope, spots = convs, _everywhere(graph, convs)
    else:
        scope, spots = _published(graph, convs, feature, placement)
    if not scope:
        raise ValueError(
            f"placement={placement!r} finds no convolution between the first one and the upsampler: take 'full'"
        )
    signs = _signs(spots, unsigned)
    found = tuple(replace(spot, signed=signs[spot.group]) for spot in _in_order(graph, spots))
    names = tuple(dict.fromkeys(str(node.target) for node in scope))
    return Placement(names, found, _left(graph, names, placement), feature.name)


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


# -- the published placements -----------------------------------------------------------------------------------------


def _published(
    graph: fx.GraphModule, convs: list[fx.Node], feature: fx.Node, placement: str
) -> tuple[list[fx.Node], list[Spot]]:
    """What is quantised within residual blocks and in the fusion of their outputs; without blocks, the body."""
    scope: list[fx.Node] = []
    spots: list[Spot] = []
    adds = _blocks(graph)
    for add, shortcut, branch in adds:
        inside = ancestors(branch) - ancestors(shortcut)
        own = [conv for conv in convs if conv in inside]
        scope += own
        spots += _block(add, shortcut, branch, inside, own, placement)
    for conv in _fusion(graph, [add for add, _, _ in adds]):
        scope.append(conv)
        if is_cat(conv.all_input_nodes[0]) or placement != "repo":  # the release leaves the second one's input alone
            spots.append(_spot(conv.all_input_nodes[0], [conv]))
    if not adds:
        late = descendants(feature)
        scope = [conv for conv in convs if conv not in late and any(map(_is_conv, ancestors(conv) - {conv}))]
        spots = [_spot(conv.all_input_nodes[0], [conv]) for conv in scope]
    return scope, _merged(spots)


def _block(add, shortcut, branch, inside, own, placement) -> list[Spot]:
    """The quantisers of one block: its convolutions' inputs, its shortcut and the end of its branch."""
    first = [conv for conv in own if conv.all_input_nodes[0] is shortcut]
    spots = [_spot(conv.all_input_nodes[0], [conv]) for conv in own if conv not in first]
    is_dense = any(map(is_cat, inside))
    if placement == "fig1":
        return [_spot(shortcut, first), *spots]
    if placement == "repo" and not is_dense:
        spots.append(_spot(shortcut, [add]))  # the release quantises the shortcut, not what conv1 reads
    else:
        spots.append(_spot(shortcut, [node for node in shortcut.users if node in inside or node is add]))
    return [*spots, _spot(branch, [add])] if placement == "cadyq" or not is_dense else spots


def _blocks(graph: fx.GraphModule) -> list[tuple[fx.Node, fx.Node, fx.Node]]:
    """(sum, shortcut, end of branch) of each residual block: innermost sums over a branch with a convolution."""
    found: list[tuple[fx.Node, fx.Node, fx.Node]] = []
    for add in filter(is_add, graph.graph.nodes):
        branch = residual_branch(add)
        if branch is None:
            continue
        (shortcut,) = (operand for operand in add.all_input_nodes if operand is not branch)
        inside = ancestors(branch) - ancestors(shortcut)
        if any(map(_is_conv, ancestors(shortcut))) and not any(other in inside for other, _, _ in found):
            found.append((add, shortcut, branch))
    return found


def _fusion(graph: fx.GraphModule, adds: list[fx.Node]) -> list[fx.Node]:
    """The convolutions between a concatenation of the blocks' outputs and the global sum (RDN)."""
    found = []
    for cat in filter(is_cat, graph.graph.nodes):
        if sum(operand in adds for operand in operands(cat)) > 1:
            node = cat
            while len(node.users) == 1 and len((reader := next(iter(node.users))).all_input_nodes) == 1:
                node = reader
                found += [node] if _is_conv(node) else []
    return found


# -- everything --------------------------------------------------------------------------------------------------------


def _everywhere(graph: fx.GraphModule, convs: list[fx.Node]) -> list[Spot]:
    """Behind every convolution (and its ReLU) and every sum, and wherever a convolution reads what is still float."""
    ends = {node if (relu := _only_relu(node)) is None else relu for node in convs}
    sums = {node for node in graph.graph.nodes if is_add(node) and all(map(_varies, node.all_input_nodes))}
    sources, ties = ends | sums, {}  # type: ignore[var-annotated]
    for node in [node.all_input_nodes[0] for node in convs] + [x for add in sums for x in add.all_input_nodes]:
        _reach(node, sources, ties)
    heads = {node for node in sources if not any(map(_is_conv, ancestors(node)))}
    spots = []
    for node in sources:
        is_last = not any(_is_conv(reader) for reader in descendants(node) - {node})
        spots.append(
            Spot(node.name, tuple(user.name for user in node.users), _root(node, ties).name, not _is_positive(node),
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


def _feature(graph: fx.GraphModule) -> fx.Node:
    """The node whose output the upsampler reads; where nothing is enlarged, what the last convolution reads."""
    convs = [node for node in graph.graph.nodes if _is_conv(node)]
    for node in graph.graph.nodes:
        module = module_of(node)
        enlarges = isinstance(module, _UPSAMPLING) or (module is None and node.target in _UPSAMPLING_FUNCTIONS)
        if enlarges and any(map(_is_conv, ancestors(node))):
            source = node.all_input_nodes[0]
            return source.all_input_nodes[0] if _is_conv(source) else source
    return convs[-1].all_input_nodes[0] if convs else next(iter(graph.graph.nodes))


def _left(graph: fx.GraphModule, convs: tuple[str, ...], placement: str) -> dict[str, str]:
    """The layers with weights that stay in float, and why; for `full` what else is computed in float."""
    found = {}
    for node in graph.graph.nodes:
        module = module_of(node)
        if isinstance(module, nn.Conv2d):
            if node.target not in convs:
                found[str(node.target)] = f"outside the placement {placement!r}"
        elif module is not None and any(True for _ in module.parameters()):
            found[str(node.target)] = f"{type(module).__name__} is not quantised here"
        elif placement == "full" and _computes(node):
            found[node.name] = f"{_kind(node)} is computed in float"
    return found


def _computes(node: fx.Node) -> bool:
    """Whether a node is an operator on values, other than what runs on the grids: ReLU, sums, what moves values."""
    on_grids = (
        _is_relu(node) or is_cat(node) or passes(node) or (is_add(node) and all(map(_varies, node.all_input_nodes)))
    )
    return node.op.startswith("call") and _varies(node) and not on_grids


def _kind(node: fx.Node) -> str:
    module = module_of(node)
    return type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))


def _spot(source: fx.Node, readers: Iterable[fx.Node]) -> Spot:
    return Spot(source.name, tuple(node.name for node in readers), source.name, not _is_positive(source))


def _merged(spots: list[Spot]) -> list[Spot]:
    """One spot a source: readers of the same tensor share its alpha."""
    together: dict[str, Spot] = {}
    for spot in (spot for spot in spots if spot.readers):
        known = together.get(spot.source)
        together[spot.source] = spot if known is None else replace(known, readers=known.readers + spot.readers)
    return list(together.values())


def _in_order(graph: fx.GraphModule, spots: list[Spot]) -> list[Spot]:
    order = {node.name: index for index, node in enumerate(graph.graph.nodes)}
    return sorted(spots, key=lambda spot: order[spot.source])


def _signs(spots: list[Spot], unsigned: bool) -> dict[str, bool]:
    """Whether each group needs negative values: if any of its tensors does."""
    signs: dict[str, bool] = {}
    for spot in spots:
        signs[spot.group] = signs.get(spot.group, False) or spot.signed or not unsigned
    return signs


def _is_conv(node: fx.Node) -> bool:
    return isinstance(module_of(node), nn.Conv2d) and not isinstance(module_of(node), QuantisedConv2d)


def _is_relu(node: fx.Node) -> bool:
    module = module_of(node)
    return isinstance(module, nn.ReLU) if module is not None else node.target in (torch.relu, F.relu, "relu")


def _only_relu(node: fx.Node) -> fx.Node | None:
    """The ReLU that alone reads a node, if there is one."""
    readers = list(node.users)
    return readers[0] if len(readers) == 1 and _is_relu(readers[0]) else None


def _is_positive(node: fx.Node) -> bool:
    """Whether a node gives nothing negative."""
    if is_cat(node) or passes(node):
        return all(map(_is_positive, node.all_input_nodes))
    return _is_relu(node) or isinstance(module_of(node), nn.Sigmoid)


def passes(node: fx.Node) -> bool:
    module = module_of(node)
    return isinstance(module, _PASSING) if module is not None else node.target in _PASSING_FUNCTIONS


def _varies(node: fx.Node) -> bool:
    """Whether a node depends on the network's input, and is no number."""
    return bool(shape(node)) and any(source.op == "placeholder" for source in ancestors(node))
