"""ONNX forms of what moves values and computes none: views, permutations, parts, slices.

The file's batch axis stays free, its other axes do where no form needs their lengths: the sizes of a view are read off
two runs of the network, with two pictures and with three, and what grows from one to the other is the batch.
"""

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..graph.calls import arguments, asked
from ..graph.tracing import attribute, gives_tensors, shape

_END = 2**31  # where a slice that goes to the end of its axis ends


class Values(fx.Interpreter):
    """The shape of every tensor of a network, and every number that it computes from shapes, by node.

    Of the `kept` nodes the tensors themselves.
    """

    def __init__(self, model: fx.GraphModule, kept: set[fx.Node], *inputs: Any) -> None:
        super().__init__(model)
        self.values: dict[fx.Node, Any] = {}
        self.kept = kept
        self.run(*inputs)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.values[n] = value if n in self.kept else tree_map(_shape_of, value)
        return value


def _shape_of(leaf: Any) -> Any:
    return tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf


def constants(model: fx.GraphModule) -> set[fx.Node]:
    """The calls whose tensors no input's values and no parameter reaches: masks of windows, tables of positions."""
    constant: set[fx.Node] = set()
    for node in model.graph.nodes:
        reads = [source for source in node.all_input_nodes if gives_tensors(source)]
        if node.op == "get_attr":
            value = attribute(model, str(node.target))
            constant |= set() if isinstance(value, nn.Parameter) else {node}
        elif node.op in ("call_function", "call_method") and gives_tensors(node) and constant.issuperset(reads):
            constant.add(node)
    return {node for node in constant if node.op != "get_attr"}


def fixed(writer: Any, node: fx.Node) -> Any:
    """The tensor, or tensors, of a call that only sizes decide; None where the batch size is among them."""
    if node not in writer.constant_calls:
        return None
    few, more = (tree_leaves(run[node]) for run in writer.sizes)
    if not all(isinstance(a, Tensor) and torch.equal(a, b) for a, b in zip(few, more, strict=True)):
        return None
    writer.is_fixed = True
    return writer.sizes[0][node]


def sizes(
    model: fx.GraphModule, entries: list[fx.Node], kept: set[fx.Node]
) -> tuple[dict[fx.Node, Any], dict[fx.Node, Any]]:
    """The `Values` of two runs, with two pictures and with three; alike where a network takes one batch size only."""
    device = next(model.parameters(), torch.empty(0)).device
    placeholders = [node for node in model.graph.nodes if node.op == "placeholder"]

    def run(batch: int | None) -> dict[fx.Node, Any]:
        given = []
        for node in placeholders:
            lengths, default = list(shape(node)), node.args[0] if node.args else None
            if batch is not None:
                lengths[:1] = [batch]
            is_read = node in entries
            zeros = torch.zeros(lengths, dtype=node.meta["tensor_meta"].dtype, device=device) if is_read else default
            given.append(zeros)
        return Values(model, kept, *given).values

    try:
        return run(2), run(3)
    except (RuntimeError, AssertionError):
        return (alone := run(None)), alone


def no_form(node: fx.Node, what: str, remedy: str) -> ValueError:
    """The one line that an operator without an ONNX form ends in."""
    return ValueError(
        f"{node.target if node.op == 'call_module' else node.name}: {what} has no ONNX form here: {remedy}"
    )


def source(writer: Any, node: fx.Node) -> str:
    """The name of the first tensor that a node reads."""
    return writer.names[node.all_input_nodes[0]]


def numbers(writer: Any, node: fx.Node, value: Any) -> Any:
    """An argument with the numbers that the network computes from the sizes of its pictures in it."""

    def number(part: fx.Node) -> Any:
        if gives_tensors(part):
            raise no_form(node, f"the tensor {part} in the place of a number", "give a number")
        few, more = (run[part] for run in writer.sizes)
        if few != more:
            raise no_form(node, "a number that depends on the batch size", "take it from another axis")
        writer.is_fixed = True
        return few

    return fx.node.map_arg(value, number)


