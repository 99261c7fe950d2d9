"""A second way to trace, for code that asks its tensors for their sizes: the example is computed along.

torch.fx records a forward with proxies that know nothing of what they stand for. Here each knows its tensor for the
example: sizes are true integers that remember the node which reads them, so that branches, loops, lengths and unpacking
run as they are written, and what is computed from sizes is recorded for other batches and pictures too. A branch on
sizes is taken as the example takes it, and an integer that passes through a float or `len` is the example's own.
"""

import builtins
import inspect
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property
from torch.utils._pytree import tree_leaves

from ..batch import Example, tensors
from .inplace import operator_name
from .proxies import Proxy, Tracer

VALUES = "it branches on the values of a tensor, which differ from one input to the next"
_READS = {"item", "tolist", "numpy", "equal", "allclose", "is_nonzero", "__bool__", "__int__", "__float__"}


class Size(int):
    """A size of a tensor: the example's number, and the node that reads or computes it."""

    tracer: "ExampleTracer"
    node: fx.Node

    @classmethod
    def of(cls, value: int, tracer: "ExampleTracer", node: fx.Node) -> "Size":
        """The integer that a node gives for the example."""
        size = cls(value)
        size.tracer, size.node = tracer, node
        return size

    def __fx_create_arg__(self, tracer: fx.Tracer) -> Any:
        return self.node if self.tracer is tracer else int(self)

    def __reduce__(self) -> Any:
        return int, (int(self),)


class SizeTuple(tuple):
    """The sizes of a tensor, which can be cut and multiplied as torch.Size can."""

    def __getitem__(self, index: Any) -> Any:
        part = super().__getitem__(index)
        return SizeTuple(part) if isinstance(index, slice) else part

    def numel(self) -> Any:
        """The product of all sizes."""
        product: Any = 1
        for size in self:
            product = product * size
        return product


def _arithmetic(function: Callable, name: str, swapped: bool) -> Callable[[Size, Any], Any]:
    def compute(self: Size, other: Any) -> Any:
        if type(other) is not int and not isinstance(other, Size):
            return getattr(int, name)(self, other)
        return self.tracer.create_proxy("call_function", function, (other, self) if swapped else (self, other), {})

    return compute


def _negated(self: Size) -> Any:
    return self.tracer.create_proxy("call_function", operator.neg, (self,), {})


for _name in ("add", "sub", "mul", "floordiv", "mod"):
    for _swap in (False, True):
        _method = f"__{'r' if _swap else ''}{_name}__"
        setattr(Size, _method, _arithmetic(getattr(operator, _name), _method, _swap))
setattr(Size, "__neg__", _negated)  # noqa: B010


class ExampleProxy(Proxy):
    """A traced tensor that knows its value for the example, but lets only its sizes be read."""

    tracer: "ExampleTracer"

    @property
    def _value(self) -> Tensor:
        return self.tracer.values[self.node]

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._value, name)
        if callable(value):
            return fx.proxy.Attribute(self, name)
        if isinstance(value, (Tensor, torch.Size)):
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return value

    def __len__(self) -> int:
        return len(self._value)

    def __iter__(self) -> Iterator[Any]:
        return iter([operator.getitem(self, index) for index in range(len(self))])

    def __bool__(self) -> bool:
        return bool(self._constant())

    def __int__(self) -> int:
        return int(self._constant())

    def __float__(self) -> float:
        return float(self._constant())

    def __index__(self) -> int:
        return operator.index(self._constant())

    def _constant(self) -> Tensor:
        """The value of what no input changes."""
        if self.node in self.tracer.varying:
            raise TypeError(VALUES)
        return self._value


