"""A network as a graph: a traced copy that can be cut, each node with the shape of what it gives."""

import operator
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr
from copy import deepcopy
from io import StringIO
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves

from ..errors import first_line
from ..task import evaluating
from ..training import seeded
from .attention import drop_unused, plain_attention
from .inplace import OPERATORS, OWN, Shapes, out_of_place
from .opened import call_layers, open_functions


def trace(model: nn.Module, example: torch.Tensor) -> fx.GraphModule:
    """A traced copy of the model in eval mode, every node with its shape; the model itself is left as it is.

    Parametrizations are computed once and for all in the copy, and nothing in it works in place: once a graph is cut,
    that could overwrite what is still needed. Its outputs and gradients are the model's; a model whose outputs it
    cannot give is a one-line ValueError. Hooks stay behind. All its weights learn, whatever `requires_grad` the
    model's have: a network that was loaded for inference is compressed like any other.
    """
    copy = _plain_copy(model).eval()
    plain_attention(copy, example)
    for parameter in copy.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    versions = [(name, tensor, tensor._version) for name, tensor in _named_tensors(copy)]
    try:
        graph = fx.GraphModule(copy, _Tracer().trace(copy), type(model).__name__)
    except Exception as error:  # a tracer meets whatever the user's forward raises
        raise ValueError(
            f"{type(model).__name__} cannot be traced ({first_line(error)}): its forward must not branch on "
            "values or sizes of tensors; move such code out of forward"
        ) from error
    traced = dict(_named_tensors(copy))
    for name, tensor, version in versions:
        if traced.get(name) is not tensor or tensor._version != version:
            raise ValueError(f"{type(model).__name__} changes its own {name} in forward: {OWN}")
    drop_unused(graph)
    open_functions(graph, example)
    propagate(graph, example)
    call_layers(graph)
    out_of_place(graph, example.to(next(graph.parameters(), example).device))
    propagate(graph, example)
    if not _outputs_match(graph, model, example):
        raise ValueError(
            f"{type(model).__name__} answers otherwise than its traced copy, which leaves out hooks, autocast, "
            "arguments left to their defaults and numbers drawn in forward: write what it computes as plain operations"
        )
    return graph


def _outputs_match(graph: nn.Module, model: nn.Module, example: torch.Tensor) -> bool:
    """Whether two networks give equal outputs for an example, up to rounding."""
    outputs = []
    for net in (graph, model):
        device = next(net.parameters(), example).device
        with torch.no_grad(), evaluating(net), seeded(0):
            leaves = tree_leaves(net(example.to(device, copy=True)))  # a first layer in place writes into it
        outputs.append([leaf for leaf in leaves if isinstance(leaf, torch.Tensor)])
    return len(outputs[0]) == len(outputs[1]) and all(map(_is_close, *outputs))


def _is_close(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if b.is_meta:  # shapes alone, no numbers
        return True
    size = float(b.abs().nan_to_num(0, 0).max()) if b.numel() else 0.0
    return torch.allclose(a, b.to(a.device), rtol=1e-4, atol=1e-4 * size, equal_nan=True)


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


class _Proxy(fx.Proxy):
    """A traced value that also records `x += y` and `x[i] = y`, where torch.fx would see x = x + y, or fail."""

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("tracer", "node"):
            raise TypeError(f"it sets .{name} of a tensor")
        super().__setattr__(name, value)


def _record(function: Callable) -> Callable[[_Proxy, Any], fx.Proxy]:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _function in OPERATORS:
    setattr(_Proxy, f"__{_function.__name__}__", _record(_function))


class _Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """torch.ao's layers compute more than the layers that they are kinds of: a ReLU, a rounded weight."""
        is_plain = not type(m).__module__.startswith("torch.ao.")
        return is_plain and super().is_leaf_module(m, module_qualified_name)


def _plain_copy(model: nn.Module) -> nn.Module:
    """A copy whose weights are plain parameters, without hooks."""
    for name, module in model.named_modules():
        called = name or type(model).__name__
        if inside := _wrapped(module):
            raise ValueError(f"{called} is wrapped around a network: give its .{inside}")
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"{called} is TorchScript, which is not traced: give the nn.Module it was made from")
        if part := _computed(module):
            remedy = "call torch.nn.utils.remove_weight_norm, or prune.remove, first"
            raise ValueError(f"{called} computes its {part} in a hook: {remedy}")
    try:
        copy = deepcopy(model)
    except RuntimeError as error:
        raise ValueError(f"{type(model).__name__} cannot be copied ({first_line(error)})") from error
    for module in copy.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    for name, module in list(copy.named_modules()):
        if parametrize.is_parametrized(module) and name:
            copy.set_submodule(name, _unparametrized(module))
    return copy