def settings(writer: Any, node: fx.Node) -> dict[str, Any]:
    """What an operator is asked for, by the names of `asked`, sizes as numbers; its tensors stay nodes."""
    given = asked(node)
    if node.op == "call_module":
        return given
    reads = {name for name, part in given.items() if isinstance(part, fx.Node) and gives_tensors(part)}
    return {name: part if name in reads else numbers(writer, node, part) for name, part in given.items()}


def reshaped(writer: Any, node: fx.Node, name: str | None = None, output: str = "") -> str:
    """A tensor, what the node reads if none is named, in the shape that the node gives; the batch axis stays free."""
    few, more = (_shape_of(run[node]) for run in writer.sizes)
    target = [a if a == b else -1 for a, b in zip(few, more, strict=True)]
    if target.count(-1) > 1:
        raise no_form(node, f"a shape with two axes that grow with the batch, {few}", "keep the batch on one axis")
    writer.is_fixed = True
    return shaped(writer, source(writer, node) if name is None else name, target, output or node.name)


def shaped(writer: Any, name: str, target: Iterable[int], output: str) -> str:
    """A tensor in another shape: 0 is as before, -1 what is left."""
    return writer.emit("Reshape", [name, writer.integers(target)], output)


def permuted(writer: Any, name: str, order: Iterable[int], output: str) -> str:
    """A tensor with its axes in another order."""
    return writer.emit("Transpose", [name], output, perm=list(order))


# -- one function an operator ------------------------------------------------------------------------------------------


def _view(writer: Any, node: fx.Node) -> str:
    return reshaped(writer, node)


def _flatten(writer: Any, node: fx.Node) -> str:
    """To one axis from `start_dim` on with any sizes, to more with those of the example."""
    rank, start = len(shape(node.all_input_nodes[0])), asked(node)["start_dim"]
    if asked(node)["end_dim"] % rank != rank - 1:
        return reshaped(writer, node)
    if (start := start % rank) == 1:
        return writer.emit("Flatten", [source(writer, node)], node.name, axis=1)
    return shaped(writer, source(writer, node), [0] * start + [-1], node.name)


def _permute(writer: Any, node: fx.Node) -> str:
    """However it is written: a tensor whose axes all have other lengths shows where each goes."""
    (read,) = node.all_input_nodes
    distinct = torch.empty(tuple(range(len(shape(read)))), device="meta")
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda _: distinct)
    call: Any = getattr(distinct, str(node.target)) if node.op == "call_method" else node.target
    moved = call(*(args[1:] if node.op == "call_method" else args), **kwargs)
    return permuted(writer, source(writer, node), moved.shape, node.name)


def _attribute(writer: Any, node: fx.Node) -> str:
    """x.T and its kin; x.shape is a number and never comes here."""
    if node.args[1] not in ("T", "mT"):
        raise no_form(node, f"the attribute .{node.args[1]}", "write what it computes as plain operations")
    return _permute(writer, node)


def _squeeze(writer: Any, node: fx.Node) -> str:
    """A tensor without axes of length 1."""
    read, dim = shape(node.all_input_nodes[0]), arguments(node).get("dim")
    wanted = range(1, len(read)) if dim is None else [dim] if isinstance(dim, int) else dim
    axes = [axis % len(read) for axis in wanted if read[axis] == 1]
    name = source(writer, node)
    return writer.emit("Squeeze", [name, writer.integers(axes)], node.name) if axes else name


def _unsqueeze(writer: Any, node: fx.Node) -> str:
    axis = numbers(writer, node, arguments(node)["dim"]) % len(shape(node))
    return writer.emit("Unsqueeze", [source(writer, node), writer.integers([axis])], node.name)


