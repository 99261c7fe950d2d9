"""What a tracer takes for one node, or for a function of weights, as plain operations and layers.

A function that its author marked as one node (`torch.fx.wrap`) is traced through, with all sizes known that do not grow
with the batch. A function that is given a layer's weights (`F.linear(x, self.qkv.weight, self.qkv.bias)`) becomes a
call of that layer.
"""

import operator
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import GraphAppendingTracer
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from ..task import evaluating
from .inplace import operator_name

_DRAWN = {"stochastic_depth", "drop_path"}  # what differs while training stays a node
_SIZES = {getattr, "size", "dim", "ndimension", "numel", "is_floating_point"}  # numbers that no value decides
_MADE = {"new_zeros", "new_ones", "new_full"}  # tensors that depend on no input


# -- functions traced through ------------------------------------------------------------------------------------------


def open_functions(graph: fx.GraphModule, example: tuple) -> None:
    """Trace through each function that is none of torch's; one that can't be, for sizes that vary, stays a node.

    `example` holds the graph's inputs by position. Which sizes grow with the batch is seen in two runs, on the example
    and on two of it.
    """
    nodes = [node for node in graph.graph.nodes if _is_foreign(node)]
    if not nodes:
        return
    twice = tuple(torch.cat([x, x]) if isinstance(x, Tensor) else x for x in example)
    runs = [_Values(graph, nodes) for _ in range(2)]
    try:
        with torch.no_grad(), evaluating(graph):
            for values, inputs in zip(runs, (example, twice), strict=True):
                values.run(*inputs)
    except Exception:  # one size of batch alone
        return
    for node in nodes:
        _open(graph, node, [values.seen for values in runs])
    graph.recompile()


def _is_foreign(node: fx.Node) -> bool:
    if node.op != "call_function" or not isinstance(node.target, FunctionType):
        return False
    return node.target.__module__.partition(".")[0] != "torch" and operator_name(node.target) not in _DRAWN


class _Values(fx.Interpreter):
    """Runs a graph and notes what some nodes are given."""

    def __init__(self, graph: fx.GraphModule, nodes: list[fx.Node]) -> None:
        super().__init__(graph)
        self.nodes = set(nodes)
        self.seen: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n in self.nodes:
            self.seen |= {source: self.env[source] for source in n.all_input_nodes}
        return super().run_node(n)


def _open(graph: fx.GraphModule, node: fx.Node, seen: list[dict[fx.Node, Any]]) -> None:
    """Put what a function computes in the place of its node."""
    tracer = _KnownTracer(graph, seen)
    before = set(graph.graph.nodes)
    args, kwargs = (_mutable(given, tracer) for given in (node.args, node.kwargs))
    with graph.graph.inserting_before(node), torch.no_grad():
        try:
            result = node.target(*args, **kwargs)  # type: ignore[operator]
        except Exception:  # it asks for what is not known
            for new in reversed([new for new in graph.graph.nodes if new not in before]):
                graph.graph.erase_node(new)
            return
    _replace(node, result)
    if not node.users:
        graph.graph.erase_node(node)


def _replace(node: fx.Node, result: Any) -> None:
    """Let the readers of a node read what its function gives: a tensor, several, or a plain value."""
    if isinstance(result, fx.Proxy):
        node.replace_all_uses_with(result.node)
    elif isinstance(result, tuple) and all(isinstance(part, fx.Proxy) for part in result):
        for user in [user for user in node.users if user.target is operator.getitem]:
            user.replace_all_uses_with(result[user.args[1]].node)  # type: ignore[index]
            user.graph.erase_node(user)
    elif result is None or isinstance(result, (bool, int, float)):
        for user in list(node.users):
            args, kwargs = fx.map_arg((user.args, user.kwargs), lambda n: result if n is node else n)
            user.args, user.kwargs = args, kwargs