def _wrapped(module: nn.Module) -> str:
    """Where a wrapper of a network has it, '' for a module that is none."""
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return "module"
    return "_orig_mod" if "_orig_mod" in module._modules else ""  # torch.compile's


def _computed(module: nn.Module) -> str:
    """The weight or bias that a hook computes from other parameters, as older norms and pruning do; '' if none is."""
    ends = [name.rpartition("_") for name in module._parameters]
    return next((part for part, _, end in ends if end in ("g", "orig") and part and hasattr(module, part)), "")


def _unparametrized(module: nn.Module) -> nn.Module:
    """The module with its computed weights as plain parameters.

    `remove_parametrizations` would not do: it changes the class, which the user's own module shares with its copy.
    """
    kind = type(module).__bases__[0]
    plain: nn.Module = object.__new__(kind)
    plain.__dict__.update(module.__dict__)
    plain._parameters = dict(module._parameters)
    plain._modules = {name: child for name, child in module._modules.items() if name != "parametrizations"}
    for name, _ in module.get_submodule("parametrizations").named_children():
        plain.register_parameter(name, nn.Parameter(getattr(module, name).detach().clone()))
    return plain


def propagate(graph: fx.GraphModule, example: torch.Tensor) -> None:
    """Note each node's output shape in `node.meta`; a shape that does not fit is a one-line ValueError."""
    device = next(graph.parameters(), example).device
    try:
        with torch.no_grad(), evaluating(graph), redirect_stderr(StringIO()):  # it prints a traceback of its own
            Shapes(graph).propagate(example.to(device, copy=True))  # a first layer in place writes into it
    except RuntimeError as error:
        reason = first_line(error.__cause__ or error)
        raise ValueError(f"the network does not run on an input of shape {tuple(example.shape)} ({reason})") from error


def shape(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's output, () where it is no tensor."""
    meta = node.meta.get("tensor_meta")
    return tuple(getattr(meta, "shape", ()))


def gives_tensors(node: fx.Node) -> bool:
    """Whether a node gives a tensor, or several."""
    return node.meta.get("tensor_meta") is not None


def attribute(graph: nn.Module, name: str) -> Any:
    """What a network holds under a dotted name."""
    return operator.attrgetter(name)(graph)


def width(node: fx.Node) -> int:
    """The length of a node's channel axis."""
    return shape(node)[1] if len(shape(node)) > 1 else 0


def module_of(node: fx.Node) -> nn.Module | None:
    """The module that a node calls, if it calls one."""
    graph = node.graph.owning_module
    return graph.get_submodule(str(node.target)) if graph is not None and node.op == "call_module" else None


def ancestors(node: fx.Node) -> set[fx.Node]:
    """A node and everything that it is computed from."""
    return set(reached(node, lambda present: present.all_input_nodes))


def descendants(node: fx.Node) -> set[fx.Node]:
    """A node and everything that is computed from it."""
    return set(reached(node, lambda present: present.users))


def reached(node: fx.Node, following: Callable[[fx.Node], Iterable[fx.Node]]) -> list[fx.Node]:
    """A node and all that is reached from it, each once, however many paths lead there."""
    seen: dict[fx.Node, None] = {}
    todo = [node]
    while todo:
        present = todo.pop()
        if present not in seen:
            seen[present] = None
            todo += following(present)
    return list(seen)
