"""The channel of each entry of each tensor of a traced graph: a union-find over their numbers, in one pass.

Two numbers are made one when removing the one forces the same on the other: those that a sum joins, those that one
group of a convolution reads and writes, the four that a pixel shuffle lays side by side. Whatever only moves numbers is
run on the channels' own.
"""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from .calls import arguments
from .contractions import CONTRACTIONS, Contraction, product_of
from .moves import along, compact, core, is_joint, is_move, run, varying
from .operators import (
    CONVS,
    INSTANCE_NORMS,
    JOINTS,
    NORMS,
    TRANSPOSED,
    called,
    in_groups,
    is_per_channel,
    sees_pixels,
)  # fmt: skip
from .tracing import attribute, gives_tensors, module_of, shape
from .unions import NONE, Unions

OUTPUT = "the network's output"
COUNTED = "the number of its channels, which is not followed"
LARGEST = 2**20  # entries of all parameters beside the layers that are told apart

_REDUCTIONS = {"mean", "sum", "amax", "amin", "prod", "std", "var", "norm", "logsumexp"}
_MIXING = {"softmax", "log_softmax", "softmin", "normalize", "cumsum"}
_HARMLESS = {"dim", "ndimension", "is_floating_point", "is_complex", "get_device", "is_contiguous"}