class ExampleTracer(Tracer):
    """Traces a network on the example, whose tensors are computed along."""

    proxy_buffer_attributes = True

    def __init__(self, example: Example) -> None:
        super().__init__()
        self.example = example
        self.values: dict[fx.Node, Any] = {}
        self.varying: set[fx.Node] = set()  # what depends on the inputs
        self.computing = False

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        """The graph of a network, without nodes that only read sizes nobody uses."""
        with torch.no_grad(), _Recording(self), _known_builtins(root):
            graph = super().trace(root, concrete_args)
        for node in reversed(graph.nodes):
            if not node.users and node.op not in ("placeholder", "output", "call_module") and self._only_reads(node):
                graph.erase_node(node)
        return graph

    def _only_reads(self, node: fx.Node) -> bool:
        value = self.values.get(node)
        return (
            node.op == "get_attr"
            or node.target in (operator.getitem, getattr)
            or (value is not None and next(tensors(value), None) is None)
        )

    def create_args_for_root(self, root_fn: Callable, is_module: bool, concrete_args: Any = None) -> tuple[Any, list]:
        """A placeholder for each input of the example alone; whatever else forward takes has its default."""
        names = list(self.example) if isinstance(self.example, Mapping) else _names(self.root, root_fn, self.example)
        given = self.example.values() if isinstance(self.example, Mapping) else _positional(self.example)
        proxies = []
        for name, value in zip(names, given, strict=True):
            node = self.create_node("placeholder", name, (), {}, name)
            self.values[node] = value
            self.varying.add(node)
            proxies.append(self.proxy(node))
        if isinstance(self.example, Mapping):
            return lambda root, *inputs: root_fn(root, **dict(zip(names, inputs, strict=True))), [self.root, *proxies]
        return root_fn, [self.root, *proxies]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return ExampleProxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *names: Any, **options: Any) -> Any:
        node = super().create_proxy(kind, target, args, kwargs, *names, **options).node
        if any(source in self.varying for source in node.all_input_nodes):
            self.varying.add(node)
            if operator_name(target) in _READS:
                raise TypeError(VALUES)
        self.values[node] = self._compute(node)
        return self._stand_in(node, self.values[node])

    def create_arg(self, a: Any) -> Any:
        """As torch.fx does; outputs that are a dictionary and a record at once stay of their class."""
        if type(a) is ExampleProxy:
            return a.node
        if is_dataclass(a) and isinstance(a, dict):
            return self.create_node("call_function", type(a), (), {k: self.create_arg(v) for k, v in a.items()})
        arg = super().create_arg(tuple(a) if type(a) is SizeTuple else a)
        if isinstance(a, Tensor) and isinstance(arg, fx.Node):  # forward made it, torch.fx lets the network hold it
            self.values[arg] = a
        return arg

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        return forward(*args, **kwargs) if self.computing else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict) -> Any:
        return attr_val if self.computing else super().getattr(attr, attr_val, parameter_proxy_cache)

    def _compute(self, node: fx.Node) -> Any:
        """What a node gives for the example."""
        args: Any = fx.map_arg(node.args, self.values.__getitem__)
        kwargs: Any = fx.map_arg(node.kwargs, self.values.__getitem__)
        self.computing, before = True, self.computing
        try:
            if node.op == "get_attr":
                return operator.attrgetter(str(node.target))(self.root)
            if node.op == "call_module":
                return self.root.get_submodule(str(node.target))(*args, **kwargs)
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            return node.target(*args, **kwargs)  # type: ignore[operator]
        finally:
            self.computing = before

    def _stand_in(self, node: fx.Node, value: Any) -> Any:
        """What forward goes on with: proxies for tensors, integers that remember their node, and plain values."""
        if isinstance(value, Tensor):
            return self.proxy(node)
        if isinstance(value, Mapping):
            return {key: self._part(node, key) for key in value}
        if isinstance(value, (tuple, list)):
            parts = [self._part(node, index) for index in range(len(value))]
            if isinstance(value, torch.Size):
                return SizeTuple(parts)
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        return Size.of(value, self, node) if is_integer else value

    def _part(self, node: fx.Node, key: Any) -> Any:
        return self.create_proxy("call_function", operator.getitem, (fx.Proxy(node, self), key), {})


class _Recording(TorchFunctionMode):
    """Records what torch makes of sizes and proxies, also where no tensor is among them: zeros, arange, full."""

    def __init__(self, tracer: ExampleTracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        traced = any(isinstance(leaf, (Size, fx.Proxy)) for leaf in tree_leaves([_plain(args), _plain(kwargs)]))
        if self.tracer.computing or not traced:
            return func(*args, **kwargs)
        if is_tensor_method_or_property(func):
            return self.tracer.create_proxy("call_method", func.__name__, args, kwargs)
        return self.tracer.create_proxy("call_function", func, args, kwargs)


def _plain(tree: Any) -> Any:
    """Arguments with slices and shapes as tuples, for a search through them."""
    if isinstance(tree, (tuple, list)):
        return [_plain(value) for value in tree]
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    return [tree.start, tree.stop, tree.step] if isinstance(tree, slice) else tree


@contextmanager
def _known_builtins(root: nn.Module) -> Iterator[None]:
    """Let `len` and `isinstance` know proxies, in the files that the network's modules are written in."""
    files = {kind.__module__ for module in root.modules() for kind in type(module).__mro__}
    spaces = [vars(sys.modules[name]) for name in files if name.partition(".")[0] != "torch" and name in sys.modules]
    changed = {"len": _len, "isinstance": _isinstance}
    spaces = [space for space in spaces if space is not vars(builtins) and not changed.keys() & space.keys()]
    for space in spaces:
        space.update(changed)
    try:
        yield
    finally:
        for space in spaces:
            for name in changed:
                del space[name]


def _len(x: Any) -> Any:
    return x.shape[0] if type(x) is ExampleProxy else len(x)


def _isinstance(x: Any, kinds: Any) -> bool:
    return isinstance(x, kinds) or (type(x) is ExampleProxy and issubclass(Tensor, kinds))


def _names(root: nn.Module, function: Callable, example: Any) -> list[str]:
    """The names of the inputs that an example gives by position."""
    bound = inspect.signature(function).bind(root, *_positional(example)).arguments
    names: list[str] = []
    for name, value in list(bound.items())[1:]:
        several = inspect.signature(function).parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
        names += [f"{name}_{k}" for k in range(len(value))] if several else [name]
    return names


def _positional(example: Any) -> tuple:
    return example if isinstance(example, tuple) else (example,)
