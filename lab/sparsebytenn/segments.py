"""A network of which the engine has a part: known parts run in it, the rest stays torch's.

torch's partitioner finds the parts: as large as they can be without a path that leaves one and comes back.
"""

import operator
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner
from torch.fx.passes.operator_support import OperatorSupportBase
from torch.utils._pytree import tree_map

from ..core.batch import Example
from ..core.distribution import needed
from ..core.graph.tracing import attribute
from . import packed
from .compiler import scheduled
from .lowering import lowered
from .lowering.tape import recorded
from .packed import Network
from .runtime import Engine, floats


class Segment(nn.Module):
    """A part of a network that runs in the engine, on whole tensors of the example's shapes."""

    def __init__(self, graph: fx.GraphModule, form: Callable[[Network], Network]) -> None:
        super().__init__()
        lowering = lowered(graph)
        assert not lowering.missing  # what is was seen in the lowering of all
        self.engine = Engine(packed.write(form(scheduled(lowering, {}))))
        output = next(node for node in graph.graph.nodes if node.op == "output").args[0]
        self.shapes = [node.meta["shape"] for node in (output if isinstance(output, (tuple, list)) else (output,))]
        self.is_single = not isinstance(output, (tuple, list))

    def forward(self, *inputs: Tensor) -> Any:
        maps = [self.engine.network.maps[i] for i in self.engine.network.inputs]
        arrays = [floats("x", x).reshape(m.shape) for x, m in zip(inputs, maps, strict=True)]
        raw = self.engine._run(arrays)
        outputs = [torch.from_numpy(y).reshape(shape) for y, shape in zip(raw, self.shapes, strict=True)]
        return outputs[0] if self.is_single else tuple(outputs)


class Segments:
    """A network in parts, `segments(x)` with x (N, ...): in the engine what it has, the rest in torch.

    `missing`: node -> why the engine lacks it.
    """

    def __init__(self, graph: fx.GraphModule, missing: dict[str, str]) -> None:
        self.graph, self.missing = graph, missing

    def __call__(self, *inputs: Tensor | np.ndarray) -> Any:
        """What the network gives for each image, its tensors joined along their first axis."""
        given = [torch.as_tensor(x) for x in inputs]
        if len({len(x) for x in given}) != 1:
            raise ValueError(f"inputs of {', '.join(str(len(x)) for x in given)} images: give as many of each")
        with torch.no_grad():
            outputs = [self.graph(*(x[n : n + 1] for x in given)) for n in range(len(given[0]))]
        if not outputs:
            raise ValueError("x holds no image: a network that torch computes in part needs one")
        return tree_map(lambda *parts: torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0], *outputs)

    def parts(self) -> list[tuple[str, Any]]:
        """Each node that computes, in order: where it runs, "engine" or "torch", and the segment or the node."""
        parts: list[tuple[str, Any]] = []
        for node in self.graph.graph.nodes:
            if node.op == "call_module":
                parts.append(("engine", self.graph.get_submodule(str(node.target))))
            elif node.op == "call_function" and node.target is not operator.getitem:
                parts.append(("torch", node))
        return parts

    def profile(self, repeats: int = 20) -> Any:
        """A frame with one row an operator: where it runs, and why in torch; the engine's also with what it does."""
        with needed():
            import pandas

        frames = []
        torch_ms = self._torch_times(repeats)
        for i, (where, part) in enumerate(self.parts()):
            if where == "engine":
                frames.append(part.engine.profile(repeats).assign(where=f"engine {i}", why=""))
            else:
                why = self.missing.get(part.name, "stands between parts that torch computes")
                row = {"layer": part.meta["layer"], "operator": str(part.target), "ms": torch_ms[part.name]}
                frames.append(pandas.DataFrame([row | {"where": "torch", "why": why}]))
        table = pandas.concat(frames, ignore_index=True)
        return table[["where", "why", *(column for column in table.columns if column not in ("where", "why"))]]

    def _torch_times(self, repeats: int) -> dict[str, float]:
        """ms of each node that torch computes, the median, on an image of noise."""
        clock = _Clock(self.graph)
        examples = [_noise(node) for node in self.graph.graph.nodes if node.op == "placeholder"]
        with torch.no_grad():
            for _ in range(repeats):
                clock.run(*examples)
        return {name: 1000 * float(np.median(seconds)) for name, seconds in clock.seconds.items()}

    def __repr__(self) -> str:
        where = [where for where, _ in self.parts()]
        return f"Segments({where.count('engine')} in the engine, {where.count('torch')} operators in torch)"


