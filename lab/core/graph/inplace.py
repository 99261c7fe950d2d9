"""Networks that work in place, as graphs in which nothing is overwritten: with equal outputs and equal gradients.

Which nodes share memory, and which of them an operation overwrites, is seen in a run: tensors of one storage are views
of the node that came first, and a version counter that rises betrays a write. The operation then gives a new tensor,
and who read the overwritten memory later reads that one: the same view of it, or the base with that part overwritten.
"""

import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils._pytree import tree_leaves

from ..batch import each
from ..task import evaluating
from ..training import seeded

# How a tensor is had from the memory that it shares: (method, arguments, keywords) each, the first on the base.
Path = tuple[tuple[str, tuple, dict], ...]

_NAMES = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift".split()
# x += y and its kin, each with the operator that gives a new tensor.
OPERATORS = {
    getattr(operator, f"i{name}"): getattr(operator, {"and": "and_", "or": "or_"}.get(name, name)) for name in _NAMES
}
# Names that mean the same without their underscore; any other operation in place is given a clone to work on.
_PLAIN = set(
    "relu relu6 leaky_relu elu celu selu hardtanh threshold silu sigmoid tanh add sub mul div neg abs exp sqrt square "
    "pow clamp clamp_min clamp_max clip".split()
)
# Views that stand in a graph as functions, by the methods that take them of a tensor.
_VIEWS: dict[str, Callable[..., Any]] = {"__getitem__": operator.getitem, "__getattribute__": getattr}
_ASSIGNING = (operator.setitem, "__setitem__")
OWN = "a copy cannot follow what changes from one input to the next; write it out of place"
_CONSTANT = "_tensor_constant"  # how a tracer names a tensor that forward makes anew each time


def out_of_place(graph: fx.GraphModule, example: tuple) -> None:
    """Rewrite a traced graph so that nothing in it works in place; its outputs stay what they were.

    The graph is run on the example, its inputs by position, and on two of it with its dropout on, to see who shares
    memory with whom. A network whose rewritten graph cannot be shown to give equal outputs is refused in a one-line
    ValueError.
    """
    for node in graph.graph.nodes:
        if node.op == "call_function" and node.target in OPERATORS and not _is_tensor(node):
            node.target = OPERATORS[node.target]
    in_eval = _Watch(graph).observe(example)
    if not any(in_eval.writes.values()):
        return
    in_training = _Watch(graph, training=nn.modules.dropout._DropoutNd)
    try:
        in_training.observe(each(example, lambda x: torch.cat([x, x])))
    except Exception:  # the network takes one batch size only
        in_training = _Watch(graph, training=nn.modules.dropout._DropoutNd).observe(example)
    _Rewriting(graph, in_eval, in_training).run()
    graph.graph.lint()
    graph.recompile()
    if not all(_outputs_match(graph, watch) for watch in (in_eval, in_training)):
        names = ", ".join(node.name for node, written in in_eval.writes.items() if written)
        raise ValueError(f"the network works in place in a way that is not followed ({names}): write y = f(x) there")


def _outputs_match(graph: fx.GraphModule, watch: "_Watch") -> bool:
    """Whether a graph still gives the output that was seen."""
    try:
        again = _Watch(graph, watch.training).observe(watch.example)
    except Exception:  # a graph that does not run
        return False
    return all(map(_is_alike, tree_leaves(watch.result), tree_leaves(again.result)))


def operator_name(target: Any) -> str:
    """The name of what a node calls, a function or a method."""
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def may_overwrite(node: fx.Node) -> bool:
    """Whether a node goes by a name of what works in place, so that it may matter although nobody reads it."""
    name = operator_name(node.target)
    is_named = name.endswith("_") and not name.endswith("__") and getattr(node.target, "__module__", "") != "_operator"
    return node.target in _ASSIGNING or node.target in OPERATORS or is_named or "out" in node.kwargs


