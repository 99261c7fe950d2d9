"""Which tensors are quantised: the paper's drawing, its released code, the later correction, and everything.

The three published placements disagree, so every report names the one it was made with. A placement is found in a
traced network: a residual block is a sum whose branch holds convolutions and no other such sum.
"""

from dataclasses import replace

import torch
from torch import fx, nn
from torch.nn import functional as F

from ..core.graph.channels import is_cat, operands
from ..core.graph.surgery import is_add, residual_branch
from ..core.graph.tracing import ancestors, descendants, module_of
from ..core.quantisation.placement import (
    Placement,
    Spot,
    computes,
    everywhere,
    in_order,
    kind_of,
    signs_of,
    spot_behind,
)
from .layers import QuantisedConv2d

PLACEMENTS = ("fig1", "repo", "cadyq", "full")
_UPSAMPLING = (nn.PixelShuffle, nn.Upsample, nn.ConvTranspose2d)
_UPSAMPLING_FUNCTIONS = {F.pixel_shuffle, F.interpolate, torch.pixel_shuffle}


def place(graph: fx.GraphModule, placement: str, unsigned: bool = True) -> Placement:
    """Find a placement in a traced network; `unsigned` uses the grid from 0 behind ReLUs.

    Raises ValueError where nothing could be quantised.
    """
    feature = _feature(graph)
    convs = [node for node in graph.graph.nodes if _is_conv(node)]
    if not convs:
        raise ValueError("the network has no Conv2d, and only those are quantised: give a convolutional network")
    if placement == "full":
        scope, spots = convs, everywhere(graph, convs)
    else:
        scope, spots = _published(graph, convs, feature, placement)
    if not scope:
        raise ValueError(
            f"placement={placement!r} finds no convolution between the first one and the upsampler: take 'full'"
        )
    signs = signs_of(spots, unsigned)
    found = tuple(replace(spot, signed=signs[spot.group]) for spot in in_order(graph, spots))
    names = tuple(dict.fromkeys(str(node.target) for node in scope))
    return Placement(names, found, _left(graph, names, placement), feature.name)


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
            spots.append(spot_behind(conv.all_input_nodes[0], [conv]))
    if not adds:
        late = descendants(feature)
        scope = [conv for conv in convs if conv not in late and any(map(_is_conv, ancestors(conv) - {conv}))]
        spots = [spot_behind(conv.all_input_nodes[0], [conv]) for conv in scope]
    return scope, _merged(spots)


def _block(add, shortcut, branch, inside, own, placement) -> list[Spot]:
    """The quantisers of one block: its convolutions' inputs, its shortcut and the end of its branch."""
    first = [conv for conv in own if conv.all_input_nodes[0] is shortcut]
    spots = [spot_behind(conv.all_input_nodes[0], [conv]) for conv in own if conv not in first]
    is_dense = any(map(is_cat, inside))
    if placement == "fig1":
        return [spot_behind(shortcut, first), *spots]
    if placement == "repo" and not is_dense:
        spots.append(spot_behind(shortcut, [add]))  # the release quantises the shortcut, not what conv1 reads
    else:
        spots.append(spot_behind(shortcut, [node for node in shortcut.users if node in inside or node is add]))
    return [*spots, spot_behind(branch, [add])] if placement == "cadyq" or not is_dense else spots


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
        elif placement == "full" and computes(node):
            found[node.name] = f"{kind_of(node)} is computed in float"
    return found


def _merged(spots: list[Spot]) -> list[Spot]:
    """One spot a source: readers of the same tensor share its alpha."""
    together: dict[str, Spot] = {}
    for spot in (spot for spot in spots if spot.readers):
        known = together.get(spot.source)
        together[spot.source] = spot if known is None else replace(known, readers=known.readers + spot.readers)
    return list(together.values())


def _is_conv(node: fx.Node) -> bool:
    return isinstance(module_of(node), nn.Conv2d) and not isinstance(module_of(node), QuantisedConv2d)
