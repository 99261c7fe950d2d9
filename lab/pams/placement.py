"""Which tensors are quantised: the paper's drawing, its released code, the later correction, and everything.

The three published placements disagree, so every report names the one it was made with. A placement is found in a
traced network: a residual block is a sum whose branch holds layers and no other such sum.
"""

from dataclasses import dataclass, replace

import torch
from torch import fx, nn
from torch.nn import functional as F

from ..core.graph.operators import is_cat, operands
from ..core.graph.surgery import is_add, residual_branch
from ..core.graph.tracing import ancestors, descendants, module_of
from ..core.quantisation.placement import (
    Placement,
    QuantPoint,
    everywhere,
    in_graph_order,
    left_in_float,
    matrix_products,
    operands_of,
    point_behind,
    with_group_signs,
)
from .layers import RoundedLayer

PLACEMENTS = ("fig1", "repo", "cadyq", "full")
_UPSAMPLING = (nn.PixelShuffle, nn.Upsample, nn.ConvTranspose2d)
_UPSAMPLING_FUNCTIONS = {F.pixel_shuffle, F.interpolate, torch.pixel_shuffle}


def place_quantisers(graph: fx.GraphModule, placement: str, unsigned: bool = True) -> Placement:
    """Find a placement in a traced network; `unsigned` uses the grid from 0 behind ReLUs.

    Raises ValueError where nothing could be quantised.
    """
    feature = _feature(graph)
    layers = [node for node in graph.graph.nodes if _is_layer(node)]
    if not any(map(_is_conv, layers)):
        raise ValueError("the network has no Conv2d, which pictures are made by: give a convolutional network")
    if placement == "full":
        scope, points = layers, everywhere(graph, layers)
    else:
        scope, points = _published(graph, layers, feature, placement)
    if not scope:
        raise ValueError(
            f"placement={placement!r} finds no convolution between the first one and the upsampler: take 'full'"
        )
    points = with_group_signs(in_graph_order(graph, points), unsigned)
    names = tuple(dict.fromkeys(str(node.target) for node in scope))
    return Placement(names, tuple(points), _unquantised(graph, names, placement), feature.name)


# -- the published placements -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Block:
    """A residual block: the sum, its shortcut, the end of its branch, and all nodes of the branch."""

    add: fx.Node
    shortcut: fx.Node
    branch: fx.Node
    inside: set[fx.Node]


def _published(
    graph: fx.GraphModule, layers: list[fx.Node], feature: fx.Node, placement: str
) -> tuple[list[fx.Node], list[QuantPoint]]:
    """What is quantised within residual blocks and in the fusion of their outputs; without blocks, the body."""
    scope: list[fx.Node] = []
    points: list[QuantPoint] = []
    blocks = _blocks(graph)
    for block in blocks:
        block_layers = [layer for layer in layers if layer in block.inside]
        scope += block_layers
        points += _block_points(block, block_layers, placement)
        products = [product for product in matrix_products(graph) if product in block.inside]
        points += [point for product in products for point in operands_of(product)]
    for conv in _fusion(graph, [block.add for block in blocks]):
        scope.append(conv)
        if is_cat(conv.all_input_nodes[0]) or placement != "repo":  # the release leaves the second one's input alone
            points.append(point_behind(conv.all_input_nodes[0], [conv]))
    if not blocks:
        late = descendants(feature)
        scope = [layer for layer in layers if layer not in late and any(map(_is_layer, ancestors(layer) - {layer}))]
        points = [point_behind(layer.all_input_nodes[0], [layer]) for layer in scope]
    return scope, _merged(points)


def _block_points(block: _Block, layers: list[fx.Node], placement: str) -> list[QuantPoint]:
    """The quantisers of one block: its layers' inputs, its shortcut and the end of its branch."""
    add, shortcut, inside = block.add, block.shortcut, block.inside
    first = [layer for layer in layers if layer.all_input_nodes[0] is shortcut]
    points = [point_behind(layer.all_input_nodes[0], [layer]) for layer in layers if layer not in first]
    is_dense = any(map(is_cat, inside))
    if placement == "fig1":
        return [point_behind(shortcut, first), *points]
    if placement == "repo" and not is_dense:
        readers = [add]  # the release quantises the shortcut, not what conv1 reads
    else:
        readers = [node for node in shortcut.users if node in inside or node is add]
    points.append(point_behind(shortcut, readers))
    return [*points, point_behind(block.branch, [add])] if placement == "cadyq" or not is_dense else points


def _blocks(graph: fx.GraphModule) -> list[_Block]:
    """Innermost sums over a branch with a layer."""
    blocks: list[_Block] = []
    for add in filter(is_add, graph.graph.nodes):
        branch = residual_branch(add)
        if branch is None:
            continue
        (shortcut,) = (operand for operand in add.all_input_nodes if operand is not branch)
        inside = ancestors(branch) - ancestors(shortcut)
        if any(map(_is_layer, ancestors(shortcut))) and not any(block.add in inside for block in blocks):
            blocks.append(_Block(add, shortcut, branch, inside))
    return blocks


def _fusion(graph: fx.GraphModule, adds: list[fx.Node]) -> list[fx.Node]:
    """The convolutions between a concatenation of the blocks' outputs and the global sum (RDN)."""
    convs: list[fx.Node] = []
    for cat in filter(is_cat, graph.graph.nodes):
        if sum(operand in adds for operand in operands(cat)) > 1:
            node = cat
            while len(node.users) == 1 and len((reader := next(iter(node.users))).all_input_nodes) == 1:
                node = reader
                convs += [node] if _is_conv(node) else []
    return convs


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


def _unquantised(graph: fx.GraphModule, layers: tuple[str, ...], placement: str) -> dict[str, str]:
    """The layers with weights that stay in float, and why; for `full` what else is computed in float."""
    reasons = left_in_float(graph, layers, operators=placement == "full")
    outside = {str(node.target) for node in graph.graph.nodes if _is_layer(node)} & reasons.keys()
    return reasons | dict.fromkeys(outside, f"outside the placement {placement!r}")


def _merged(points: list[QuantPoint]) -> list[QuantPoint]:
    """One point a source: readers of the same tensor share its alpha."""
    by_source: dict[str, QuantPoint] = {}
    for point in (point for point in points if point.readers):
        other = by_source.get(point.source)
        by_source[point.source] = point if other is None else replace(other, readers=other.readers + point.readers)
    return list(by_source.values())


def _is_conv(node: fx.Node) -> bool:
    return isinstance(module_of(node), nn.Conv2d)


def _is_layer(node: fx.Node) -> bool:
    """Whether a node is a layer whose weight is rounded: a convolution, or a linear layer on tokens."""
    return isinstance(module_of(node), (nn.Conv2d, nn.Linear)) and not isinstance(module_of(node), RoundedLayer)
