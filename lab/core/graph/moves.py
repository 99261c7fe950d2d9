"""Operations that only move numbers: which they are, and how they are written again once channels are gone.

A view, a permutation, a slice or a shuffle is followed by running it on the numbers of the channels themselves, so that
whatever way it is written, where each channel went is known exactly.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from .calls import arguments
from .operators import called, in_groups, keeps_zero
from .tracing import module_of, shape

_MODULES = (nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle)
# Written with the new sizes; the methods alone.
_SIZED = {"view", "reshape", "expand", "unflatten"}
_PIECES = {"chunk", "split", "tensor_split"}
_SELECTING = {"getitem", "__getitem__", "narrow", "index_select", "channel_shuffle", "select", "roll", "flip"}
# Right as they stand, however many channels there are.
_PLAIN = set(
    "flatten ravel permute transpose swapaxes swapdims movedim moveaxis t adjoint squeeze unsqueeze contiguous clone "
    "cat concat stack repeat repeat_interleave tile pixel_shuffle pixel_unshuffle expand_as reshape_as "
    "view_as unbind".split()
)
_JOINTS = {"cat", "concat", "stack"}


def is_joint(node: fx.Node) -> bool:
    """Whether a node puts several tensors side by side."""
    return called(node) in _JOINTS


def is_move(node: fx.Node) -> bool:
    """Whether a node moves what it reads, and computes nothing."""
    if node.op == "call_module":
        return isinstance(module_of(node), _MODULES)
    if node.target is getattr:
        return node.args[1] in ("T", "mT")
    return called(node) in _SIZED | _PIECES | _SELECTING | _PLAIN


def passes_zero(node: fx.Node) -> bool:
    """Whether a channel of zeros comes out of a node as zeros, wherever it stands then."""
    module = module_of(node)
    return keeps_zero(node) or is_move(node) or (in_groups(module) and getattr(module, "bias", None) is None)


def run(node: fx.Node, values: Callable[[fx.Node], Any]) -> Any:
    """What a node gives for other values of what it reads."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), values)
    if node.op == "call_module":
        module = module_of(node)
        assert module is not None
        return module(*args, **kwargs)
    if node.op == "call_method":
        name = {"view": "reshape", "view_as": "reshape_as"}.get(
            str(node.target), str(node.target)
        )  # expanded numbers have no view
        return getattr(args[0], name)(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


# -- tensors that tell of each entry which channel it is ---------------------------------------------------------------


def along(ids: Tensor, axis: int) -> Tensor:
    """The entries of one axis, at the first place of all others: (n,)."""
    index: list[Any] = [0] * ids.dim()
    index[axis] = slice(None)
    return ids[tuple(index)]


def compact(ids: Tensor) -> Tensor:
    """The same tensor, expanded over all axes on which it does not vary."""
    size = ids.shape
    for axis in range(ids.dim()):
        if ids.shape[axis] > 1 and (not ids.stride(axis) or bool((ids == ids.narrow(axis, 0, 1)).all())):
            ids = ids.narrow(axis, 0, 1)
    return ids.clone(memory_format=torch.contiguous_format).expand(size)


def core(ids: Tensor) -> Tensor:
    """A compact tensor without what is expanded."""
    for axis in range(ids.dim()):
        ids = ids if ids.stride(axis) else ids.narrow(axis, 0, min(1, ids.shape[axis]))
    return ids


def varying(ids: Tensor) -> tuple[int, ...]:
    """The axes on which a compact tensor varies."""
    return tuple(axis for axis in range(ids.dim()) if ids.stride(axis) and ids.shape[axis] > 1)


# -- what a cut does to them -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Move:
    """A node that has to be written again once channels are gone.

    `kind` is 'size', 'pieces' or 'select', `steps` the node itself, for a shuffle all that lead to it, `axis` where the
    channels of its source lie, and `entries` which of them it takes, those of each piece in turn.
    """

    kind: str
    steps: tuple[fx.Node, ...]
    axis: int
    entries: tuple[Tensor, ...] = ()

    @property
    def source(self) -> fx.Node:
        """What is read, whatever stands there now."""
        return self.steps[0].all_input_nodes[0]


def move_of(node: fx.Node, values: Callable[[fx.Node], Any]) -> Move | None:
    """How a node is to be written again, None if it need not be; ValueError where its channels cannot be followed.

    `values` gives the channel of each entry of a node's tensor, compact, and numbers as they are.
    """
    name, source, result = called(node), node.all_input_nodes[0], values(node)
    ids = values(source)
    if is_joint(node) or not isinstance(ids, Tensor) or not varying(ids):
        return None
    if not isinstance(result, Tensor):
        return _pieces(node, varying(ids), values)
    if len(varying(result)) > 1:  # a step of a shuffle, which nobody else reads
        return None
    if len(varying(ids)) > 1:
        return _select(node, _steps(node, values), values)
    if name in _SIZED or isinstance(module_of(node), nn.Unflatten):
        return _size(node, result)
    if name in _SELECTING or isinstance(module_of(node), nn.ChannelShuffle):
        return _select(node, [node], values)
    return None


def _pieces(node: fx.Node, axes: tuple[int, ...], values: Callable[[fx.Node], Any]) -> Move | None:
    axis = arguments(node)["dim"] % values(node.all_input_nodes[0]).dim()
    if (axes != (axis,) and (axis in axes or len(axes) > 1)) or (called(node) not in _PIECES and axis in axes):
        raise ValueError(f"{node.name} is not followed")
    if axis not in axes:
        return None
    return Move("pieces", (node,), axis, tuple(along(piece, axis) for piece in _places([node], axis, values)))


def _size(node: fx.Node, result: Tensor) -> Move | None:
    first, sizes = _sizes(node, result.dim())
    if not varying(result):
        raise ValueError(f"{node.name} is not followed")
    axis = varying(result)[0]
    if called(node) == "unflatten" or node.op == "call_module":
        return Move("size", (node,), axis) if first <= axis < first + len(sizes) else None
    if len(sizes) != result.dim():
        raise ValueError(f"{node.name} is not followed")
    return Move("size", (node,), axis)


def _select(node: fx.Node, steps: list[fx.Node], values: Callable[[fx.Node], Any]) -> Move | None:
    """The entries that a slice or a shuffle takes; None where it leaves all of them in their places."""
    before, after = values(steps[0].all_input_nodes[0]), values(node)
    axes = varying(before)
    if len(axes) != 1:
        raise ValueError(f"{node.name} is not followed")
    places = compact(_places(steps, axes[0], values))
    if len(varying(places)) != 1:
        raise ValueError(f"{node.name} is not followed")
    taken = along(places, varying(places)[0])
    if len(steps) == 1 and called(node) != "narrow" and torch.equal(taken, torch.arange(before.shape[axes[0]])):
        return None
    alike = [n for axis, n in enumerate(before.shape) if axis not in axes] == [
        n for axis, n in enumerate(after.shape) if axis not in axes
    ]
    if varying(places) != axes or not alike:
        if len(taken) == before.shape[axes[0]] and called(node) == "narrow":
            return None  # of another axis
        raise ValueError(f"{node.name} is not followed")
    return Move("select", tuple(steps), axes[0], (taken,))


def _steps(node: fx.Node, values: Callable[[fx.Node], Any]) -> list[fx.Node]:
    """The steps of a shuffle, from the first that lays channels on two axes to the one that joins these again."""
    steps = [node]
    while len(varying(values(steps[0].all_input_nodes[0]))) > 1:
        source = steps[0].all_input_nodes[0]
        if not is_move(source) or not isinstance(values(source.all_input_nodes[0]), Tensor) or is_joint(source):
            raise ValueError(f"{node.name} is not followed")
        steps.insert(0, source)
    return steps


def _places(steps: list[fx.Node], axis: int, values: Callable[[fx.Node], Any]) -> Any:
    """Where each entry of a result stood on an axis of the source of its first step."""
    source = steps[0].all_input_nodes[0]
    shape = values(source).shape
    numbered = torch.arange(shape[axis]).view([-1 if a == axis else 1 for a in range(len(shape))]).expand(shape)
    places = {source: numbered}
    for step in steps:
        places[step] = run(step, lambda n: places[n] if n in places else values(n))
    return places[steps[-1]]


def _sizes(node: fx.Node, rank: int) -> tuple[int, tuple]:
    """The first axis whose size is asked for, and the sizes, given one by one or as a tuple; () if not told apart."""
    if isinstance(module := module_of(node), nn.Unflatten):
        return _unflattened(module.dim, module.unflattened_size, rank)
    if called(node) == "unflatten":
        given = arguments(node)
        return _unflattened(given["dim"], given["sizes"], rank)
    sizes = tuple(node.args[1:]) or tuple(node.kwargs.get(name) for name in ("shape", "size") if name in node.kwargs)
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        return 0, tuple(sizes[0])
    return 0, sizes


def _unflattened(axis: Any, sizes: Any, rank: int) -> tuple[int, tuple]:
    """Of an axis that becomes several: the first of these, and their sizes."""
    return axis % (rank - len(sizes) + 1), tuple(sizes)


def rewrite(node: fx.Node, move: Move, before: Tensor, after: Tensor, register: Callable[[Tensor], str]) -> None:
    """Write a node again where channels have gone: which entries of its source stay, and of what it gives, as booleans.

    `register` keeps positions beside the weights and says under which name.
    """
    graph, source = node.graph, move.source
    with graph.inserting_before(node):
        if move.kind == "size":
            new = _resized(node, move, after)
        elif move.kind == "pieces":
            counts = [int(before[piece].sum()) for piece in move.entries]
            new = graph.call_function(torch.split, (source, counts, move.axis))
        else:
            taken = move.entries[0]
            index = (before.cumsum(0) - 1)[taken[before[taken]]]
            new = _selected(graph, source, move.axis, index, register)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def _resized(node: fx.Node, move: Move, after: Tensor) -> fx.Node:
    """The view with the sizes of what is left: reshaped, as that may lie apart in memory."""
    graph, given = node.graph, shape(node)
    first, asked = _sizes(node, len(given))
    sizes, axis = list(asked), move.axis - first
    if sizes[axis] != -1 and -1 not in sizes:
        sizes[axis] = -1
    elif sizes[axis] != -1 and isinstance(sizes[axis], fx.Node):
        times = graph.call_function(operator.mul, (sizes[axis], int(after.sum())))
        sizes[axis] = graph.call_function(operator.floordiv, (times, len(after)))
    elif sizes[axis] != -1:
        sizes[axis] = int(after.sum())
    if first or called(node) == "unflatten" or node.op == "call_module":
        return graph.call_method("unflatten", (move.source, first, tuple(sizes)))
    name = "expand" if called(node) == "expand" else "reshape"
    return graph.call_method(name, (move.source, tuple(sizes)))


def _selected(graph: fx.Graph, source: fx.Node, axis: int, index: Tensor, register: Callable[[Tensor], str]) -> fx.Node:
    """The entries at these positions: a slice where they stand side by side."""
    if torch.equal(index, torch.arange(int(index[0]), int(index[0]) + len(index))):
        return graph.call_function(torch.narrow, (source, axis, int(index[0]), len(index)))
    return graph.call_function(torch.index_select, (source, axis, graph.get_attr(register(index))))
