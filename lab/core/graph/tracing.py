"""A network as a graph: a traced copy that can be cut, each node with the shape of what it gives."""

import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import redirect_stderr
from copy import deepcopy
from dataclasses import is_dataclass
from io import StringIO
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from ..batch import Example, call, device_for, each, moved, tensors
from ..errors import first_line
from ..models import checked, learnable, uncompiled, validate_model
from ..task import evaluating
from ..training import seeded
from .attention import drop_unused, plain_attention
from .by_example import ExampleTracer
from .inplace import OWN, Shapes, out_of_place
from .opened import call_layers, open_functions
from .proxies import Tracer


def trace(model: nn.Module, example: Example) -> fx.GraphModule:
    """A traced copy of the model in eval mode, every node with its shape; the model itself is left as it is.

    `example` is one input, a tuple of positional inputs, or a dictionary of inputs by name. First torch.fx traces the
    network, whose sizes then stay open; where that fails, or gives other outputs, it is traced once more with the
    example computed along (`by_example`), so that code that branches on sizes, counts and unpacks them has numbers.

    Parametrizations are computed once and for all in the copy, and nothing in it works in place: once a graph is cut,
    that could overwrite what is still needed. Its outputs and gradients are the model's; a model whose outputs it
    cannot give is a one-line ValueError. Hooks stay behind, and so does what forward draws in training alone, but for
    modules of torch. Frozen parameters stay frozen; of a network that was loaded for inference, all of whose
    parameters are, all learn.
    """
    checked(model)
    failures: list[ValueError] = []
    for tracer in (Tracer(), ExampleTracer(moved(example, device_for(model, example)))):
        try:
            return _traced(model, example, tracer)
        except ValueError as error:
            failures.append(error)
    first, second = failures
    raise second if isinstance(first.__cause__, _NotTraced) or not isinstance(second.__cause__, _NotTraced) else first


class _NotTraced(Exception):
    """What a tracer met in a forward."""


def _traced(model: nn.Module, example: Example, tracer: Tracer) -> fx.GraphModule:
    """The model as this tracer sees it, checked on the example; a one-line ValueError where that is something else."""
    copy = learnable(_plain_copy(model)).eval()
    plain_attention(copy, example)
    versions = [(name, tensor, tensor._version) for name, tensor in _named_tensors(copy)]
    try:
        graph = fx.GraphModule(copy, tracer.trace(copy), type(model).__name__)
    except Exception as error:  # a tracer meets whatever the user's forward raises
        raise ValueError(
            f"{type(model).__name__} cannot be traced ({first_line(error)}): its forward must not branch on values of "
            "tensors, nor leave torch; move such code out of forward"
        ) from _NotTraced(error)
    traced = dict(_named_tensors(copy))
    for name, tensor, version in versions:
        if traced.get(name) is not tensor or tensor._version != version:
            raise ValueError(f"{type(model).__name__} changes its own {name} in forward: {OWN}")
    drop_unused(graph)
    open_functions(graph, arguments_of(graph, example))
    propagate(graph, example)
    out_of_place(graph, arguments_of(graph, example))
    graph.graph.eliminate_dead_code()  # not before: what works in place has no readers
    graph.recompile()
    propagate(graph, example)
    call_layers(graph)
    if not _outputs_match(graph, model, example):
        raise ValueError(_difference(model, copy, example))
    if isinstance(tracer, ExampleTracer) and not _takes_batches(graph, model, example):
        raise ValueError(
            f"{type(model).__name__} cannot be traced for other batches than the example: its forward takes the number "
            "of samples for a constant, as a loop over a batch does; write that as operations on whole tensors"
        )
    return graph


def _difference(model: nn.Module, copy: nn.Module, example: Example) -> str:
    """Why a model answers otherwise than its traced copy, as far as that is known."""
    if not _outputs_match(copy, model, example):
        hooked = [name or type(model).__name__ for name, m in model.named_modules() if _hooks(m)]
        if hooked:
            return (
                f"{type(model).__name__} answers otherwise without the hooks of {', '.join(hooked)}, which a traced "
                "copy leaves out: remove them, or write what they compute into forward"
            )
    return (
        f"{type(model).__name__} answers otherwise than its traced copy, which leaves out hooks, autocast, "
        "arguments left to their defaults and numbers drawn in forward: write what it computes as plain operations"
    )


def _hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _takes_batches(graph: nn.Module, model: nn.Module, example: Example) -> bool:
    """Whether a graph answers twice the example as the model does, unless the model takes no other batch either."""
    twice = each(example, lambda x: torch.cat([x, x]) if x.dim() else x)
    try:
        outputs_of(model, twice)
    except Exception:  # whatever a forward raises that is written for one batch
        return True
    try:
        return _outputs_match(graph, model, twice)
    except Exception:
        return False


def outputs_of(net: nn.Module, example: Example) -> list[torch.Tensor]:
    """The tensors that a network answers an example with; a one-line ValueError where there is none."""
    placed = each(example, lambda x: x.to(device_for(net, example), copy=True))  # a first layer may write into it
    with torch.no_grad(), evaluating(net), seeded(0):
        output = call(net, placed)
    outputs = list(tensors(output))
    if not outputs:
        kind = type(output).__name__
        raise ValueError(f"{type(net).__name__} returns a {kind} that holds no tensor: return one")
    return outputs


