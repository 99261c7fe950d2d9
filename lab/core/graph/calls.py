"""How a node of a traced network calls torch: its arguments by name, whichever way they were written, and what a
clamp clamps to.
"""

import inspect
import math
from functools import lru_cache
from typing import Any

import torch
from torch import fx, nn
from torch._jit_internal import boolean_dispatched
from torch.nn import functional as F

from .inplace import operator_name
from .tracing import gives_tensors, module_of, shape

_NUMPY_NAMES = {"axis": "dim", "keepdims": "keepdim", "x": "input", "a": "input", "x1": "input", "x2": "other"}
_CLAMP_KINDS = {
    F.relu: "relu", torch.relu: "relu", "relu": "relu", F.relu6: "relu6", F.hardtanh: "hardtanh",
    torch.clamp: "clamp", "clamp": "clamp", torch.clip: "clamp", "clip": "clamp", torch.clamp_min: "clamp",
    "clamp_min": "clamp", torch.clamp_max: "clamp", "clamp_max": "clamp",
}  # fmt: skip


def arguments(node: fx.Node) -> dict[str, Any]:
    """What a function or method is called with, by torch's own names and with its defaults: `input` is the tensor.

    Keywords, positions, NumPy's spellings and the loose numbers of `x.permute(0, 2, 1)` come out alike; what forward
    was not given is its default. Raises ValueError where torch has no such call.
    """
    given: Any = fx.node.map_arg((node.args, node.kwargs), _default)
    kwargs = {_NUMPY_NAMES.get(name, name): value for name, value in given[1].items()}
    gathered = (given[0][0], given[0][1:]) if len(given[0]) > 2 else given[0]
    for args in (given[0], gathered):
        for signature in _signatures(node.target):
            if (bound := _bound(signature, args, kwargs)) is not None:
                return bound
    raise ValueError(f"{node.name}: torch has no {operator_name(node.target)} with these arguments")


def _default(node: fx.Node) -> Any:
    """What an input that was not given stands for, such as `is_causal`; any other node is itself."""
    return node.args[0] if node.op == "placeholder" and node.args and not gives_tensors(node) else node


def asked(node: fx.Node) -> dict[str, Any]:
    """An operator's settings by the names that torch's modules and functions share: kernel_size, stride."""
    module = module_of(node)
    return arguments(node) if module is None else vars(module)


def two(value: Any) -> tuple[Any, Any]:
    """A setting of both axes of a picture: one number, alone or in a list, stands for both."""
    rows, columns = of_axes(value, 2)
    return rows, columns


def of_axes(value: Any, count: int) -> tuple[Any, ...]:
    """A setting of so many axes: one number, alone or in a list, stands for all of them."""
    numbers = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return numbers * count if len(numbers) == 1 else numbers


def _bound(signature: inspect.Signature, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """The arguments by name; None where they do not fit the signature."""
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError:
        return None
    if not all(_fits(signature.parameters[name].annotation, value) for name, value in bound.arguments.items()):
        return None
    bound.apply_defaults()
    return dict(bound.arguments)


def _fits(kind: Any, value: Any) -> bool:
    """Whether a value may stand for a parameter; only operators of many signatures say of what kind theirs are."""
    if not isinstance(kind, str) or value is None:
        return True
    is_tensor = isinstance(value, torch.Tensor) or (isinstance(value, fx.Node) and bool(shape(value)))
    if is_tensor or isinstance(value, (bool, int, float, complex)):
        return ("Tensor" in kind) == is_tensor
    return True


@lru_cache
def _signatures(target: Any) -> tuple[inspect.Signature, ...]:
    """How an operator can be called, the most usual way first."""
    if target in boolean_dispatched:
        target = boolean_dispatched[target]["if_false"]
    try:
        return (_renamed(inspect.signature(target)),)
    except (TypeError, ValueError):  # a method's name, or a function of C: its schemas say
        overloads = getattr(torch.ops.aten, operator_name(target), None)
    schemas = [] if overloads is None else [getattr(overloads, name)._schema for name in overloads.overloads()]
    return tuple(_of_schema(schema) for schema in schemas if not any(part.is_out for part in schema.arguments))


def _of_schema(schema: Any) -> inspect.Signature:
    empty, parts = inspect.Parameter.empty, []
    for part in schema.arguments:
        kind = inspect.Parameter.KEYWORD_ONLY if part.kwarg_only else inspect.Parameter.POSITIONAL_OR_KEYWORD
        default = part.default_value if part.has_default_value() else empty
        name = "input" if part.name == "self" else part.name
        parts.append(inspect.Parameter(name, kind, default=default, annotation=str(part.type)))
    return inspect.Signature(parts)


def _renamed(signature: inspect.Signature) -> inspect.Signature:
    """The first parameter is `input`, as in torch; the second of `operator`'s two is `other`."""
    parts = list(signature.parameters.values())
    names = {"a": "input", "b": "other"} if [part.name for part in parts] == ["a", "b"] else {}
    return signature.replace(parameters=[part.replace(name=names.get(part.name, part.name)) for part in parts])


def bounds(node: fx.Node) -> tuple[float, float] | None:
    """The numbers that a node clamps its input to: (0, inf) for a ReLU, (0, 6) for a ReLU6; None if it is no clamp."""
    module = module_of(node)
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one
        return float(module.min_val), float(module.max_val)
    if isinstance(module, nn.ReLU):
        return 0.0, math.inf
    kind = _CLAMP_KINDS.get(node.target) if node.op in ("call_function", "call_method") else None
    if kind is None:
        return None
    limits = {"relu": {"min": 0.0}, "relu6": {"min": 0.0, "max": 6.0}}.get(kind) or arguments(node)
    low, high = (limits.get(name, limits.get(f"{name}_val")) for name in ("min", "max"))
    ends = (-math.inf if low is None else low, math.inf if high is None else high)
    return None if any(isinstance(end, (fx.Node, torch.Tensor)) for end in ends) else (float(ends[0]), float(ends[1]))


def is_relu(node: fx.Node) -> bool:
    """Whether a node gives max(x, 0), however it is written."""
    return bounds(node) == (0.0, math.inf)
