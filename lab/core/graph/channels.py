"""Which channels of a network belong together: a union-find over the channel axes of its traced graph.

Two axes are one channel group when removing (or permuting) a channel of the one forces the same on the other: what a
convolution writes, the batch norm behind it and the residual sum it joins share a group. Pruning, decoupling and
rearrangement all ask this question.
"""

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from .tracing import module_of, shape, width

OUTPUT = "the network's output"
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

# Per-channel operations that turn a channel of zeros into zeros, by what they are in the graph.
_ZERO_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Tanh, nn.ELU, nn.Identity,
    nn.Dropout, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample,
)  # fmt: skip
_ZERO_FUNCTIONS = {
    F.relu, torch.relu, F.relu6, F.leaky_relu, F.silu, F.gelu, F.hardswish, F.tanh, torch.tanh, F.elu, F.dropout,
    F.dropout2d, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate,
}  # fmt: skip
_ZERO_METHODS = {"relu", "tanh", "contiguous", "clone", "float", "detach"}
# Per-channel operations that do not: a channel of zeros comes out as a constant.
_OTHER_MODULES = (nn.Sigmoid, nn.Hardsigmoid, nn.Softplus)
_OTHER_FUNCTIONS = {torch.sigmoid, F.sigmoid, F.hardsigmoid, F.softplus}
_SUMS = {operator.add, torch.add, operator.sub, torch.sub}
_PRODUCTS = {operator.mul, torch.mul}
# Positively homogeneous: f(m x) = m f(x) for m >= 0, so that a scale may be moved through them exactly.
_HOMOGENEOUS_MODULES = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, nn.Dropout, nn.Dropout2d)
_HOMOGENEOUS_FUNCTIONS = {F.relu, torch.relu, F.leaky_relu, F.dropout, F.dropout2d}


@dataclass(frozen=True)
class Segment:
    """A run of channels in an axis: `size` channels of a group, each standing for `repeat` of the axis's entries."""

    group: int
    size: int
    repeat: int = 1


Layout = tuple[Segment, ...]


