"""A network's operators as they are found: its maps, which of them holds a value, and what may be fused into what."""

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from ..packed import Map, Op
from ..scheduling import tile_rows
from ..tables import Const, Part, Strided
from . import views
from .views import Layout, MapView, layout_over

FREE = (-np.inf, np.inf)
LOOPS = 6  # nested loops of a part of a move


class LacksError(ValueError):
    """The engine has no operator for a node, and why."""


@dataclass
class Builder:
    """Writes down operators; a vector (1, C) is a map of one row, as a picture's mean is.

    `values` says where a node's output lies; `matrices` holds the matrix of the operator that writes a map, until all
    norms are folded into it and it is packed.
    """

    graph: fx.GraphModule
    readers: dict[fx.Node, int]  # of each node that is no view: how many others read what it gives
    maps: list[Map] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    values: dict[fx.Node, Any] = field(default_factory=dict)
    matrices: dict[int, np.ndarray] = field(default_factory=dict)
    grids: dict[fx.Node, Any] = field(default_factory=dict)  # of what is rounded, the `grids.Grid`
    in_codes: set[fx.Node] = field(default_factory=set)  # of what is rounded, what lies in its map as codes, unscaled
    moved: dict[tuple, int] = field(default_factory=dict)  # (a value's key, layout, size) -> the map moved to

    # -- values --------------------------------------------------------------------------------------------------------

    def constant(self, node: Any) -> Tensor | None:
        """The numbers of a node that depends on no input; None for any other."""
        if isinstance(node, Tensor):
            return node
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            return None
        holder, _, name = str(node.target).rpartition(".")
        return getattr(self.graph.get_submodule(holder), name)

    def value(self, node: fx.Node) -> MapView:
        """Where a node's output lies, a reshape that strides cannot express left undone."""
        if node not in self.values:
            if (numbers := self.constant(node)) is None:
                raise LacksError(f"reads {node.name}, which the engine does not compute")
            self.values[node] = self.written(node.name, numbers, views.usual_layout(numbers.shape))
        value = self.values[node]
        if self.maps[value.map].interleaved and value.before is None:
            value = self.values[node] = self._planes(value)
        return value

    def resolved(self, node: fx.Node) -> MapView:
        """Where a node's output lies, as a view of a map."""
        value = self.value(node)
        if value.before is not None:
            self.placed(value, views.usual_layout(value.shape), None, node)
        return self.values[node]

    def written(self, name: str, numbers: Tensor, layout: Layout) -> MapView:
        """A constant, as a map in a layout."""
        if not numbers.dtype.is_floating_point and numbers.dtype not in (torch.int64, torch.int32, torch.bool):
            raise LacksError(f"holds {numbers.dtype} numbers")
        index = self.sized(numbers.shape, layout)
        m = self.maps[index]
        ones = tuple(a for a in range(numbers.dim()) if a not in (*layout.planes, *layout.pixels))
        ordered = numbers.permute(*ones, *layout.planes, *layout.pixels) if numbers.dim() else numbers
        table = Const(ordered.reshape(m.c, m.h, m.w).double().cpu().numpy().astype(np.float32))
        self.ops.append(Op("const", name, index, index, table=table))
        return self.over(index, numbers.shape, layout)

    def new(self, m: Map) -> int:
        """The number of a map that is added."""
        self.maps.append(m)
        return len(self.maps) - 1

    def like(self, index: int) -> int:
        """The number of a new map of another's shape."""
        m = self.maps[index]
        return self.new(Map(m.c, m.h, m.w))

    def over(self, index: int, shape: Sequence[int], layout: Layout) -> MapView:
        """A tensor that fills a map in a layout."""
        return MapView(index, views.filling(shape, layout, self.maps[index]))

    # -- layouts -------------------------------------------------------------------------------------------------------

    def layout(self, node: fx.Node) -> Layout | None:
        """The layout in which a node's output has all of its map, if it has."""
        value = self.value(node)
        return None if value.before is not None else views.layout_of(value.view, self.maps[value.map])

    def laid(self, node: fx.Node, layout: Layout, size: tuple[int, int] | None = None) -> int:
        """The map that a node's output fills in a layout, of this height and width where they count."""
        if (numbers := self.constant(node)) is not None and node not in self.values:
            self.values[node] = self.written(node.name, numbers, layout)
        return self.placed(self.value(node), layout, size, node)

    def placed(
        self, value: MapView, layout: Layout, size: tuple[int, int] | None = None, node: fx.Node | None = None
    ) -> int:
        """The map that a value fills in a layout; where it does not, its numbers move. The node then has them there."""
        m = self.maps[value.map]
        if value.before is None and views.fills(value.view, layout, m) and size in (None, (m.h, m.w)):
            return value.map
        index = self._moved(value, layout, size)
        if node is not None and value.before is not None:
            self.values[node] = self.over(index, value.shape, layout)
        return index

    def _planes(self, value: MapView) -> MapView:
        """A picture of interleaved channels as planes: a 1 x 1 convolution with the unit matrix takes them apart, once.

        Only a convolution reads interleaved channels.
        """
        m = self.maps[value.map]
        key = ((value.map,), "planes")
        if key not in self.moved:
            index = self.moved[key] = self.new(Map(m.c, m.h, m.w))
            self.matrices[index] = np.eye(m.c)
            rows = tile_rows(m.h, m.w, m.c)
            self.ops.append(Op("conv", "planes", value.map, index, tile_rows=rows, bias=np.zeros(m.c)))
        shape = (1, m.c, m.h, m.w)
        return self.over(self.moved[key], shape, layout_over(shape, (0, 1)))

    def _moved(self, value: MapView, layout: Layout, size: tuple[int, int] | None) -> int:
        """A map that a value fills in a layout, its numbers moved there."""
        size = views.picture_size(value.shape, layout) if size is None else size
        key = (value.key, layout, size)
        if key not in self.moved:
            planes, _ = views.sizes(value.shape, layout)
            m = Map(planes, *size)
            to = views.filling(value.shape, layout, m)
            if value.before is not None:  # a reshape: what it reshapes goes to the same places under its own shape
                before, same_places = self._before(value), views.reshaped(to, value.before.shape)
                if same_places is None:
                    flat = views.layout_over(before.shape, ())
                    return self._moved(self._under(value, self.placed(before, flat)), layout, size)
                value, to = before, same_places
            index = self.new(m)
            self.move(index, [(value, to)])
            self.moved[key] = index
        return self.moved[key]

    def move(
        self, to: int, parts: Sequence[tuple[MapView, Tensor]], fill: float | None = None, name: str = "move"
    ) -> None:
        """Add an operator that puts the numbers of values where views of one map have them."""
        made = tuple(self.part(value, view) for value, view in parts)
        self.ops.append(Op("move", name, made[0].x, to, table=Strided(fill, made)))

    def _before(self, value: MapView) -> MapView:
        """What a reshape reshapes, as a view of a map."""
        before = value.before
        assert before is not None
        if before.before is None:
            return before
        layout = views.usual_layout(before.shape)
        return self.over(self.placed(before, layout), before.shape, layout)

    def _under(self, value: MapView, flat: int) -> MapView:
        """A reshape of numbers that lie one behind the other in a plane."""
        return self.over(flat, value.shape, layout_over(value.shape, ()))

    def part(self, value: MapView, to: Tensor) -> Part:
        """A value's numbers on their way to a view of another map, the last loop over neighbours there."""
        order = sorted(range(to.dim()), key=lambda axis: -to.stride()[axis])
        shape = [to.shape[a] for a in order]
        walk = views.loops(shape, [value.view.stride(a) for a in order], [to.stride(a) for a in order])
        if len(walk[0]) > LOOPS:
            raise LacksError(f"moves numbers in {len(walk[0])} nested loops: the engine has {LOOPS}")
        pad = LOOPS - len(walk[0])
        counts, from_, to_ = (tuple([1 if i == 0 else 0] * pad + column) for i, column in enumerate(walk))
        places = int(value.view.storage_offset()), int(to.storage_offset())
        return Part(value.map, *places, counts, from_, to_)

    # -- operators -----------------------------------------------------------------------------------------------------

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The shape of what a node gives, or of the first of several outputs."""
        if "shape" in node.meta:
            return node.meta["shape"]
        return next(user.meta["shape"] for user in node.users if args_of(user)[1] == 0)

    def picture(self, node: fx.Node) -> int:
        """The map of a picture (1, C, H, W), or (1, C, L) as one row: channels are its planes."""
        shape = self.shape(node)
        if len(shape) not in (3, 4) or shape[0] != 1:
            raise LacksError(f"reads {shape}: the engine takes one picture here, (1, C, H, W)")
        return self.laid(node, layout_over(shape, (0, 1)), views.sides(shape))

    def emit(self, node: fx.Node, op: Op, layout: Layout) -> None:
        """Add an operator whose map the node's output fills in this layout."""
        self.ops.append(op)
        self.gives(node, self.over(op.y, self.shape(node), layout))

    def gives(self, node: fx.Node, value: MapView) -> None:
        """Say where a node's output lies, or the first of several."""
        self.values[node] = value
        if "shape" not in node.meta:
            self.values.update({user: value for user in node.users if args_of(user)[1] == 0})

    def filled(self, node: fx.Node, layout: Layout, size: tuple[int, int] | None = None) -> int:
        """A new map for a node's output in a layout."""
        return self.sized(self.shape(node), layout, size)

    def sized(self, shape: Sequence[int], layout: Layout, size: tuple[int, int] | None = None) -> int:
        """A new map for a tensor in a layout, of this height and width, or the layout's own."""
        planes, _ = views.sizes(shape, layout)
        return self.new(Map(planes, *(views.picture_size(shape, layout) if size is None else size)))

    def writer(self, node: fx.Node) -> Op | None:
        """The operator that writes all of what a node gives, if one other node alone reads it and nothing was moved."""
        value = self.values.get(node)
        root = source(node)
        if not isinstance(value, MapView) or value.before is not None or self.readers.get(root) != 1:
            return None
        if any(key[0][0] == value.map for key in self.moved):
            return None
        op = next((op for op in reversed(self.ops) if op.y == value.map), None)
        return op if op is not None and op.kind != "const" and op.name != "planes" and self.layout(node) else None