def _expand(writer: Any, node: fx.Node) -> str:
    """To the shape that the node gives; an axis of the batch is as long as the file's input."""
    few, more = (_shape_of(run[node]) for run in writer.sizes)
    writer.is_fixed = True
    rest = writer.integers([a if a == b else 0 for a, b in zip(few, more, strict=True)])
    if few == more:
        return writer.emit("Expand", [source(writer, node), rest], node.name)
    if any(a not in (b, 2) for a, b in zip(few, more, strict=True)):
        raise no_form(node, f"expanding to {few}", "expand over the batch itself, and over numbers")
    batch = writer.emit("Shape", [next(iter(writer.inputs))], f"{node.name}.batch", start=0, end=1)
    missing = writer.integers([0 if a == b else 1 for a, b in zip(few, more, strict=True)])
    target = writer.emit("Add", [writer.emit("Mul", [missing, batch], f"{node.name}.n"), rest], f"{node.name}.shape")
    return writer.emit("Expand", [source(writer, node), target], node.name)


def _repeat(writer: Any, node: fx.Node) -> str:
    """Copies along each axis; an axis that the tensor does not have yet is one of length 1."""
    read, gives = shape(node.all_input_nodes[0]), shape(node)
    times = numbers(writer, node, arguments(node)["repeats"])
    name = source(writer, node)
    if len(gives) > len(read):
        name = writer.emit("Unsqueeze", [name, writer.integers(range(len(gives) - len(read)))], f"{node.name}.axes")
    return writer.emit("Tile", [name, writer.integers(times)], node.name)


def _concat(writer: Any, node: fx.Node) -> str:
    args = arguments(node)
    return writer.emit("Concat", [writer.names[part] for part in args["tensors"]], node.name, axis=args["dim"])


def _stack(writer: Any, node: fx.Node) -> str:
    args = arguments(node)
    axis = args["dim"] % len(shape(node))
    parts = [
        writer.emit("Unsqueeze", [writer.names[part], writer.integers([axis])], f"{node.name}.{k}")
        for k, part in enumerate(args["tensors"])
    ]
    return writer.emit("Concat", parts, node.name, axis=axis)


def _parts(writer: Any, node: fx.Node) -> tuple[str, ...]:
    """Chunks and splits: a tensor in parts along one axis."""
    axis = arguments(node)["dim"]
    lengths = [meta.shape[axis] for meta in node.meta["tensor_meta"]]
    return split(writer, node, source(writer, node), lengths, axis)


def split(writer: Any, node: fx.Node, name: str, lengths: list[int], axis: int) -> tuple[str, ...]:
    """A tensor in parts of these lengths."""
    names = [f"{node.name}.{k}" for k in range(len(lengths))]
    if len(names) == 1:
        return (name,)
    return writer.emit_all("Split", [name, writer.integers(lengths)], names, axis=axis)


def _unbind(writer: Any, node: fx.Node) -> tuple[str, ...]:
    """The slices along an axis, each without it."""
    axis, count = arguments(node)["dim"], len(node.meta["tensor_meta"])
    parts = split(writer, node, source(writer, node), [1] * count, axis)
    at = writer.integers([axis])
    return tuple(writer.emit("Squeeze", [part, at], f"{node.name}.slice{k}") for k, part in enumerate(parts))


def _item(writer: Any, node: fx.Node) -> str:
    """A part of what gives several tensors, or a tensor by slices, numbers and new axes: x[:, None, ..., 2:, -1]."""
    read: Any = node.args[0]
    if isinstance(writer.names[read], tuple):
        return writer.names[read][numbers(writer, node, node.args[1])]
    if isinstance(node.args[1], fx.Node) and gives_tensors(node.args[1]):
        return _gather(writer, node, read, node.args[1])
    index = numbers(writer, node, node.args[1])
    index = _complete(index if isinstance(index, tuple) else (index,), len(shape(read)))
    if not all(_is_plain(part) for part in index):
        raise no_form(node, f"indexing with {index}", "take slices by numbers")
    name, kept = source(writer, node), [part for part in index if part is not None]
    rows = [(*_bounds(part), axis) for axis, part in enumerate(kept) if part != slice(None)]
    if rows:
        parts = [writer.integers(column) for column in zip(*rows, strict=True)]
        starts, ends, steps, axes = parts
        name = writer.emit("Slice", [name, starts, ends, axes, steps], f"{node.name}.slice")
    if taken := [axis for axis, part in enumerate(kept) if isinstance(part, int)]:
        name = writer.emit("Squeeze", [name, writer.integers(taken)], f"{node.name}.taken")
    left = [part for part in index if not isinstance(part, int)]
    if new := [axis for axis, part in enumerate(left) if part is None]:
        name = writer.emit("Unsqueeze", [name, writer.integers(new)], f"{node.name}.new")
    return name


