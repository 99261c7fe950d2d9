"""What a network computes, as torch's own operators (aten): one spelling for modules, functions and methods.

The traced network runs once on its example, and what torch dispatches is written down: composite functions, such as an
einsum or an attention, have come apart by then into a few dozen operators. What does not depend on the input is a
constant, computed here and now.
"""

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ...core.batch import Example
from ...core.errors import first_line
from ...core.graph.inplace import operator_name
from ...core.graph.tracing import arguments_of, module_of, trace

# They read a tensor's shape alone: what they give is the same for every input.
_BLANK = {
    "new_zeros",
    "new_ones",
    "new_full",
    "new_empty",
    "zeros_like",
    "ones_like",
    "full_like",
    "empty_like",
    "empty",
}
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


def recorded(model: nn.Module, example: Example) -> fx.GraphModule:
    """The aten operators of a network for one example, and its constants as attributes; the network is left as it is.

    A node's meta holds the `shape` and `dtype` of what it gives (none for several outputs), the `layer` it comes from,
    and the `origin`, the name of the module or function that the network called there. Raises ValueError in one line.
    """
    graph = trace(model, example).cpu()
    tape = _Tape(graph)
    arguments = arguments_of(graph, example)
    for node, value in zip((n for n in graph.graph.nodes if n.op == "placeholder"), arguments, strict=False):
        tape.reads(node.name, value)
    try:
        with torch.no_grad(), tape:
            output = _Walk(graph, tape).run(*arguments)
    except ValueError as error:
        raise ValueError(first_line(error)) from error
    return tape.finished(output)


class _Walk(fx.Interpreter):
    """Runs the traced network and tells the tape which layer it is at."""

    def __init__(self, graph: fx.GraphModule, tape: "_Tape") -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.tape = tape

    def run_node(self, node: fx.Node) -> Any:
        module = module_of(node)
        self.tape.layer = str(node.target) if module is not None else node.name
        self.tape.origin = type(module).__name__ if module is not None else operator_name(node.target)
        return super().run_node(node)


class _Tape(TorchDispatchMode):
    """Writes down what depends on the network's inputs."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph, self.layer, self.origin = fx.Graph(), "", "input"
        self.nodes: dict[int, fx.Node] = {}  # of each tensor that depends on an input
        self.held: list[Any] = []  # tensors of the run, so that no number of one is given to another
        self.names = {id(t): name for name, t in (*graph.named_parameters(), *graph.named_buffers())}
        self.constants: dict[str, Tensor] = {}

    def reads(self, name: str, value: Any) -> None:
        """An input of the network."""
        if isinstance(value, Tensor):
            self._holds(value, self.graph.placeholder(name))

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), _COMPOSITE.name):
            with self:  # in inference mode, or within an operator, torch hands over composite ones whole
                return func._op_dk(_COMPOSITE, *args, **kwargs)
        output = func(*args, **kwargs)
        read = [id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(number in self.nodes for number in read) and func._schema.name.split("::")[1] not in _BLANK:
            self._writes(func, args, kwargs, output)
        return output

    def _writes(self, func: Any, args: tuple, kwargs: dict, output: Any) -> None:
        if func is torch.ops.aten.as_strided_.default and output.shape == self.nodes[id(args[0])].meta["shape"]:
            return  # strides of another order, which mean nothing here
        func = self._out_of_place(func, args) if func._schema.is_mutable else func
        args, kwargs = tree_map(self._node, (args, kwargs))
        node = self.graph.call_function(func, *self._unscaled(func, args, kwargs))
        self._holds(output, node)
        for i, part in enumerate(output if isinstance(output, (tuple, list)) else ()):
            if isinstance(part, Tensor):
                self._holds(part, self.graph.call_function(operator.getitem, (node, i)))

    def _out_of_place(self, func: Any, args: tuple) -> Any:
        """The operator that gives as a new tensor what this one writes into a tensor whose memory is nobody else's."""
        _, name = func._schema.name.split("::")
        plain = getattr(
            getattr(torch.ops.aten, name.removesuffix("_"), None), func._schema.overload_name or "default", None
        )
        storage = args[0].untyped_storage()._cdata
        shares = (t is not args[0] and t.untyped_storage()._cdata == storage for t in tree_leaves(self.held))
        is_recorded = id(args[0]) in self.nodes and not args[0]._is_view()
        if plain is None or plain._schema.is_mutable or not is_recorded or any(shares):
            raise ValueError(f"{self.layer} ({self.origin}) works in place in torch: write it as plain operations")
        return plain

    def _unscaled(self, func: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """The arguments of x + alpha y as those of a sum, alpha y a product before it."""
        alpha = kwargs.pop("alpha", 1)
        if func._schema.name not in ("aten::add", "aten::sub") or alpha == 1:
            return args, kwargs | ({} if alpha == 1 else {"alpha": alpha})
        first, other, *_ = args
        if not isinstance(other, fx.Node):
            return (first, other * alpha), kwargs
        scaled = self.graph.call_function(torch.ops.aten.mul.Tensor, (other, alpha))
        scaled.meta |= other.meta | {"layer": self.layer, "origin": self.origin}
        return (first, scaled), kwargs

    def _holds(self, value: Any, node: fx.Node) -> None:
        node.meta |= {"layer": self.layer or node.name, "origin": self.origin}
        if isinstance(value, Tensor):
            node.meta |= {"shape": tuple(value.shape), "dtype": value.dtype}
            self.nodes[id(value)] = node
        self.held.append(value)

    def _node(self, value: Any) -> Any:
        """The node of a tensor; all else is itself."""
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self.nodes:
            name = self.names.get(id(value), f"constant{len(self.constants)}")
            self.constants[name] = value.detach()
            node = self.graph.get_attr(name)
            node.meta |= {"layer": name, "origin": "constant", "shape": tuple(value.shape), "dtype": value.dtype}
            self.nodes[id(value)] = node
            self.held.append(value)
        return self.nodes[id(value)]

    def finished(self, output: Any) -> fx.GraphModule:
        self.graph.output(tree_map(self._node, output))
        root = nn.Module()
        for name, tensor in self.constants.items():
            *path, last = name.split(".")
            holder = root
            for part in path:
                if not hasattr(holder, part):
                    holder.add_module(part, nn.Module())
                holder = getattr(holder, part)
            holder.register_buffer(last, tensor)
        made = fx.GraphModule(root, self.graph)
        made.graph.eliminate_dead_code()
        return made