def _mutable(value: Any, tracer: "_KnownTracer") -> Any:
    """Arguments as their function expects them: lists that can be changed, and traced values."""
    if isinstance(value, fx.Node):
        return tracer.proxy(value)
    if isinstance(value, dict):
        return {key: _mutable(part, tracer) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [_mutable(part, tracer) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    return value


class _KnownTracer(GraphAppendingTracer):
    """A tracer that runs what it records, twice: numbers that are the same in both runs are plain numbers."""

    def __init__(self, graph: fx.GraphModule, seen: list[dict[fx.Node, Any]]) -> None:
        super().__init__(graph.graph)
        self.module, self.seen = graph, seen

    def create_arg(self, a: Any) -> Any:
        if not isinstance(a, Tensor):
            return super().create_arg(a)
        count = sum(name.startswith("_tensor_constant") for name, _ in self.module.named_buffers())
        self.module.register_buffer(f"_tensor_constant{count}_", a)
        node = self.graph.get_attr(f"_tensor_constant{count}_")
        for values in self.seen:
            values[node] = a
        return node

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Known(node, self)

    def create_proxy(self, kind: str, target: Any, args: tuple, kwargs: dict, *rest: Any, **options: Any) -> Any:
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        for values in self.seen:
            values[proxy.node] = _computed(proxy.node, values)
        first, second = self.values(proxy)
        sources = [self.seen[0][source] for source in proxy.node.all_input_nodes]
        if not _has_tensor(first) and _has_tensor(sources) and target not in _SIZES:
            raise TypeError(f"{target} makes a number of a tensor")
        if isinstance(first, (tuple, list)):
            parts = range(self.length(proxy))
            return tuple(self.create_proxy("call_function", operator.getitem, (proxy, part), {}) for part in parts)
        is_made = target in _MADE and first.shape == second.shape
        return first if is_made or (not isinstance(first, Tensor) and first == second) else proxy

    def values(self, proxy: fx.Proxy) -> list[Any]:
        return [values[proxy.node] for values in self.seen]

    def length(self, proxy: fx.Proxy) -> int:
        """How many parts a value has; TypeError where their number grows with the batch."""
        first, second = map(len, self.values(proxy))
        if first != second:
            raise TypeError("it counts the samples of a batch")
        return first

    def to_bool(self, obj: fx.Proxy) -> bool:
        first, second = self.values(obj)
        same = not isinstance(first, Tensor) and bool(first) == bool(second)
        return bool(first) if same else super().to_bool(obj)

    def iter(self, obj: fx.Proxy) -> Any:
        parts = range(self.length(obj))
        return iter([self.create_proxy("call_function", operator.getitem, (obj, i), {}) for i in parts])


class _Known(fx.Proxy):
    """A traced value whose sizes are known."""

    def __getattr__(self, name: str) -> Any:
        tracer: Any = self.tracer
        if callable(getattr(tracer.values(self)[0], name)):
            return super().__getattr__(name)
        return tracer.create_proxy("call_function", getattr, (self, name), {})

    def __len__(self) -> int:
        tracer: Any = self.tracer
        return int(tracer.length(self))

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


def _has_tensor(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))


def _computed(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


# -- functions of weights ----------------------------------------------------------------------------------------------

_CONV = "input weight bias stride padding dilation groups"
_NORM = "input running_mean running_var weight bias training momentum eps"
_FUNCTIONS: dict[Any, str] = {
    F.linear: "input weight bias",
    F.conv1d: _CONV,
    F.conv2d: _CONV,
    F.conv3d: _CONV,
    F.batch_norm: _NORM,
    F.layer_norm: "input normalized_shape weight bias eps",
    F.group_norm: "input num_groups weight bias eps",
}
_TENSORS = ("weight", "bias", "running_mean", "running_var")
_CONVS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
_BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def call_layers(graph: fx.GraphModule) -> None:
    """Let each function of one module's weights be a call of that module, as the plain layer that computes it.

    Nothing in the graph may work in place. Weights and biases that are computed from parameters alone are computed once
    and for all.
    """
    for node in list(graph.graph.nodes):
        _hold_computed(graph, node)
    held: dict[str, list[fx.Node]] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            held.setdefault(str(node.target).rpartition(".")[0], []).append(node)
    called = {str(node.target) for node in graph.graph.nodes if node.op == "call_module"}
    for name, nodes in held.items():
        readers = {user for node in nodes for user in node.users}
        if name and name not in called and len(readers) == 1:
            _call_layer(graph, name, readers.pop())
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _hold_computed(graph: fx.GraphModule, node: fx.Node) -> None:
    """Where a function of a module's weight reads a bias that is computed from parameters, let the module hold it."""
    if node.op != "call_function" or node.target not in _FUNCTIONS:
        return
    given = dict(zip(_FUNCTIONS[node.target].split(), node.args, strict=False)) | node.kwargs
    weight, bias = given.get("weight"), given.get("bias")
    if not isinstance(weight, fx.Node) or weight.op != "get_attr" or not isinstance(bias, fx.Node):
        return
    name, _, part = str(weight.target).rpartition(".")
    made_by = _made_by(bias)
    if part != "weight" or bias.op == "get_attr" or not _is_all_of(graph, made_by, node):
        return
    makers = [n for n in graph.graph.nodes if n in made_by]
    values = fx.Interpreter(graph)
    with torch.no_grad():
        for maker in makers:
            values.env[maker] = values.run_node(maker)
    held = {str(n.target): values.env[n] for n in makers if n.op == "get_attr"}
    learns = any(tensor.requires_grad for tensor in held.values())
    graph.get_submodule(name).register_parameter("bias", nn.Parameter(values.env[bias].clone(), requires_grad=learns))
    with graph.graph.inserting_before(node):
        node.replace_input_with(bias, graph.graph.get_attr(f"{name}.bias"))
    for maker in reversed(makers):
        graph.graph.erase_node(maker)
    for target in held.keys() - {f"{name}.bias"}:
        module, _, attribute = target.rpartition(".")
        delattr(graph.get_submodule(module), attribute)


def _is_all_of(graph: fx.GraphModule, made_by: set[fx.Node], reader: fx.Node) -> bool:
    """Whether these nodes compute from parameters alone, which nobody else reads, what nobody but `reader` does."""
    sources = {n for n in made_by if not n.all_input_nodes}
    names = {n.target for n in sources}
    elsewhere = any(n.op == "get_attr" and n not in made_by and n.target in names for n in graph.graph.nodes)
    is_read = any(user not in made_by and user is not reader for n in made_by for user in n.users)
    return all(n.op == "get_attr" for n in sources) and not elsewhere and not is_read


def _made_by(node: fx.Node) -> set[fx.Node]:
    """A node and all that it is computed from."""
    made_by, todo = {node}, [node]
    while todo:
        new = set(todo.pop().all_input_nodes) - made_by
        made_by |= new
        todo += new
    return made_by


def _call_layer(graph: fx.GraphModule, name: str, node: fx.Node) -> None:
    if node.op != "call_function" or node.target not in _FUNCTIONS:
        return
    given: dict[str, Any] = dict(zip(_FUNCTIONS[node.target].split(), node.args, strict=False)) | node.kwargs
    source = given.pop("input")
    nodes = {part: given.pop(part) for part in _TENSORS if given.get(part) is not None}
    if any(n.op != "get_attr" or str(n.target) != f"{name}.{part}" for part, n in nodes.items()):
        return
    if _nodes_in(given):  # settings that are computed
        return
    tensors = {part: getattr(graph.get_submodule(name), part) for part in nodes}
    layer = _layer(node, {key: value for key, value in given.items() if key not in _TENSORS}, tensors)
    if layer is None:
        return
    for part, child in graph.get_submodule(name).named_children():
        layer.add_module(part, child)
    graph.set_submodule(name, layer)
    with graph.graph.inserting_before(node):
        new = graph.graph.call_module(name, (source,))
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.graph.erase_node(node)


def _nodes_in(value: Any) -> list[fx.Node]:
    nodes: list[fx.Node] = []
    fx.map_arg(value, nodes.append)
    return nodes


def _layer(node: fx.Node, given: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module | None:
    """The layer that a function with these settings and weights is; None where torch has none."""
    weight, bias, rank = tensors.get("weight"), tensors.get("bias"), len(node.meta["tensor_meta"].shape)
    options: dict[str, Any] = {"device": "meta"}
    layer: nn.Module
    if node.target is F.batch_norm:
        if given.pop("training", False) or "running_mean" not in tensors:
            return None
        options["affine"] = weight is not None
        layer = _BATCH_NORMS[rank](len(tensors["running_mean"]), **given, **options)
        layer.num_batches_tracked = torch.tensor(0, device=tensors["running_mean"].device)
    elif weight is None:
        return None
    elif node.target is F.linear:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, **options)
    elif node.target is F.layer_norm:
        layer = nn.LayerNorm(bias=bias is not None, **given, **options)
    elif node.target is F.group_norm:
        layer = nn.GroupNorm(num_channels=len(weight), **given, **options)
    else:
        size: Any = tuple(weight.shape[2:])
        inside = weight.shape[1] * given.get("groups", 1)
        layer = _CONVS[weight.dim()](inside, len(weight), size, bias=bias is not None, **given, **options)
    for part, tensor in tensors.items():
        setattr(layer, part, tensor)
    return layer.eval() if all(p.device.type != "meta" for p in layer.parameters()) else None