@dataclass
class Channels:
    """The channel groups of a traced network.

    `layouts` gives the channel axis of each node's output, `producers` the modules whose output rows are a group's
    channels, and `frozen` the groups that cannot be changed, with the reason. `sizes` counts the channels of a group,
    `parents` are the links of the union-find: ask for a group's number through `find`.
    """

    graph: fx.GraphModule
    layouts: dict[fx.Node, Layout] = field(default_factory=dict)
    producers: dict[int, list[str]] = field(default_factory=dict)
    frozen: dict[int, str] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        nodes = self.graph.graph.nodes
        calls = [str(node.target) for node in nodes if node.op == "call_module"]
        read = {str(node.target).rpartition(".")[0] for node in nodes if node.op == "get_attr"}
        self.shared = {name for name in calls if calls.count(name) > 1 or name in read}
        for node in nodes:
            self.layouts[node] = self._layout(node)

    # -- the union-find ------------------------------------------------------------------------------------------

    def find(self, group: int) -> int:
        """The number by which a group is known, after all unions."""
        while self.parents[group] != group:
            group = self.parents[group]
        return group

    def _open(self, size: int, reason: str = "") -> Layout:
        group = len(self.parents)
        self.parents.append(group)
        self.sizes.append(size)
        self.producers[group] = []
        if reason:
            self.frozen[group] = reason
        return (Segment(group, size),)

    def _freeze(self, layout: Layout, reason: str) -> None:
        for segment in layout:
            self.frozen.setdefault(self.find(segment.group), reason)

    def _union(self, a: Layout, b: Layout, reason: str) -> None:
        if [(s.size, s.repeat) for s in a] != [(s.size, s.repeat) for s in b]:
            self._freeze(a, reason)
            self._freeze(b, reason)
            return
        for left, right in zip(a, b, strict=True):
            root, child = sorted((self.find(left.group), self.find(right.group)))
            if root == child:
                continue
            self.parents[child] = root
            self.producers[root] += self.producers.pop(child)
            if child in self.frozen:
                self.frozen.setdefault(root, self.frozen.pop(child))

    # -- the rules, one a kind of node ---------------------------------------------------------------------------

    def _layout(self, node: fx.Node) -> Layout:
        if node.op == "placeholder":
            return self._open(width(node), "the network's input")
        sources = [source for source in node.all_input_nodes if shape(source)]  # sizes and tuples have none
        if node.op == "output":
            return self._output(sources)
        if not shape(node):
            return self._shapeless(node, sources)
        if node.op == "call_module":
            return self._module(node, self.graph.get_submodule(str(node.target)))
        return self._operation(node, sources)

    def _output(self, sources: list[fx.Node]) -> Layout:
        for source in sources:
            self._freeze(self.layouts[source], OUTPUT)
        return ()

    def _operation(self, node: fx.Node, sources: list[fx.Node]) -> Layout:
        """A function or method that gives a tensor."""
        if sources and node.target in _SUMS | _PRODUCTS | {"add", "mul"}:
            return self._join(node, sources)
        if is_cat(node) and all(shape(operand) for operand in operands(node)):
            return tuple(segment for operand in operands(node) for segment in self.layouts[operand])
        if len(sources) == 1 and (is_per_channel(node) or _keeps_channel_axis(node)):
            return self.layouts[sources[0]]
        if len(sources) == 1 and _flattens(node):
            return self._flatten(node, sources[0])
        return self._refuse(node, sources)

    def _shapeless(self, node: fx.Node, sources: list[fx.Node]) -> Layout:
        """A node that gives no tensor: sizes are harmless, but for the number of channels; tuples are not followed."""
        is_size = node.target in ("size", "dim") or (node.target is getattr and node.args[1] in ("shape", "ndim"))
        if not is_size or _asks_for_channels(node, sources):
            for source in sources:
                self._freeze(self.layouts[source], f"{node.name} is not followed")
        return ()

    def _module(self, node: fx.Node, module: nn.Module) -> Layout:
        source = self.layouts[node.all_input_nodes[0]]
        name = str(node.target)
        if name in self.shared and any(True for _ in module.parameters()):
            self._freeze(source, f"{name} is used more than once")
            return self._open(width(node), f"{name} is used more than once")
        if isinstance(module, CONVS) and module.groups == 1:
            return self._produce(name, module.out_channels)
        if isinstance(module, nn.Linear) and len(shape(node)) == 2:
            return self._produce(name, module.out_features)
        if isinstance(module, nn.Flatten) and module.start_dim == 1:
            return self._flatten(node, node.all_input_nodes[0])
        if is_depthwise(module) or isinstance(module, NORMS) or is_per_channel(node):
            return source
        return self._refuse(node, node.all_input_nodes)

    def _produce(self, name: str, size: int) -> Layout:
        layout = self._open(size)
        self.producers[layout[0].group].append(name)
        return layout

    def _join(self, node: fx.Node, sources: list[fx.Node]) -> Layout:
        first = self.layouts[sources[0]]
        for other in sources[1:]:
            self._union(first, self.layouts[other], f"{node.name} joins unlike axes")
        return first

    def _flatten(self, node: fx.Node, source: fx.Node) -> Layout:
        before, after = shape(source), shape(node)
        if len(after) != 2 or len(before) < 2:
            return self._refuse(node, [source])
        entries = math.prod(before[2:])
        return tuple(Segment(s.group, s.size, s.repeat * entries) for s in self.layouts[source])

    def _refuse(self, node: fx.Node, sources: list[fx.Node]) -> Layout:
        kind = node.target if module_of(node) is None else type(module_of(node))
        reason = f"{getattr(kind, '__name__', kind)} is not followed"
        for source in sources:
            self._freeze(self.layouts[source], reason)
        return self._open(width(node), reason)

    # -- questions -----------------------------------------------------------------------------------------------

    def free(self) -> Iterator[tuple[int, list[str]]]:
        """Each group that may lose channels, with the modules that produce it."""
        for group, producers in self.producers.items():
            if producers and group not in self.frozen:
                yield group, producers

    def group_of(self, name: str) -> int:
        """The group that a module produces; KeyError where it produces none."""
        for group, producers in self.producers.items():
            if name in producers:
                return group
        raise KeyError(name)

    def expand(self, layout: Layout, kept: dict[int, torch.Tensor]) -> torch.Tensor:
        """Which entries of an axis stay, as a boolean vector, when `kept` says which channels of a group do."""
        parts = []
        for segment in layout:
            mask = kept.get(self.find(segment.group), torch.ones(segment.size, dtype=torch.bool))
            parts.append(mask.repeat_interleave(segment.repeat))
        return torch.cat(parts)

    def gather(self, layout: Layout, index: dict[int, torch.Tensor]) -> torch.Tensor:
        """Which entries of an axis stay, and in which order, when `index` lists the channels of a group likewise."""
        parts, start = [], 0
        for segment in layout:
            channels = index.get(self.find(segment.group), torch.arange(segment.size))
            entries = channels[:, None] * segment.repeat + torch.arange(segment.repeat)  # (channels, repeat)
            parts.append(start + entries.flatten())
            start += segment.size * segment.repeat
        return torch.cat(parts) if parts else torch.arange(0)


# -- what a node is ----------------------------------------------------------------------------------------------------


