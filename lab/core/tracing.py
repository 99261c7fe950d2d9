"""A network as a graph: a traced copy that can be cut, each node with the shape of what it gives."""

import operator
from collections.abc import Callable
from contextlib import redirect_stderr
from copy import deepcopy
from io import StringIO

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils import parametrize

from .task import evaluating

_PLAIN = {operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul}


def trace(model: nn.Module, example: torch.Tensor) -> fx.GraphModule:
    """A traced copy of the model in eval mode, every node with its shape; the model itself is left as it is.

    Parametrizations are computed once and for all in the copy, and nothing in it works in place.
    """
    copy = _plain_copy(model).eval()
    try:
        graph = fx.symbolic_trace(copy)
    except Exception as error:  # a tracer meets whatever the user's forward raises
        raise ValueError(
            f"{type(model).__name__} cannot be traced ({str(error).splitlines()[0]}): its forward must not branch on "
            "values or sizes of tensors; move such code out of forward"
        ) from error
    _out_of_place(graph)
    propagate(graph, example)
    return graph


def _plain_copy(model: nn.Module) -> nn.Module:
    """A copy whose weights are plain parameters."""
    for name, module in model.named_modules():
        if hasattr(module, "weight_g") or hasattr(module, "weight_orig"):
            remedy = "call torch.nn.utils.remove_weight_norm, or prune.remove, first"
            raise ValueError(f"{name or type(model).__name__} computes its weight in a hook: {remedy}")
    try:
        copy = deepcopy(model)
    except RuntimeError as error:
        raise ValueError(f"{type(model).__name__} cannot be copied ({str(error).splitlines()[0]})") from error
    for name, module in list(copy.named_modules()):
        if parametrize.is_parametrized(module) and name:
            copy.set_submodule(name, _unparametrized(module))
    return copy


def _unparametrized(module: nn.Module) -> nn.Module:
    """The module with its computed weights as plain parameters.

    `remove_parametrizations` would not do: it changes the class, which the user's own module shares with its copy.
    """
    kind = type(module).__bases__[0]
    plain: nn.Module = object.__new__(kind)
    plain.__dict__.update(module.__dict__)
    plain._parameters = dict(module._parameters)
    plain._modules = {name: child for name, child in module._modules.items() if name != "parametrizations"}
    for name in module.parametrizations:
        plain.register_parameter(name, nn.Parameter(getattr(module, name).detach().clone()))
    return plain


def _out_of_place(graph: fx.GraphModule) -> None:
    """Turn in-place operations into plain ones: once a graph is cut, they could overwrite what is still needed."""
    for node in graph.graph.nodes:
        module = module_of(node)
        inplace = getattr(module, "inplace", False) or node.kwargs.get("inplace", False)
        method = node.op == "call_method" and node.target.endswith("_") and not node.target.endswith("__")
        if (inplace or method) and not node.users:
            raise ValueError(f"{node.name} works in place and its result is not used: write x = {node.name}(x)")
        if getattr(module, "inplace", False):
            module.inplace = False
        if "inplace" in node.kwargs:
            node.kwargs = {**node.kwargs, "inplace": False}
        if method:
            node.target = node.target[:-1]
        node.target = _PLAIN.get(node.target, node.target) if node.op == "call_function" else node.target
    graph.recompile()


def propagate(graph: fx.GraphModule, example: torch.Tensor) -> None:
    """Note each node's output shape in `node.meta`; a shape that does not fit is a one-line ValueError."""
    place = next(graph.parameters(), example).device
    try:
        with torch.no_grad(), evaluating(graph), redirect_stderr(StringIO()):  # it prints a traceback of its own
            ShapeProp(graph).propagate(example.to(place))
    except RuntimeError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ValueError(f"the network does not run on an input of shape {tuple(example.shape)} ({reason})") from error


def shape(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's output, () where it is no tensor."""
    meta = node.meta.get("tensor_meta")
    return tuple(getattr(meta, "shape", ()))


def width(node: fx.Node) -> int:
    """The length of a node's channel axis."""
    return shape(node)[1] if len(shape(node)) > 1 else 0


def module_of(node: fx.Node) -> nn.Module | None:
    """The module that a node calls, if it calls one."""
    return node.graph.owning_module.get_submodule(str(node.target)) if node.op == "call_module" else None


def ancestors(node: fx.Node) -> set[fx.Node]:
    """A node and everything that it is computed from."""
    return _reached(node, lambda present: present.all_input_nodes)


def descendants(node: fx.Node) -> set[fx.Node]:
    """A node and everything that is computed from it."""
    return _reached(node, lambda present: list(present.users))


def _reached(node: fx.Node, following: Callable[[fx.Node], list[fx.Node]]) -> set[fx.Node]:
    seen: set[fx.Node] = set()
    todo = [node]
    while todo:
        present = todo.pop()
        if present not in seen:
            seen.add(present)
            todo += following(present)
    return seen