def _gather(writer: Any, node: fx.Node, read: fx.Node, index: fx.Node) -> str:
    """Entries of the first axis by a tensor of their numbers."""
    if index.meta["tensor_meta"].dtype == torch.bool:
        raise no_form(node, "indexing with a mask", "write torch.where")
    return writer.emit("Gather", [writer.names[read], writer.names[index]], node.name)


def _complete(index: tuple, rank: int) -> tuple:
    """An index of every axis, without its ellipsis."""
    at = next((k for k, part in enumerate(index) if part is Ellipsis), len(index))
    given = sum(part is not None and part is not Ellipsis for part in index)
    return (*index[:at], *(slice(None),) * (rank - given), *index[at + 1 :])


def _is_plain(part: Any) -> bool:
    if isinstance(part, slice):
        return all(isinstance(end, (int, type(None))) for end in (part.start, part.stop, part.step))
    return part is None or (isinstance(part, int) and not isinstance(part, bool))


def _bounds(part: slice | int) -> tuple[int, int, int]:
    """Where a part of an axis starts and ends, and its step."""
    if isinstance(part, int):
        return part, part + 1 or _END, 1
    return part.start or 0, _END if part.stop is None else part.stop, part.step or 1


def _roll(writer: Any, node: fx.Node) -> str:
    """A tensor turned along some axes: two slices of each in the other order."""
    args, name = arguments(node), source(writer, node)
    shifts, axes = ((value,) if isinstance(value, int) else value for value in (args["shifts"], args["dims"]))
    if not axes:
        raise no_form(node, "rolling without an axis", "give dims")
    for k, (shift, axis) in enumerate(zip(numbers(writer, node, shifts), axes, strict=True)):
        if shift:
            at, turned = writer.integers([axis]), f"{node.name}.{k}"
            ends = [writer.integers([end]) for end in (-shift, 0, _END)]
            tail = writer.emit("Slice", [name, ends[0], ends[2], at], f"{turned}.tail")
            head = writer.emit("Slice", [name, ends[1], ends[0], at], f"{turned}.head")
            name = writer.emit("Concat", [tail, head], turned, axis=axis)
    return name


_KINDS: dict[Callable, tuple] = {
    _view: (torch.reshape, "reshape", "view", "unflatten", torch.unflatten, nn.Unflatten),
    _flatten: (nn.Flatten, torch.flatten, "flatten"),
    _permute: (
        torch.permute, "permute", torch.transpose, "transpose", torch.swapaxes, "swapaxes", torch.swapdims, "swapdims",
        torch.movedim, "movedim", torch.moveaxis, "moveaxis", torch.t, "t",
    ),
    _attribute: (getattr,),
    _squeeze: (torch.squeeze, "squeeze"),
    _unsqueeze: (torch.unsqueeze, "unsqueeze"),
    _expand: (torch.broadcast_to, "expand", "expand_as", "broadcast_to"),
    _repeat: ("repeat",),
    _concat: (torch.cat, torch.concat, torch.concatenate),
    _stack: (torch.stack,),
    _parts: (torch.chunk, "chunk", torch.split, "split", torch.tensor_split, "tensor_split"),
    _unbind: (torch.unbind, "unbind"),
    _item: (operator.getitem,),
    _roll: (torch.roll, "roll"),
}  # fmt: skip
FORMS: dict[Any, Callable] = {target: make for make, targets in _KINDS.items() for target in targets}