def _is_tensor(node: fx.Node) -> bool:
    return node.meta.get("tensor_meta") is not None


def _is_alike(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b)
    return a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, equal_nan=True)


# -- what stands in a rewritten graph --------------------------------------------------------------------------------


def assigned(x: Tensor, index: Any, value: Any) -> Tensor:
    """x with x[index] = value, as a new tensor."""
    if has_torch_function((x, value)):
        return handle_torch_function(assigned, (x, value), x, index, value)
    copy = x.clone()
    copy[index] = value
    return copy


def overwritten(base: Tensor, part: Tensor, path: Path) -> Tensor:
    """The base with that part of it overwritten which the path leads to, as a new tensor of the base's shape."""
    if has_torch_function((base, part)):
        return handle_torch_function(overwritten, (base, part), base, part, path)
    where = torch.arange(base.numel(), device=base.device).view(base.shape)
    for name, arguments, keywords in path:
        where = getattr(where, name)(*arguments, **keywords)
    if _is_cut(path):  # autograd does not see it
        copy = base.clone(memory_format=torch.contiguous_format)
        copy.detach().view(-1)[where] = part.detach()
        return copy
    return base.reshape(-1).scatter(0, where.reshape(-1), part.reshape(-1)).view(base.shape)


def _is_cut(path: Path | None) -> bool:
    """Whether a path leads past the gradient."""
    return any(name == "detach" or arguments == ("data",) for name, arguments, _ in path or ())


# -- who shares memory, and who writes -------------------------------------------------------------------------------