def _noise(node: fx.Node) -> Tensor:
    kind = node.meta["dtype"]
    return (
        torch.randn(node.meta["shape"], dtype=kind)
        if kind.is_floating_point
        else torch.zeros(node.meta["shape"], dtype=kind)
    )


class _Clock(fx.Interpreter):
    """Runs a graph and takes the time of each node."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.seconds: dict[str, list[float]] = {}

    def run_node(self, node: fx.Node) -> Any:
        start = time.thread_time()
        output = super().run_node(node)
        self.seconds.setdefault(node.name, []).append(time.thread_time() - start)
        return output


def segmented(
    model: nn.Module, example: Example, form: Callable[[Network], Network] = lambda network: network
) -> Segments:
    """The network in parts; `form` is applied to each part's network, such as `tuning.tuned`.

    Raises ValueError where the engine has no part with weights, for then there is nothing to gain.
    """
    graph = recorded(model, example)
    missing = {node.name: f"{reason}" for node, reason in lowered(graph).missing.items()}
    parts = _Parts(missing)
    partitioner = CapabilityBasedPartitioner(graph, parts, allows_single_node_partition=True)
    chosen = [p for p in partitioner.propose_partitions() if any(_has_weights(node) for node in p.nodes)]
    if not chosen:
        raise ValueError("the engine has no layer of this network: " + "; ".join(missing.values()))
    fused = partitioner.fuse_partitions(chosen)
    for node in fused.graph.nodes:
        if node.op == "call_module":
            part = _with_constants(fused, node)
            fused.set_submodule(str(node.target), Segment(part, form))
    fused.graph.eliminate_dead_code()
    fused.recompile()
    return Segments(fused, missing)


def _with_constants(fused: fx.GraphModule, call: fx.Node) -> fx.GraphModule:
    """The part that a node calls, with the constants that it is called with as its own; the call without them."""
    part = fused.get_submodule(str(call.target))
    assert isinstance(part, fx.GraphModule)
    places = [node for node in part.graph.nodes if node.op == "placeholder"]
    for parameter, given in zip(places, call.args, strict=True):
        if isinstance(given, fx.Node) and given.op == "get_attr":
            part.register_buffer(parameter.name, attribute(fused, str(given.target)))
            with part.graph.inserting_before(parameter):
                constant = part.graph.get_attr(parameter.name)
            constant.meta = dict(given.meta)
            parameter.replace_all_uses_with(constant)
            part.graph.erase_node(parameter)
    call.args = tuple(given for given in call.args if not (isinstance(given, fx.Node) and given.op == "get_attr"))
    part.recompile()
    return part


class _Parts(OperatorSupportBase):
    """What the engine has, for the partitioner: an output of several is where all of them are."""

    def __init__(self, missing: dict[str, str]) -> None:
        self.missing = missing

    def is_node_supported(self, submodules: Any, node: fx.Node) -> bool:
        if node.target is operator.getitem:
            return self.is_node_supported(submodules, node.args[0])  # type: ignore[arg-type]
        return node.op == "call_function" and node.name not in self.missing


_PRODUCTS = {torch.ops.aten.convolution.default, torch.ops.aten.addmm.default, torch.ops.aten.mm.default}


def _has_weights(node: fx.Node) -> bool:
    """Whether a node multiplies with weights of the network."""
    return node.target in _PRODUCTS and any(read.op == "get_attr" for read in node.all_input_nodes)
