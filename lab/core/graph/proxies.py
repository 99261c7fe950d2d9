"""What stands for a tensor while a network is traced, and which of its modules are traced through."""

import operator
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from .inplace import OPERATORS


class Proxy(fx.Proxy):
    """A traced value that also records `x += y` and `x[i] = y`, where torch.fx would see x = x + y, or fail."""

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("tracer", "node"):
            raise TypeError(f"it sets .{name} of a tensor")
        super().__setattr__(name, value)


def _record(function: Callable) -> Callable[[Proxy, Any], fx.Proxy]:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _function in OPERATORS:
    setattr(Proxy, f"__{_function.__name__}__", _record(_function))


class Tracer(fx.Tracer):
    """torch.fx's tracer with the proxies above; it traces through what computes more than the layer that it is."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module stays whole: torch's layers do, and classes of the user's that compute what those do.

        torch.ao's layers compute more than the layers that they are kinds of: a ReLU, a rounded weight.
        """
        kinds = type(m).__mro__
        base = next(kind for kind in kinds if kind.__module__.startswith(("torch.nn", "torch.ao.")))
        if base.__module__.startswith("torch.ao.") or base is nn.Module or issubclass(base, nn.Sequential):
            return False
        overridden = {name for kind in kinds[: kinds.index(base)] for name in vars(kind)}
        return not overridden & _computed_by(base)


def _computed_by(base: type) -> set[str]:
    """The names by which a torch layer computes: forward, and whatever it defines beside how it is built and shown."""
    defined = {name for kind in base.__mro__ if kind is not object for name in vars(kind)}
    return {name for name in defined if not name.startswith("__") or name == "__call__"} | {"weight", "bias"} - {
        "extra_repr", "reset_parameters", "_reset_parameters", "_get_name", "_version", "_load_from_state_dict",
        "_save_to_state_dict", "state_dict", "load_state_dict", "train", "dump_patches", "get_extra_state",
        "set_extra_state", "extra_state",
    }  # fmt: skip
