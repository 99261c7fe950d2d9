"""An ONNX graph as torch calls in the making: of each tensor its shapes, or its numbers where sizes alone decide them.

A file is read for a few batch sizes at once, the runs. What is the same in all of them is a constant; an integer that
grows with the batch becomes arithmetic on the length of the first input's first axis; all else is a call of torch that
the graph makes, which the runs make on tensors without storage (device 'meta').
"""

import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from ..errors import first_line

FEW = 64  # integers of one tensor that may grow with the batch: shapes have no more


class UnreadError(Exception):
    """Why a node cannot be read."""


@dataclass(frozen=True, eq=False)
class FreeSize:
    """An integer, as it is in each run."""

    runs: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class OnnxValue:
    """A tensor of a file: its numbers in each run where it has no node, else tensors without storage."""

    name: str
    runs: tuple[Tensor, ...]
    node: fx.Node | None = None

    @property
    def rank(self) -> int:
        return self.runs[0].dim()

    @property
    def shape(self) -> list[int | FreeSize]:
        """Its lengths, those that grow with the batch as sizes."""
        return [agreed(lengths) for lengths in zip(*(tuple(x.shape) for x in self.runs), strict=True)]

    @property
    def key(self) -> int:
        """What two constants share that are the same tensor."""
        return id(self.runs[0])

    @property
    def is_constant(self) -> bool:
        return self.node is None and all(x is self.runs[0] or _is_same(x, self.runs[0]) for x in self.runs)

    def length(self, axis: int) -> int:
        """The length of an axis, which must not grow with the batch."""
        return fixed(self.shape[axis], f"the length of axis {axis} of {self.name}")


def _is_same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def agreed(runs: tuple[int, ...]) -> int | FreeSize:
    """A number that is the same in all runs as such."""
    return int(runs[0]) if len(set(runs)) == 1 else FreeSize(tuple(map(int, runs)))


def fixed(value: int | FreeSize, what: str) -> int:
    """A number that is the same in all runs; UnreadError for another."""
    if isinstance(value, FreeSize):
        raise UnreadError(f"needs {what}, which is free: give an example to read the file for")
    return value


def numbers(value: OnnxValue) -> list[int | FreeSize]:
    """The integers of a tensor that sizes alone decide."""
    if value.node is not None:
        raise UnreadError(f"takes {value.name} from the input's values: it must be a constant")
    if len({x.numel() for x in value.runs}) > 1:
        raise UnreadError(f"takes {value.name}, whose length grows with the batch")
    return [agreed(column) for column in zip(*(x.flatten().tolist() for x in value.runs), strict=True)]


def integers(value: OnnxValue) -> list[int]:
    """The integers of a tensor that is the same in all runs."""
    return [fixed(number, value.name) for number in numbers(value)]


def constant(value: OnnxValue) -> Tensor:
    """The tensor that is the same in all runs; UnreadError for another."""
    if not value.is_constant:
        raise UnreadError(f"takes {value.name} from the input: it must be a constant")
    return value.runs[0]


def scalar(value: OnnxValue) -> float | int:
    """The one number of a constant."""
    held = constant(value)
    if held.numel() != 1:
        raise UnreadError(f"takes one number for {value.name}, not {held.numel()}")
    return held.item()