class Entries(Unions):
    """Runs a graph on the numbers of its channels.

    `values` has of each node the channel of each entry, numbers and sizes as they are; `rows` the output axis of each
    layer that writes channels; `joins` the channels that a node has tied, and `heads` those that are heads of attention
    or other matrices of a batch. `normed` are those along which a LayerNorm normalises, with the axis.
    """

    def __init__(self, graph: fx.GraphModule, shared: set[str], embeddings: bool = False) -> None:
        super().__init__()
        self.graph, self.shared, self.embeddings = graph, shared, embeddings
        self.values: dict[fx.Node, Any] = {}
        self.rows: dict[str, Tensor] = {}
        self.heads: list[Tensor] = []
        self.normed: list[tuple[Tensor, int]] = []
        self.joins: list[tuple[fx.Node, Tensor]] = []
        self.indices: set[fx.Node] = set()  # nodes whose values are a buffer's own numbers
        self._counts: dict[fx.Node, list[Tensor]] = {}  # of numbers that say how many channels there are
        self._parameters: dict[str, Tensor] = {}
        for node in graph.graph.nodes:
            self.values[node] = self._follow(node)
        roots = self.roots()
        for node in set(self.values) - self.indices:
            self.values[node] = tree_map(lambda v: compact(roots[v]) if isinstance(v, Tensor) else v, self.values[node])

    # -- the rules, one a kind of node ---------------------------------------------------------------------------

    def _follow(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            size = shape(node)
            return self._open(size, (min(1, len(size) - 1),), "the network's input") if size else None
        if node.op == "get_attr":
            return self._attribute(node)
        if node.op == "output":
            return self.freeze([self._ids(source) for source in node.all_input_nodes], OUTPUT)
        if not gives_tensors(node):
            return self._number(node)
        value = self._module(node) if node.op == "call_module" else self._operation(node)
        if not is_move(node):
            self.freeze(self.counted(node), f"{node.name} reads {COUNTED}")
        return value

    def _ids(self, node: fx.Node) -> Any:
        """The channels of what a node gives; a buffer's own numbers are none."""
        value = self.values[node]
        if node not in self.indices:
            return value
        return tree_map(lambda v: torch.tensor(NONE).expand(v.shape) if isinstance(v, Tensor) else v, value)

    def _attribute(self, node: fx.Node) -> Any:
        """A tensor beside the layers: its entries may go with the channels that they meet."""
        name, value = str(node.target), attribute(self.graph, str(node.target))
        if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
            self.indices.add(node)
            return value
        if name not in self._parameters:
            if value.numel() == 1:
                self._parameters[name] = torch.tensor(NONE).expand(value.shape)
            elif len(self._parents) + value.numel() > LARGEST or name.rpartition(".")[0] in self.shared:
                self._parameters[name] = self._open(tuple(value.shape), (), f"{name} is read beside the layers")
            else:
                self._parameters[name] = self._open(tuple(value.shape), tuple(range(value.dim())))
        return self._parameters[name]

    def _number(self, node: fx.Node) -> Any:
        """A node that gives no tensor: sizes are harmless, but for the number of channels."""
        counts, name = self.counted(node), called(node)
        first = node.args[0] if node.args else None
        if isinstance(first, fx.Node) and isinstance(self.values[first], Tensor):
            axes = set(_axes_counted(node, self.values[first].dim()))
            counts += [self._ids(first)] if axes & set(varying(self._ids(first))) else []
        elif isinstance(first, fx.Node) and name == "getitem" and called(first) in ("size", "getattr"):
            read = range(len(self.values[first]))[node.args[1]]  # type: ignore[index]
            axes = {read} if isinstance(read, int) else set(read)
            counts = [ids for ids in counts if axes & set(varying(ids))]
        if counts and (node.op == "call_method" or getattr(node.target, "__module__", "") in ("_operator", "builtins")):
            self._counts[node] = counts
        else:
            self.freeze(counts, f"{node.name} reads {COUNTED}")
        try:
            return run(node, self.values.__getitem__)
        except Exception:  # it asks for what numbers of channels cannot tell
            self.freeze([self._ids(source) for source in node.all_input_nodes], f"{node.name} is not followed")
            return None

    def counted(self, node: fx.Node) -> list[Tensor]:
        """The channels whose number a node is given."""
        return [ids for source in node.all_input_nodes for ids in self.counts(source)]

    def counts(self, node: fx.Node) -> list[Tensor]:
        """The channels whose number a node says."""
        return self._counts.get(node, [])

    def _operation(self, node: fx.Node) -> Any:
        """A function or method that gives a tensor, or several."""
        sources = [source for source in node.all_input_nodes if _tensors(self.values[source])]
        name = called(node)
        if not sources:
            return torch.tensor(NONE).expand(shape(node))
        if is_move(node):
            return self._moved(node, sources)
        if not all(isinstance(self.values[source], Tensor) for source in sources):
            return self._refuse(node, sources)
        if name in JOINTS:
            return self._join(node, sources)
        if is_per_channel(node):
            return self._each(node, sources[0])
        if name in CONTRACTIONS:
            return self._attend(node) if name.startswith("scaled") else self._multiply(node, sources)
        if name == "pad":
            return self._pad(node, sources[0])
        if name in ("layer_norm", "rms_norm"):
            last = range(len(shape(node)) - len(arguments(node)["normalized_shape"]), len(shape(node)))
            return self._mix(sources[0], tuple(last), f"{name} normalises over all of its channels")
        if name in _REDUCTIONS | _MIXING:
            return self._over(node, sources[0], name)
        return self._refuse(node, sources)

    def _module(self, node: fx.Node) -> Any:
        module, name = module_of(node), str(node.target)
        sources = node.all_input_nodes
        assert module is not None
        if name in self.shared and any(True for _ in module.parameters()):
            reason = f"{name} is used more than once"
            self.freeze([self._ids(source) for source in sources], reason)
            return self._constant(node, reason)
        if len(sources) != 1 or not isinstance(self.values[sources[0]], Tensor):
            return self._refuse(node, sources)
        if is_move(node):
            return self._moved(node, sources)
        if isinstance(module, (*CONVS, *TRANSPOSED)) and len(shape(node)) == module.weight.dim():
            return self._grouped(node, sources[0], module) if in_groups(module) else self._write(node, sources[0], 1)
        if isinstance(module, nn.Linear) and shape(node):
            return self._write(node, sources[0], len(shape(node)) - 1)
        if isinstance(module, (*NORMS, *INSTANCE_NORMS)) or is_per_channel(node):
            return self._each(node, sources[0])
        if isinstance(module, nn.GroupNorm):
            return self._group_norm(node, sources[0], module.num_groups)
        if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            return self._layer_norm(node, sources[0], module)
        if isinstance(module, (nn.Softmax, nn.LogSoftmax, nn.Softmin)) and module.dim is not None:
            return self._mix(sources[0], (module.dim % len(shape(node)),), f"{node.name} is taken over its channels")
        return self._refuse(node, sources)

    def _write(self, node: fx.Node, source: fx.Node, axis: int) -> Tensor:
        """A layer that reads the channels of one axis and writes new ones there."""
        self._only_along(node, source, axis)
        ids = self._open(shape(node), (axis,))
        self.rows[str(node.target)] = along(ids, axis)
        return ids

    def _grouped(self, node: fx.Node, source: fx.Node, module: Any) -> Tensor:
        """A group of a convolution goes as a whole: all that it reads and all that it writes; a depthwise one too."""
        self._only_along(node, source, 1)
        firsts = self._tied_in_blocks(along(self._ids(source), 1), module.groups)
        rows = firsts.repeat_interleave(module.out_channels // module.groups)
        return rows.view([-1 if axis == 1 else 1 for axis in range(len(shape(node)))]).expand(shape(node))

    def _tied_in_blocks(self, ids: Tensor, count: int) -> Tensor:
        blocks = ids.reshape(count, -1)
        self._tie(blocks, blocks[:, :1])
        return blocks[:, 0]

    def _group_norm(self, node: fx.Node, source: fx.Node, groups: int) -> Tensor:
        if groups == 1:
            return self._mix(source, (1,), "GroupNorm with one group normalises over all of its channels")
        self._only_along(node, source, 1)
        self._tied_in_blocks(along(self._ids(source), 1), groups)
        return self._ids(source)

    def _layer_norm(self, node: fx.Node, source: fx.Node, module: nn.LayerNorm | nn.RMSNorm) -> Tensor:
        last = range(len(shape(node)) - len(module.normalized_shape), len(shape(node)))
        if self.embeddings and len(last) == 1:
            self.normed.append((self._ids(source), last[0]))
            return self._ids(source)
        return self._mix(source, tuple(last), f"{type(module).__name__} normalises over all of its channels")

    def _only_along(self, node: fx.Node, source: fx.Node, axis: int) -> None:
        """Freeze what lies on another axis than the one that a layer takes for channels."""
        ids = self._ids(source)
        self.freeze(ids, f"{node.name} reads its channels as places", set(range(ids.dim())) - {axis % ids.dim()})

    def _mix(self, source: fx.Node, axes: tuple[int, ...], reason: str) -> Tensor:
        ids = self._ids(source)
        self.freeze(ids, reason, set(axes))
        return ids

    def _each(self, node: fx.Node, source: fx.Node) -> Tensor:
        """Works on each channel alone; pools, batch norms and the like take axis 1 for channels."""
        ids, size = self._ids(source), shape(node)
        if sees_pixels(node):
            self._only_along(node, source, 1)
        if tuple(ids.shape) == size:
            return ids
        if len(size) < 2 or len(size) != ids.dim() or set(varying(ids)) - {1}:
            return self._refuse(node, [source])
        return along(ids, 1).view([-1 if axis == 1 else 1 for axis in range(len(size))]).expand(size)

    def _over(self, node: fx.Node, source: fx.Node, name: str) -> Any:
        """A sum, a mean or a softmax over some axes: if these are not the channels', each channel stays by itself."""
        ids = self._ids(source)
        try:
            asked = arguments(node)
        except ValueError:
            return self._refuse(node, [source])
        dim = asked.get("dim")
        dims = range(ids.dim()) if dim is None or dim == [] else dim if isinstance(dim, (tuple, list)) else [dim]
        axes = {axis % max(ids.dim(), 1) for axis in dims if isinstance(axis, int)}
        self.freeze(ids, f"{node.name} is taken over its channels", axes)
        if name in _MIXING:
            return ids
        for axis in sorted(axes, reverse=True):
            ids = ids.narrow(axis, 0, 1) if asked.get("keepdim") else ids.select(axis, 0)
        return ids if tuple(ids.shape) == shape(node) else self._refuse(node, [source])

    def _moved(self, node: fx.Node, sources: list[fx.Node]) -> Any:
        """What only moves numbers is run on the channels' own."""
        if all(source in self.indices for source in sources):
            self.indices.add(node)
            return run(node, self.values.__getitem__)
        first = self.values[sources[0]]
        if (factor := _pixel_shuffle(node)) > 1 and isinstance(first, Tensor):
            self._only_along(node, sources[0], first.dim() - 3)
            self._tied_in_blocks(along(first, first.dim() - 3), first.shape[-3] // factor**2)
        if is_joint(node):
            self._tie_side_by_side(node, [self._ids(source) for source in sources])
        try:
            value = run(node, self.values.__getitem__)
        except Exception:  # it takes something that numbers of channels are not
            return self._refuse(node, sources)
        return tree_map(lambda v: self._settled(compact(v)) if isinstance(v, Tensor) else v, value)

    def _tie_side_by_side(self, node: fx.Node, given: list[Tensor]) -> None:
        """What is put side by side on another axis than that of the channels shares these."""
        axis = arguments(node)["dim"] % len(shape(node))
        if called(node) == "stack" or not any(axis in varying(ids) for ids in given):
            for ids in given[1:]:
                self._tie(given[0], ids)

    def _join(self, node: fx.Node, sources: list[fx.Node]) -> Tensor:
        """Several tensors, entry by entry."""
        joined, channels = self._together(node, [self._ids(source) for source in sources])
        if len(channels) > 1:
            self.joins.append((node, torch.cat([core(ids).flatten() for ids in channels]).unique()))
        return joined.expand(shape(node))

    def _together(self, node: fx.Node, given: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """What tensors give entry by entry, and which of them have channels there.

        One that is spread over the others' channels is tied to none of them, and stays.
        """
        size = torch.broadcast_shapes(*(ids.shape for ids in given))
        aligned = [ids[(None,) * (len(size) - ids.dim())] for ids in given]
        axes = {axis for ids in aligned for axis in varying(ids)}
        tied = [ids for ids in aligned if all(ids.shape[axis] == size[axis] for axis in axes)]
        spread = [ids for ids in aligned if varying(ids) and all(ids is not other for other in tied)]
        self.freeze(spread, f"{node.name} spreads its channels over two axes")
        for ids in tied[1:]:
            self._tie(tied[0], ids)
        channels = [ids for ids in tied if int(core(ids).max()) != NONE]
        return (channels or tied or aligned)[0].expand(size), channels

    def _multiply(self, node: fx.Node, sources: list[fx.Node]) -> Any:
        """A product of matrices, and what is added to it."""
        product = product_of(node)
        if product is None:
            return self._refuse(node, sources)
        contraction = Contraction(node.name, self._tie, self.freeze)
        a, b = (self._ids(operand) for operand in product.operands)
        ids = contraction.of((a, b), product.letters, product.result, shape(node))
        self.heads += contraction.heads
        added = [self._ids(source) for source in sources if source not in product.operands]
        return self._together(node, [ids, *added])[0] if called(node) in ("baddbmm", "addmm") else ids

    def _attend(self, node: fx.Node) -> Tensor:
        """Scaled dot-product attention: a key and value that several queries share go with all of these."""
        given = arguments(node)
        query, key, value = (self._ids(given[name]) for name in ("query", "key", "value"))
        if given.get("enable_gqa"):
            key, value = (compact(x.repeat_interleave(query.shape[-3] // x.shape[-3], -3)) for x in (key, value))
        contraction = Contraction(node.name, self._tie, self.freeze)
        batch = "abcdefgh"[: query.dim() - 2]
        size = (*torch.broadcast_shapes(query.shape[:-2], key.shape[:-2]), query.shape[-2], key.shape[-2])
        scores = contraction.of((query, key), (f"{batch}xw", f"{batch}yw"), f"{batch}xy", size)
        if not contraction.heads and given.get("scale") is None:
            self.freeze([query, key], f"{node.name} is scaled by the number of its channels")
        if isinstance(given.get("attn_mask"), fx.Node) and isinstance(self.values[given["attn_mask"]], Tensor):
            scores = self._together(node, [scores, self._ids(given["attn_mask"])])[0]
        attended = contraction.of((compact(scores), value), (f"{batch}xy", f"{batch}yz"), f"{batch}xz", shape(node))
        self.heads += contraction.heads
        return attended

    def _pad(self, node: fx.Node, source: fx.Node) -> Tensor:
        """Pads beside the channels; what is padded along them stays."""
        ids, size, pads = self._ids(source), shape(node), arguments(node)["pad"]
        axes = {ids.dim() - 1 - index // 2 for index, pad in enumerate(pads) if pad != 0}
        self.freeze(ids, f"{node.name} pads its channels", axes)
        for axis in axes:
            ids = ids.narrow(axis, 0, 1).expand([size[axis] if a == axis else n for a, n in enumerate(ids.shape)])
        return ids

    def _refuse(self, node: fx.Node, sources: list[fx.Node]) -> Any:
        kind = node.target if module_of(node) is None else type(module_of(node))
        name = getattr(kind, "__name__", kind) if shape(node) or node.op == "call_module" else node.name
        reason = f"{name} is not followed"
        self.freeze([self._ids(source) for source in sources], reason)
        return self._constant(node, reason)

    def _constant(self, node: fx.Node, reason: str) -> Any:
        """What cannot be told apart: one frozen channel."""
        metas = node.meta["tensor_meta"]
        if shape(node):
            return self._open(shape(node), (), reason)
        return tree_map(
            lambda meta: self._open(tuple(meta.shape), (), reason), metas, is_leaf=lambda m: hasattr(m, "shape")
        )


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _pixel_shuffle(node: fx.Node) -> int:
    """By how much a node shuffles channels into pixels, 0 if it does not."""
    module = module_of(node)
    if isinstance(module, nn.PixelShuffle):
        return int(module.upscale_factor)
    return int(arguments(node)["upscale_factor"]) if called(node) == "pixel_shuffle" else 0


def _axes_counted(node: fx.Node, rank: int) -> range | tuple[int, ...]:
    """The axes of a tensor whose sizes a node gives."""
    if node.target is getattr:
        return range(rank) if node.args[1] in ("shape",) else ()
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if called(node) == "size" and isinstance(axis, int):
        return (axis % rank,)
    return () if called(node) in _HARMLESS else range(rank)