def is_depthwise(module: nn.Module | None) -> bool:
    """Whether a convolution has one filter for each of its input channels."""
    return isinstance(module, CONVS) and module.groups == module.in_channels == module.out_channels > 1


def keeps_zero(node: fx.Node) -> bool:
    """Whether a node turns a channel of zeros into zeros, whatever the other channels hold."""
    module = module_of(node)
    if module is not None:
        plain_dw = is_depthwise(module) and module.bias is None
        return isinstance(module, (*_ZERO_MODULES, nn.Flatten)) or plain_dw
    if node.target in _ZERO_FUNCTIONS | _PRODUCTS or node.target in _ZERO_METHODS or is_cat(node):
        return True
    return _keeps_channel_axis(node) or _flattens(node)


def is_per_channel(node: fx.Node) -> bool:
    """Whether a node works on each channel alone, without weights that belong to channels."""
    module = module_of(node)
    if module is not None:
        return isinstance(module, (*_ZERO_MODULES, *_OTHER_MODULES))
    return node.target in _ZERO_FUNCTIONS | _OTHER_FUNCTIONS or node.target in _ZERO_METHODS | {"sigmoid"}


def is_homogeneous(node: fx.Node) -> bool:
    """Whether f(m x) = m f(x) for every m >= 0."""
    module = module_of(node)
    return isinstance(module, _HOMOGENEOUS_MODULES) if module is not None else node.target in _HOMOGENEOUS_FUNCTIONS


def _keeps_channel_axis(node: fx.Node) -> bool:
    if node.target is F.pad:  # pads are given from the last axis on, two numbers an axis
        pads = _argument(node, 1, "pad")
        return len(pads) <= 2 * (len(shape(node)) - 2) and len(node.args) < 4 and not node.kwargs.get("value")
    if node.target is operator.getitem and isinstance(node.args[1], tuple):
        return _takes_all_channels(node.args[1], len(shape(node.all_input_nodes[0])))
    if node.target in (torch.mean, torch.amax) or (node.op == "call_method" and node.target in ("mean", "amax")):
        dims = _argument(node, 1, "dim")
        dims = dims if isinstance(dims, (tuple, list)) else (dims,)
        rank = len(shape(node.all_input_nodes[0]))
        return all(isinstance(dim, int) and dim % rank >= 2 for dim in dims)
    return False


def _takes_all_channels(index: tuple, rank: int) -> bool:
    """Whether an index such as [:, :, ::2, ::2] or [..., ::2, ::2] takes every example and every channel."""
    everything = slice(None)
    if index[0] is Ellipsis:
        return len(index) - 1 <= rank - 2
    return len(index) >= 2 and index[0] == everything and index[1] == everything and Ellipsis not in index[2:]


def _flattens(node: fx.Node) -> bool:
    if node.target is torch.flatten or (node.op == "call_method" and node.target == "flatten"):
        return _argument(node, 1, "start_dim", 0) == 1 and len(shape(node)) == 2
    if node.op == "call_method" and node.target in ("view", "reshape"):
        is_flat = len(shape(node)) == 2 and shape(node)[0] == shape(node.all_input_nodes[0])[0]
        return is_flat and node.args[2:] == (-1,)
    return False


def is_cat(node: fx.Node) -> bool:
    """Whether a node concatenates tensors along their channels."""
    if node.target not in (torch.cat, torch.concat):
        return False
    return _argument(node, 1, "dim", 0) in (1, 1 - len(shape(node)))


def operands(cat: fx.Node) -> list[fx.Node]:
    """What a concatenation joins, in order, a tensor that stands twice included."""
    return list(_argument(cat, 0, "tensors"))


def _argument(node: fx.Node, index: int, name: str, default: Any = None) -> Any:
    """What a call gives for a parameter, by position or by name."""
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def _asks_for_channels(node: fx.Node, sources: list[fx.Node]) -> bool:
    """Whether a size is read on the channel axis: the number would change with the channels that are left."""
    axes = range(len(shape(sources[0]))) if sources else range(2)
    if node.target == "size" and len(node.args) > 1:
        return _takes_second(node.args[1], axes)
    reads = [user.args[1] for user in node.users if user.target is operator.getitem]
    return node.target != "dim" and (len(reads) < len(node.users) or any(_takes_second(read, axes) for read in reads))


def _takes_second(index: object, axes: range) -> bool:
    """Whether an index into a shape takes its second number: 1, or a slice over it, counted from either end."""
    if isinstance(index, slice) and all(
        isinstance(end, (int, type(None))) for end in (index.start, index.stop, index.step)
    ):
        return 1 in axes[index]
    return not isinstance(index, int) or index in (1, 1 - len(axes))