class OnnxReader:
    """The graph as far as it is read: `values` by their names in the file, `net` the layers and constants."""

    def __init__(self, opset: int, count: int) -> None:
        self.opset, self.count = opset, count  # of runs
        self.net, self.graph = nn.Module(), fx.Graph()
        self.values: dict[str, OnnxValue] = {}
        self.layers: dict[tuple, str] = {}
        self.parameters: dict[int, nn.Parameter] = {}
        self.attributes: dict[int, fx.Node] = {}
        self.tensors: list[Tensor] = []  # whose addresses are keys of these two
        self.sizes: dict[tuple[int, int], fx.Node] = {}
        self.sums: dict[str, str] = {}  # what is added to a value that nothing else reads
        self.biased: set[str] = set()  # sums that are in a layer already
        self.coded: dict[str, tuple[OnnxValue, tuple]] = {}  # what QuantizeLinear gives: of which tensor, on which grid

    # -- calls ---------------------------------------------------------------------------------------------------------

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        """What a function, or a method by name, gives; several outputs as a list. Constants are computed at once."""
        values = [leaf for leaf in _leaves((args, kwargs)) if isinstance(leaf, OnnxValue)]
        is_known = all(value.node is None for value in values)
        runs = self._tried(target, args, kwargs, is_known)
        if is_known and _is_kept(runs):
            return _valued("", runs, None)
        kind = "call_method" if isinstance(target, str) else "call_function"
        return self._emitted(kind, target, args, kwargs, runs)

    def alike(self, target: Any, x: OnnxValue, *args: Any) -> OnnxValue:
        """What a function gives that leaves shapes as they are, and that torch has no form of without storage."""
        return self._emitted("call_function", target, (x, *args), {}, list(x.runs))

    def layer(self, names: tuple[str, ...], key: tuple, build: Callable[[], nn.Module], x: OnnxValue) -> OnnxValue:
        """What a layer gives for x; it is named after its weight or its node, and one weight makes one layer."""
        if key not in self.layers:
            self.layers[key] = self._free(layer_name(*names))
            self._set(self.layers[key], build())
        name = self.layers[key]
        module = self.net.get_submodule(name)

        def on_meta(given: Tensor) -> Tensor:
            held = {n: p.to("meta") for n, p in (*module.named_parameters(), *module.named_buffers())}
            return torch.func.functional_call(module.eval(), held, (given,))

        return self._emitted("call_module", name, (x,), {}, self._tried(on_meta, (x,), {}, False))

    def _tried(self, target: Any, args: tuple, kwargs: dict, is_known: bool) -> list[Any]:
        """What the call gives in each run; UnreadError where torch refuses it."""
        leaves = list(_leaves((args, kwargs)))
        is_alike = is_known and not any(isinstance(leaf, FreeSize) for leaf in leaves)
        is_alike &= all(leaf.is_constant for leaf in leaves if isinstance(leaf, OnnxValue))
        results = []
        for k in range(1 if is_alike else self.count):

            def at(leaf: Any, k: int = k) -> Any:
                if isinstance(leaf, OnnxValue):
                    return leaf.runs[k] if is_known else leaf.runs[k].to("meta")
                return leaf.runs[k] if isinstance(leaf, FreeSize) else leaf

            given, named = map_aggregate(args, at), map_aggregate(kwargs, at)
            function = getattr(torch.Tensor, target) if isinstance(target, str) else target
            try:
                with torch.no_grad():
                    results.append(function(*given, **named))
            except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
                raise UnreadError(first_line(error)) from error
        return results * self.count if is_alike else results

    def _emitted(self, kind: str, target: Any, args: tuple, kwargs: dict, runs: list[Any]) -> Any:
        """The call as a node of the graph."""
        given, named = map_aggregate(args, self._argument), map_aggregate(kwargs, self._argument)
        node = self.graph.create_node(kind, target, given, named)
        node.meta["rank"] = runs[0].dim() if isinstance(runs[0], Tensor) else None
        return _valued(node.name, runs, node)

    def _argument(self, leaf: Any) -> Any:
        if isinstance(leaf, FreeSize):
            return self._size(leaf)
        if not isinstance(leaf, OnnxValue):
            return leaf
        return leaf.node or self.held(leaf)

    # -- what the graph holds ------------------------------------------------------------------------------------------

    def held(self, value: OnnxValue) -> fx.Node:
        """A constant as an attribute: a parameter where it is one of the file's own of real numbers, else a buffer."""
        tensor = constant(value)
        if id(tensor) not in self.attributes:
            name = self._free(".".join(_parts(value.name or "constant")))
            is_learned = tensor.is_floating_point() and tensor.dim() > 0 and value.name in self.values
            self._set(name, self.parameter(value) if is_learned else tensor)
            self.attributes[id(tensor)] = self.graph.get_attr(name)
            self.tensors.append(tensor)
        return self.attributes[id(tensor)]

    def parameter(self, value: OnnxValue) -> nn.Parameter:
        """A constant as a parameter, the same one wherever the file reads it."""
        tensor = constant(value)
        if id(tensor) not in self.parameters:
            self.parameters[id(tensor)] = nn.Parameter(tensor.clone())
            self.tensors.append(tensor)
        return self.parameters[id(tensor)]

    def _size(self, size: FreeSize) -> fx.Node:
        """A number that grows with the batch, from the length of the first input's first axis."""
        batches = [x.shape[0] for x in next(iter(self.values.values())).runs]
        times = (size.runs[1] - size.runs[0]) // (batches[1] - batches[0])
        more = size.runs[0] - times * batches[0]
        if any(times * n + more != at for n, at in zip(batches, size.runs, strict=True)):
            raise UnreadError("computes with lengths of the input that are free: give an example to read the file for")
        if (times, more) not in self.sizes:
            first = next(node for node in self.graph.nodes if node.op == "placeholder")
            node = self.sizes.get((1, 0)) or self.graph.call_method("size", (first, 0))
            self.sizes[1, 0] = node
            node = node if times == 1 else self.graph.call_function(operator.mul, (node, times))
            self.sizes[times, more] = self.graph.call_function(operator.add, (node, more)) if more else node
        return self.sizes[times, more]

    def _free(self, name: str) -> str:
        """The name, or one like it, under which the network holds nothing, nor holds something whose part it were."""
        if type(self._holder(name)) not in (nn.Module, type(None)):  # a layer or a tensor, which can hold nothing else
            name = name.replace(".", "_")
        free, k = name, 1
        while hasattr(self._holder(free), free.rpartition(".")[2]):
            k += 1
            free = f"{name}_{k}"
        return free

    def _holder(self, name: str) -> Any:
        """What a dotted name stands under, or the first on the way that is no plain module; None if there is none."""
        holder: Any = self.net
        for part in name.split(".")[:-1]:
            holder = getattr(holder, part, None)
            if type(holder) is not nn.Module:
                break
        return holder

    def _set(self, name: str, held: nn.Module | Tensor) -> None:
        *path, last = name.split(".")
        holder = self.net
        for part in path:
            if not hasattr(holder, part):
                holder.add_module(part, nn.Module())
            holder = getattr(holder, part)
        if isinstance(held, nn.Module):
            holder.add_module(last, held)
        elif isinstance(held, nn.Parameter):
            holder.register_parameter(last, held)
        else:
            holder.register_buffer(last, held)


