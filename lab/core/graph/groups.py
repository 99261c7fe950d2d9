"""What of a network can be cut, by kind: channels, heads of attention, hidden units, the width of an embedding."""

from dataclasses import dataclass

from torch import nn

from .chains import reads_channels
from .channels import Channels
from .contractions import CONTRACTIONS
from .operators import called

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
    listed, readers_of = [], _readers(channels)
    for group, producers in channels.free():
        module = channels.graph.get_submodule(producers[0])
        places = channels.places(producers[0])
        axis = -1 if isinstance(module, nn.Linear) else 1
        entries = len(places) // len(places.unique())
        readers = tuple(readers_of[group])
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


def _readers(channels: Channels) -> dict[int, dict[str, None]]:
    """For each group the nodes that read its channels and give others, in the network's order."""
    readers: dict[int, dict[str, None]] = {group: {} for group in channels.producers}
    for node in channels.graph.graph.nodes:
        is_layer = reads_channels(node)
        if not is_layer and called(node) not in CONTRACTIONS:
            continue
        for group in {group for source in node.all_input_nodes for group in channels.groups(source)} & readers.keys():
            if is_layer or group not in channels.heads:
                readers[group][str(node.target) if is_layer else node.name] = None
    return readers
