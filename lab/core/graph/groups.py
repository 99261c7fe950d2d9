"""What of a network can be cut, by kind: channels, heads of attention, hidden units, the width of an embedding."""

from dataclasses import dataclass

from torch import nn

from .channels import Channels
from .contractions import CONTRACTIONS
from .operators import CONVS, TRANSPOSED, called
from .tracing import module_of

KINDS = ("channels", "heads", "hidden units", "embedding")


@dataclass(frozen=True)
class Group:
    """Channels that go together only, and what they are.

    `kind` is one of `KINDS`; `name` the layer that a plan knows them by, first of the `producers` that write them;
    `readers` what mixes them: layers, and products of matrices by their nodes' names. `axis` is where they lie in what
    `name` gives, `size` how many there are, and `entries` how many places of that axis each of them is (a head: D).
    """

    kind: str
    name: str
    producers: tuple[str, ...]
    readers: tuple[str, ...]
    axis: int
    size: int
    entries: int


def groups(channels: Channels) -> list[Group]:
    """The groups of a traced network that can lose channels, in the order in which they are computed.

    Whether a channel is zero wherever its readers read it, or is gone, is the same. It is not for an embedding, which
    is listed only if `channels` was made with `embeddings=True`: its LayerNorms then have the statistics of what stays.
    Those that cannot lose channels are in `channels.frozen`, with the reason.
    """
    listed = []
    for group, producers in channels.free():
        module = channels.graph.get_submodule(producers[0])
        places = channels.places(producers[0])
        axis = -1 if isinstance(module, nn.Linear) else 1
        entries = len(places) // len(places.unique())
        readers = _readers(channels, group)
        kind = _kind(channels, group, readers)
        listed.append(Group(kind, producers[0], tuple(producers), readers, axis, channels.sizes[group], entries))
    return listed


def _kind(channels: Channels, group: int, readers: tuple[str, ...]) -> str:
    if group in channels.normalised:
        return "embedding"
    if group in channels.heads:
        return "heads"
    layers = {*channels.producers[group], *readers}
    modules = [channels.graph.get_submodule(name) for name in layers if name in channels.layers]
    return "hidden units" if modules and all(isinstance(module, nn.Linear) for module in modules) else "channels"


def _readers(channels: Channels, group: int) -> tuple[str, ...]:
    """The nodes that read channels of a group and give others."""
    readers: dict[str, None] = {}
    for node in channels.graph.graph.nodes:
        module = module_of(node)
        is_layer = isinstance(module, (*CONVS, *TRANSPOSED, nn.Linear)) and getattr(module, "groups", 1) == 1
        is_product = called(node) in CONTRACTIONS and group not in channels.heads
        if (is_layer or is_product) and any(group in channels.groups(source) for source in node.all_input_nodes):
            readers[str(node.target) if is_layer else node.name] = None
    return tuple(readers)
