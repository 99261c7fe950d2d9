"""From the layer that writes channels to the layers that read them: where a mask or a gate stands in between."""

from dataclasses import dataclass, field

from torch import fx, nn

from .channels import Channels
from .moves import is_move, passes_zero
from .operators import CONVS, NORMS, TRANSPOSED, is_depthwise, is_homogeneous, is_per_channel, keeps_zero
from .tracing import gives_tensors, module_of, reached, shape, width


def last_affine(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    """From the layer that writes channels: the last layer with weights before the graph forks, and where a mask goes.

    The mask goes behind the activation that follows where a scale passes through it (ReLU), else before it.
    """
    last = end = node
    while len(end.users) == 1:
        reader = next(iter(end.users))
        if width(reader) != width(node):
            break
        if isinstance(module_of(reader), NORMS) or is_depthwise(module_of(reader)):
            last = end = reader
        elif len(reader.all_input_nodes) == 1 and (is_homogeneous(reader) or keeps_zero(reader)):
            end = reader
        else:
            break
    masked = last
    while len(masked.users) == 1 and is_homogeneous(next(iter(masked.users))):
        masked = next(iter(masked.users))
    return last, masked


def not_zero_after(masked: fx.Node) -> fx.Node | None:
    """The first node behind a masked one that makes zero channels nonzero before a layer reads them; None if none."""
    behind = (node for node in _until_read(masked) if not reads_channels(node))
    return next((node for node in behind if node.op == "output" or not passes_zero(node)), None)


def readers(source: fx.Node) -> set[str]:
    """The layers that read the channels of a node."""
    return {str(node.target) for node in _until_read(source) if reads_channels(node)}


@dataclass
class Reads:
    """What reads the channels of a group: the layers, in the network's order, and the nodes that compute otherwise."""

    layers: list[fx.Node] = field(default_factory=list)
    others: list[fx.Node] = field(default_factory=list)


def reads(channels: Channels) -> dict[int, Reads]:
    """For each group the layers that read its channels, each of which is linear in them: layers and others.

    Between the layers that write a group and those that read it, each of its channels stays by itself, whatever is
    computed from it: a scale in front of all layers that read it is a scale of the group.
    """
    groups = {node: channels.groups(node) & channels.producers.keys() for node in channels.graph.graph.nodes}
    by_group = {group: Reads() for group in channels.producers}
    for reader in channels.graph.graph.nodes:
        for group in {group for source in reader.all_input_nodes for group in groups[source]}:
            if reads_channels(reader):
                by_group[group].layers.append(reader)
            elif reader.op == "output" or (
                gives_tensors(reader) and group not in groups[reader] and not is_move(reader)
            ):
                by_group[group].others.append(reader)
    return by_group


def _until_read(source: fx.Node) -> list[fx.Node]:
    """All nodes behind `source` up to and with the layers that read its channels."""

    def following(node: fx.Node) -> list[fx.Node]:
        goes_on = node is source or not reads_channels(node)
        return [user for user in node.users if gives_tensors(user) or user.op == "output"] if goes_on else []

    return reached(source, following)[1:]


def reads_channels(node: fx.Node) -> bool:
    """Whether a node is a layer that mixes all channels that it reads."""
    module = module_of(node)
    return isinstance(module, nn.Linear) or (isinstance(module, (*CONVS, *TRANSPOSED)) and module.groups == 1)


def between(first: fx.Node, last: fx.Node) -> list[fx.Node]:
    """The nodes of a chain behind `first` up to and with `last`, each the only reader of the one before."""
    chain, node = [], first
    while node is not last:
        node = next(iter(node.users))
        chain.append(node)
    return chain


def private_chain(node: fx.Node) -> list[fx.Node]:
    """The batch norm and activation that only this convolution reads, nearest first."""
    chain = []
    source = node.all_input_nodes[0]
    while len(source.users) == 1 and len(source.all_input_nodes) == 1 and _is_elementwise(source):
        chain.append(source)
        source = source.all_input_nodes[0]
    return chain


def _is_elementwise(node: fx.Node) -> bool:
    module = module_of(node)
    return isinstance(module, NORMS) or (is_per_channel(node) and shape(node) == shape(node.all_input_nodes[0]))