class Shapes(ShapeProp):
    """Runs a graph and notes the shapes; what forward makes anew each time is not changed by writing into it."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.constants: dict[str, Tensor] = {}

    def fetch_attr(self, target: str) -> Any:
        value = super().fetch_attr(target)
        return self.constants.setdefault(target, value.clone()) if target.startswith(_CONSTANT) else value


class _Watch(Shapes):
    """Notes for each node whose memory it shows, by which path, and what it overwrites."""

    def __init__(self, graph: fx.GraphModule, training: type | tuple = ()) -> None:
        super().__init__(graph)
        self.garbage_collect_values = False  # memory that is freed would be taken for a view
        self.training = training
        self.views: dict[fx.Node, tuple[fx.Node, Path | None]] = {}  # the node that came first, the path from it
        self.writes: dict[fx.Node, list[fx.Node]] = {}
        self.bases: dict[int, fx.Node] = {}  # by the address of their storage

    def observe(self, example: tuple) -> "_Watch":
        """Run on the example in eval mode, but for the modules of the kind `training`."""
        self.example = example
        with torch.inference_mode(False), torch.no_grad(), evaluating(self.module), seeded(0):
            for module in self.module.modules():
                if isinstance(module, self.training):
                    module.train()
            self.result = self.run(*each(example, Tensor.clone))
        self.env.clear()
        return self

    def run_node(self, n: fx.Node) -> Any:
        before = {source: _version(self.env[source]) for source in n.all_input_nodes}
        output = super().run_node(n)
        self.writes[n] = [source for source in before if _version(self.env[source]) != before[source]]
        if not self.writes[n] and _is_flagged(self.module, n):
            self.writes[n] = [n.all_input_nodes[0]]  # a dropout, which in eval mode writes nothing
        self._note_view(n, output)
        return output

    def _note_view(self, n: fx.Node, output: Any) -> None:
        storages = {tensor.untyped_storage()._cdata for tensor in _tensors(output)}
        if n.op == "output" or len(storages) != 1:
            return
        base = self.bases.setdefault(storages.pop(), n)
        if base is n:
            self.views[n] = (n, ())
            return
        source = next((node for node in n.all_input_nodes if self.views.get(node, (None,))[0] is base), None)
        path = None if source is None else self.views[source][1]
        if source is not None and output is not self.env[source]:
            step = _step(self.module, n, source)
            path = None if path is None or step is None else (*path, step)
        elif source is None and n.op == base.op == "get_attr" and n.target == base.target:
            path = ()
        self.views[n] = (base, path)


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _version(value: Any) -> list[int]:
    return [0 if tensor.is_inference() else tensor._version for tensor in _tensors(value)]


def _step(graph: Any, node: fx.Node, source: fx.Node) -> tuple[str, tuple, dict] | None:
    """The view that a node takes of its source, as a method call; None for any other node."""
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        if isinstance(module, nn.Flatten):
            return "flatten", (module.start_dim, module.end_dim), {}
        return ("unflatten", (module.dim, module.unflattened_size), {}) if isinstance(module, nn.Unflatten) else None
    rest = {name: value for name, value in node.kwargs.items() if value is not source}
    if node.args and node.args[0] is not source:
        return None
    methods = (method for method, function in _VIEWS.items() if function is node.target)
    name = next(methods, operator_name(node.target))
    return (name, tuple(node.args[1:]), rest) if hasattr(Tensor, name) else None


# -- rewriting -------------------------------------------------------------------------------------------------------


class _Rewriting:
    """One pass over a graph; `current` maps a node that was overwritten to the one that stands for its value now.

    None there is a view that has to be taken anew of its base.
    """

    def __init__(self, graph: fx.GraphModule, in_eval: _Watch, in_training: _Watch) -> None:
        self.graph, self.in_eval, self.in_training = graph, in_eval, in_training
        self.order = {node: index for index, node in enumerate(graph.graph.nodes)}
        self.current: dict[fx.Node, fx.Node | None] = {}
        self.rebuilt: list[fx.Node] = []  # bases with a part overwritten

    def run(self) -> None:
        for node in list(self.graph.graph.nodes):
            target = self._target(node)
            for source in node.all_input_nodes:
                node.replace_input_with(source, self._present(source, node))
            if target is not None:
                self._write(node, target)
        for base in reversed(self.rebuilt):
            if not base.users:
                self.graph.graph.erase_node(base)

    def _target(self, node: fx.Node) -> fx.Node | None:
        """The node whose tensor an operation overwrites, None if it overwrites none that anyone else can see."""
        written = list(dict.fromkeys([*self.in_eval.writes[node], *self.in_training.writes[node]]))
        if not written:
            return None
        first = node.kwargs.get("out", next(iter([*node.args, *node.kwargs.values()])))
        bases = {self.in_eval.views.get(source, (source, None))[0] for source in written}
        if not isinstance(first, fx.Node) or first not in written or len(bases) != 1:
            raise ValueError(f"{node.name} overwrites what it reads beside its first input: write it out of place")
        if first.op == "call_method" and first.target == "clone" and len(first.users) == 1:
            return None
        base = bases.pop()
        if base.op == "get_attr" and not str(base.target).startswith(_CONSTANT):
            raise ValueError(f"{node.name} changes the network's own {base.target} in forward: {OWN}")
        return first

    def _present(self, node: fx.Node, reader: fx.Node) -> fx.Node:
        """What stands for a node's value when `reader` reads it."""
        present = self.current.get(node, node)
        if present is None:
            base, path = self.in_eval.views[node]
            present = self._present(base, reader)
            for name, arguments, keywords in path or ():
                with self.graph.graph.inserting_before(reader):
                    present = self._call(present, name, arguments, keywords)
            self.current[node] = present
        return present

    def _call(self, source: fx.Node, name: str, arguments: tuple, keywords: dict) -> fx.Node:
        if name in _VIEWS:
            return self.graph.graph.call_function(_VIEWS[name], (source, *arguments))
        return self.graph.graph.call_method(name, (source, *arguments), keywords)

    def _write(self, node: fx.Node, target: fx.Node) -> None:
        """Let an operation give a new tensor, and all that shows the overwritten memory later be had from it."""
        base, path = self.in_eval.views[target]
        read_later = self._read_later(self.in_eval, node, target)
        if read_later != self._read_later(self.in_training, node, target):
            raise ValueError(f"{node.name} works in place on memory that is shared in some modes only: write y = f(x)")
        others = [view_path for view, view_path in read_later.items() if view is not target]
        if None in others or (others and path is None) or (_is_cut(path) and any(map(_is_cut, others))):
            raise ValueError(f"{node.name} works in place on memory that others view in unknown ways: write y = f(x)")
        before = self._present(base, node) if path else base
        self._make_plain(node, target)
        for view, (view_base, view_path) in self.in_eval.views.items():
            if view_base is base and self.order[view] < self.order[node]:
                self.current[view] = node if view_path == path or view is target else None
        if path:
            with self.graph.graph.inserting_after(node):
                rebuilt = self.graph.graph.call_function(overwritten, (before, node, path))
            self.current[base] = rebuilt
            self.rebuilt.append(rebuilt)

    def _read_later(self, watch: _Watch, node: fx.Node, target: fx.Node) -> dict[fx.Node, Path | None]:
        """The nodes that show the memory which `node` overwrites and are read after it, with their paths."""
        base, at = watch.views[target][0], self.order[node]
        earlier = {view: path for view, (of, path) in watch.views.items() if of is base and self.order[view] < at}
        return {
            view: path for view, path in earlier.items() if any(self.order.get(user, -1) > at for user in view.users)
        }

    def _make_plain(self, node: fx.Node, target: fx.Node) -> None:
        module: Any = self.graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if hasattr(module, "inplace"):
            module.inplace = False
        elif node.target in _ASSIGNING:
            node.op, node.target = "call_function", assigned
        elif bound := _flagged(node):
            bound.arguments["inplace"] = False
            node.args, node.kwargs = bound.args, bound.kwargs
        elif not self._renamed(node):
            self._on_a_clone(node, target)

    def _renamed(self, node: fx.Node) -> bool:
        """Call the plain operation of the same name, if all that it reads has one dtype: it would promote others."""
        dtypes = {source.meta["tensor_meta"].dtype for source in node.all_input_nodes if _has_dtype(source)}
        plain = _plain(node)
        if len(dtypes) > 1 or plain is None:
            return False
        node.kwargs = {name: value for name, value in node.kwargs.items() if name != "out"}
        node.op, node.target = ("call_method" if isinstance(plain, str) else "call_function"), plain
        return True

    def _on_a_clone(self, node: fx.Node, target: fx.Node) -> None:
        with self.graph.graph.inserting_before(node):
            source = self._present(target, node)
            clone = self.graph.graph.call_method("clone", (source,))
        node.replace_input_with(source, clone)


