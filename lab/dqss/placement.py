"""Which tensors get a strategy, how many bits each has, and which layers read it."""

from typing import Any

from torch import fx, nn

from ..core.graph.tracing import earlier, later, module_of
from ..core.quantisation.placement import (
    Placement,
    QuantPoint,
    everywhere,
    in_graph_order,
    is_positive,
    left_in_float,
    matrix_products,
    operands_of,
    with_group_signs,
)

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def place_quantisers(graph: fx.GraphModule, placement: str) -> Placement:
    """Where strategies are chosen: what each layer or product reads ('layers'), or all that integers pass ('full').

    Raises ValueError for a network without a layer that is quantised here.
    """
    nodes = [node for node in graph.graph.nodes if isinstance(module_of(node), LAYERS)]
    if not nodes:
        raise ValueError("the network has no Conv2d, ConvTranspose2d or Linear: there is nothing to quantise")
    if placement == "full":
        points = with_group_signs(everywhere(graph, nodes))
    else:
        points = [_input_of(node) for node in nodes]
        points += [point for product in matrix_products(graph) for point in operands_of(product)]
    names = tuple(dict.fromkeys(str(node.target) for node in nodes))
    return Placement(names, tuple(in_graph_order(graph, points)), left_in_float(graph, names))


def _input_of(layer: fx.Node) -> QuantPoint:
    """The point before a layer, of a group of its own: layers that read one tensor may round it differently."""
    source = layer.all_input_nodes[0]
    return QuantPoint(source.name, (layer.name,), str(layer.target).replace(".", "_"), not is_positive(source))


def layer_bits(graph: fx.GraphModule, placement: Placement, recipe: Any) -> dict[str, int]:
    """The bits of each layer's weight: the recipe's, and `ends` for the first and the last."""
    nodes = {n for n in graph.graph.nodes if n.op == "call_module" and str(n.target) in placement.layers}
    inner = later(graph, nodes.__contains__) & earlier(graph, nodes.__contains__)
    ends = {str(node.target) for node in nodes if node not in inner}
    return {name: recipe.ends if name in ends else recipe.weight_bits for name in placement.layers}


def readers(graph: fx.GraphModule, placement: Placement) -> dict[str, list[str]]:
    """The quantised layers that read each group's first tensor, by name."""
    nodes = {node.name: node for node in graph.graph.nodes}
    targets = {
        group: [str(nodes[name].target) for name in point.readers if nodes[name].op == "call_module"]
        for group, point in placement.groups().items()
    }
    return {group: [name for name in names if name in placement.layers] for group, names in targets.items()}