def called(node: fx.Node) -> Any:
    """The operator of torch that a node calls."""
    return node.target


def args_of(node: fx.Node) -> tuple[Any, ...]:
    """What a node's operator is called with, by position."""
    return node.args


def with_defaults(node: fx.Node, *defaults: Any) -> tuple[Any, ...]:
    """What a node's operator is called with by position, and for the rest its defaults."""
    return (*args_of(node), *defaults[len(args_of(node)) :])


def options_of(node: fx.Node) -> dict[str, Any]:
    """What a node's operator is called with, by name."""
    return node.kwargs


def source(node: fx.Node) -> fx.Node:
    """The node that computes what this one is a view of."""
    while is_renaming(node):
        node = args_of(node)[0]
    return node


def is_renaming(node: Any) -> bool:
    """Whether a node gives the numbers of its first argument, or some of them, under another shape."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return False
    return node.target in RENAMINGS or node.target is operator.getitem


def count_readers(graph: fx.GraphModule) -> dict[fx.Node, int]:
    """How many nodes read what each node computes, under whatever name, the output of the network among them."""
    counts: dict[fx.Node, int] = {}
    for node in graph.graph.nodes:
        if not is_renaming(node):
            roots = {source(read) for read in node.all_input_nodes}
            for root in roots:
                twice = sum(source(read) is root for read in _reads(node))
                counts[root] = counts.get(root, 0) + max(1, twice)
    return counts


def _reads(node: fx.Node) -> Iterable[fx.Node]:
    """What a node reads, as often as it stands among its arguments."""
    leaves = torch.utils._pytree.tree_leaves(
        (args_of(node), options_of(node)), is_leaf=lambda x: isinstance(x, fx.Node)
    )
    return (leaf for leaf in leaves if isinstance(leaf, fx.Node))


aten = torch.ops.aten
# Operators of torch that give their first argument's numbers under another shape.
RENAMINGS: set[Callable] = {
    aten.view.default, aten._unsafe_view.default, aten.permute.default, aten.transpose.int, aten.t.default,
    aten.expand.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default,
    aten.slice.Tensor, aten.select.int, aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int,
    aten.alias.default, aten.detach.default, aten.clone.default, aten._reshape_alias.default, aten.unfold.default,
    aten.diagonal.default,
}  # fmt: skip