def _has_dtype(node: fx.Node) -> bool:
    return hasattr(node.meta.get("tensor_meta"), "dtype")


def _is_flagged(graph: Any, node: fx.Node) -> bool:
    """Whether a node is called with inplace=True."""
    if node.op == "call_module":
        return bool(getattr(graph.get_submodule(str(node.target)), "inplace", False))
    return _flagged(node) is not None


def _flagged(node: fx.Node) -> inspect.BoundArguments | None:
    """The arguments of a function that is called with inplace=True, None for any other."""
    if node.op != "call_function" or not callable(node.target):
        return None
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):  # a builtin tells no signature
        return None
    return bound if bound.arguments.get("inplace") else None


def _plain(node: fx.Node) -> Callable | str | None:
    """The operation of the same name that is not in place, None where none is known to be the same."""
    if node.target in OPERATORS:
        return OPERATORS[node.target]
    name = operator_name(node.target)
    if node.op == "call_method" and name.startswith("__i"):
        return OPERATORS.get(getattr(operator, name.strip("_"), None))
    plain = name.removesuffix("_")
    if node.op == "call_module" or plain not in _PLAIN or (plain == name and "out" not in node.kwargs):
        return None
    return plain if node.op == "call_method" else getattr(torch, plain, getattr(F, plain, None))
