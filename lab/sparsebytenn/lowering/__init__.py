"""From a trained network to the engine's operators: torch's own operators recorded, then lowered one by one.

tape          what a network computes, as aten operators
views         where a tensor's numbers lie in a feature map
builder       maps and operators as they are found, and what may be fused
products, norms, elementwise, grids, spatial, moves    one function for each of torch's operators
"""

import operator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import fx
from torch.utils._pytree import tree_leaves

from ..packed import Map, Network, Op
from ..tables import Strided
from . import elementwise, grids, moves, norms, products, spatial, views
from .builder import Builder, LacksError, args_of, count_readers
from .views import Layout, MapView, layout_over

LOWERINGS = {
    **products.LOWERINGS, **norms.LOWERINGS, **elementwise.LOWERINGS, **grids.LOWERINGS, **spatial.LOWERINGS,
    **moves.LOWERINGS,
}  # fmt: skip


@dataclass(frozen=True)
class Lowered:
    """A graph's maps and operators, and what the engine does not have: node -> the reason.

    `matrices`: of each map that a product writes, its weights (OC, columns).
    """

    maps: list[Map]
    ops: list[Op]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    matrices: dict[int, np.ndarray]
    missing: dict[fx.Node, str]


def lowered(graph: fx.GraphModule, *, interleaved: bool = False) -> Lowered:
    """The engine's operators for a recorded graph; a node that it lacks is noted, and taken for an input from there on.

    `interleaved`: the first input is a picture (H, W, C).
    """
    b = Builder(graph, count_readers(graph))
    inputs: list[int] = []
    missing: dict[fx.Node, str] = {}
    outputs: tuple[int, ...] = ()
    for node in graph.graph.nodes:
        if node.op == "placeholder" and not node.meta["dtype"].is_floating_point:
            missing[node] = f"gives {node.meta['dtype']} numbers, the engine takes real ones"
        elif node.op == "placeholder":
            inputs.append(_input(b, node, interleaved and not inputs))
        elif node.op == "output":
            outputs = tuple(
                _output(b, leaf) for leaf in tree_leaves(args_of(node)[0], is_leaf=_is_node) if _is_node(leaf)
            )
        elif node.op == "call_function":
            try:
                _lower(b, node)
            except LacksError as error:
                missing[node] = str(error)
                _given(b, node)
    return Lowered(b.maps, b.ops, tuple(inputs), outputs, b.matrices, missing)


def _is_node(value: Any) -> bool:
    return isinstance(value, fx.Node)


def _lower(b: Builder, node: fx.Node) -> None:
    if node.target not in LOWERINGS:
        raise LacksError(f"is {node.target}, which the engine does not have")
    before = len(b.ops)
    try:
        LOWERINGS[node.target](b, node)
    except LacksError:
        del b.ops[before:]
        b.moved = {key: index for key, index in b.moved.items() if any(op.y == index for op in b.ops)}
        raise


def _input(b: Builder, node: fx.Node, interleaved: bool) -> int:
    """The map of an input: a picture's channels are planes."""
    shape = node.meta["shape"]
    if interleaved:
        _, c, h, w = shape
        m = Map(c, h, w, interleaved=True)
        index = b.new(m)
        b.values[node] = MapView(index, views.interleaved(shape, m))
        return index
    is_picture = len(shape) in (3, 4) and shape[0] == 1
    layout = layout_over(shape, (0, 1)) if is_picture else views.usual_layout(shape)
    index = b.filled(node, layout, views.sides(shape) if is_picture else None)
    b.values[node] = b.over(index, shape, layout)
    return index


def _given(b: Builder, node: fx.Node) -> None:
    """Take what a node gives for an input, each of several outputs."""
    for gives in (node, *(user for user in node.users if user.target is operator.getitem)):
        if (shape := gives.meta.get("shape")) is None:
            continue
        layout = views.usual_layout(shape)
        index = b.new(Map(1, 1, 1)) if 0 in shape else b.filled(gives, layout)
        b.values[gives] = b.over(index, shape, layout)


def _output(b: Builder, node: fx.Node) -> int:
    """The map that holds an output in the order of its numbers: its first axes are planes, the others pixels."""
    value, rank = b.value(node), len(b.shape(node))
    if value.before is None:
        for planes in range(rank + 1):
            if views.fills(value.view, layout_over(value.shape, range(planes)), b.maps[value.map]):
                return value.map
    shape = b.shape(node)
    layout = layout_over(shape, (0, 1)) if len(shape) == 4 else views.usual_layout(shape)
    return b.laid(node, layout)


def network_of(lowering: Lowered, meta: dict[str, Any], pack: Any) -> Network:
    """The network of a graph that the engine has whole: what nobody reads is left out, matrices are packed."""
    ops: list[Op] = []
    wanted = set(lowering.outputs)
    for op in reversed(lowering.ops):
        if op.y in wanted:
            ops.insert(0, op)
            wanted |= {*op.reads}
    used = sorted(wanted | set(lowering.inputs))
    number = {old: new for new, old in enumerate(used)}
    made = [_renumbered(op, number) for op in ops]
    packed = [
        replace(new, weights=pack(new, lowering.matrices[old.y])) if old.y in lowering.matrices else new
        for old, new in zip(ops, made, strict=True)
    ]
    maps = [lowering.maps[old] for old in used]
    inputs, outputs = (tuple(number[i] for i in ends) for ends in (lowering.inputs, lowering.outputs))
    return Network(maps, packed, inputs, outputs, meta)


def _renumbered(op: Op, number: dict[int, int]) -> Op:
    table = op.table
    if isinstance(table, Strided):
        table = replace(table, parts=tuple(replace(part, x=number[part.x]) for part in table.parts))
    add = None if op.add is None else number[op.add]
    return replace(op, x=number[op.x], y=number[op.y], add=add, table=table)


__all__ = ["Layout", "Lowered", "lowered", "network_of"]