def _outputs_match(graph: nn.Module, model: nn.Module, example: Example) -> bool:
    """Whether two networks give equal outputs for an example, up to rounding."""
    ours, theirs = outputs_of(graph, example), outputs_of(model, example)
    return len(ours) == len(theirs) and all(map(_is_close, ours, theirs))


def _is_close(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if b.is_meta:  # shapes alone, no numbers
        return True
    if b.dtype is torch.bool:
        return torch.equal(a, b.to(a.device))
    size = float(b.abs().nan_to_num(0, 0).max()) if b.numel() else 0.0
    return torch.allclose(a, b.to(a.device), rtol=1e-4, atol=1e-4 * size, equal_nan=True)


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _plain_copy(model: nn.Module) -> nn.Module:
    """A copy whose weights are plain parameters, without hooks, of what was compiled the network itself."""
    validate_model(model)
    for name, module in model.named_modules():
        called = name or type(model).__name__
        if part := _computed(module):
            remedy = "call torch.nn.utils.remove_weight_norm, or prune.remove, first"
            raise ValueError(f"{called} computes its {part} in a hook: {remedy}")
    try:
        copy = uncompiled(deepcopy(model))
    except RuntimeError as error:
        raise ValueError(f"{type(model).__name__} cannot be copied ({first_line(error)})") from error
    for module in copy.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    for name, module in list(copy.named_modules()):
        if parametrize.is_parametrized(module) and name:
            copy.set_submodule(name, _unparametrized(module))
    return copy


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
    for name, part in module.get_submodule("parametrizations").named_children():
        learns = any(parameter.requires_grad for parameter in part.parameters())
        plain.register_parameter(name, nn.Parameter(getattr(module, name).detach().clone(), requires_grad=learns))
    return plain


def propagate(graph: fx.GraphModule, example: Example) -> None:
    """Note each node's output shape in `node.meta`; a shape that does not fit is a one-line ValueError."""
    try:
        with torch.no_grad(), evaluating(graph), redirect_stderr(StringIO()):  # it prints a traceback of its own
            Shapes(graph).propagate(*arguments_of(graph, example))
    except RuntimeError as error:
        reason, shapes = first_line(error.__cause__ or error), ", ".join(str(tuple(x.shape)) for x in tensors(example))
        raise ValueError(f"the network does not run on an input of shape {shapes} ({reason})") from error


def arguments_of(graph: fx.GraphModule, example: Example) -> tuple:
    """An example as a graph's arguments, by position, on its device: a copy, since a first layer may write into it."""
    device = device_for(graph, example)
    placed = each(example, lambda x: x.to(device, copy=True))
    if isinstance(placed, Mapping):
        places = [node for node in graph.graph.nodes if node.op == "placeholder"]
        return tuple(placed.get(str(node.target), next(iter(node.args), None)) for node in places)
    return placed if isinstance(placed, tuple) else (placed,)


def shape(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's output, () where it is no tensor."""
    meta = node.meta.get("tensor_meta")
    return tuple(getattr(meta, "shape", ()))


def gives_tensors(node: fx.Node) -> bool:
    """Whether a node gives a tensor, or several."""
    return node.meta.get("tensor_meta") is not None


def is_record(node: Any) -> bool:
    """Whether a node only puts the outputs of a network into a record of named fields, such as transformers give."""
    return isinstance(node, fx.Node) and isinstance(node.target, type) and is_dataclass(node.target)


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


def shared(graph: fx.GraphModule) -> set[str]:
    """The modules that are called more than once, whose weights are read beside their calls, or are another's too."""
    held = Counter(id(p) for name in _calls(graph) for p in graph.get_submodule(name).parameters())
    held.update({id(attribute(graph, str(node.target))) for node in graph.graph.nodes if node.op == "get_attr"})
    tied = {name for name in _calls(graph) if any(held[id(p)] > 1 for p in graph.get_submodule(name).parameters())}
    return repeated(graph) | tied


def repeated(graph: fx.GraphModule) -> set[str]:
    """The modules that are called more than once, or whose weights are read beside their calls."""
    read = {str(node.target).rpartition(".")[0] for node in graph.graph.nodes if node.op == "get_attr"}
    return {name for name, count in _calls(graph).items() if count > 1 or name in read}


def _calls(graph: fx.GraphModule) -> Counter[str]:
    """How often each module is called."""
    return Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_module")


def ancestors(node: fx.Node) -> set[fx.Node]:
    """A node and everything that it is computed from."""
    return set(reached(node, lambda present: present.all_input_nodes))


def descendants(node: fx.Node) -> set[fx.Node]:
    """A node and everything that is computed from it."""
    return set(reached(node, lambda present: present.users))


def later(graph: fx.GraphModule, which: Callable[[fx.Node], bool]) -> set[fx.Node]:
    """The nodes that are computed from one of these."""
    marked: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if which(node) or node in marked:
            marked.update(node.users)
    return marked


def earlier(graph: fx.GraphModule, which: Callable[[fx.Node], bool]) -> set[fx.Node]:
    """The nodes that one of these is computed from."""
    marked: set[fx.Node] = set()
    for node in reversed(graph.graph.nodes):
        if which(node) or node in marked:
            marked.update(node.all_input_nodes)
    return marked


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