def layer_name(*called: str) -> str:
    """'features.0' of the weight or bias 'features.0.weight', else after the node: '/layer1/layer1.0/conv1/Conv'."""
    *parts, node = called
    for part in parts:
        if part.endswith((".weight", ".bias")):
            return ".".join(_parts(part.rpartition(".")[0]))
    kept: list[str] = []
    for part in node.strip("/").split("/"):
        if kept and part.startswith(f"{kept[-1]}."):
            kept.pop()
        kept.append(part)
    return ".".join(_parts(".".join(kept[:-1] or kept) or "layer"))


def _parts(name: str) -> list[str]:
    """A name as attributes of modules within modules."""
    parts = [re.sub(r"\W", "_", part) for part in name.split(".")]
    reserved = dir(nn.Module())
    return [f"{part}_" if part in reserved or not part else part for part in parts]


def identifier(name: str) -> str:
    """A name as Python writes one."""
    plain = re.sub(r"\W", "_", name)
    return plain if plain.isidentifier() else f"_{plain}"


def _leaves(tree: Any) -> Iterator[Any]:
    leaves: list[Any] = []
    map_aggregate(tree, leaves.append)
    return iter(leaves)


def _is_kept(runs: list[Any]) -> bool:
    """Whether what constants give is one too, or a few integers of one shape."""
    if not all(isinstance(x, Tensor) for x in runs):
        return all(_is_kept(list(parts)) for parts in zip(*runs, strict=True))
    if all(x is runs[0] for x in runs) or all(_is_same(x, runs[0]) for x in runs):
        return True
    return len({x.shape for x in runs}) == 1 and runs[0].numel() <= FEW


def _valued(name: str, runs: list[Any], node: fx.Node | None) -> Any:
    """The outputs of the runs as a value, or as a list of them."""
    if isinstance(runs[0], Tensor):
        return OnnxValue(name, tuple(runs if node is None else (x.to("meta") for x in runs)), node)
    parts = []
    for k, part in enumerate(zip(*runs, strict=True)):
        item = None if node is None else node.graph.call_function(operator.getitem, (node, k))
        parts.append(_valued(f"{name}.{k}", list(part), item))
    return parts
