"""A network on grids, as any method leaves it."""

import platform
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from lab.core.graph.operators import CONVS, TRANSPOSED
from lab.core.graph.tracing import module_of
from lab.core.quantisation.bn_folding import fold_batch_norms
from lab.core.quantisation.placement import Placement, everywhere, in_graph_order, insert_quantisers, with_group_signs
from lab.core.quantisation.qparams import FixedQuantiser, QParams, set_int_repr

# Without VNNI, x86 adds two products of 8 bits in 16, which are too few. OpenVINO saturates there, but for weights of 7
# bits; onnxruntime does where two activations are multiplied that are int8 both.
CPU = Path("/proc/cpuinfo")
HAS_VNNI = not (platform.machine() == "x86_64" and CPU.exists() and "vnni" not in CPU.read_text())
KINDS = ["uint8", "int8"] if HAS_VNNI else ["uint8"]  # of activations that are multiplied with one another

LAYERS = (*CONVS, *TRANSPOSED, nn.Linear)


class Largest(fx.Interpreter):
    """The largest absolute value of every tensor."""

    def __init__(self, graph: fx.GraphModule, x: torch.Tensor) -> None:
        super().__init__(graph)
        self.values: dict[str, float] = {}
        with torch.no_grad():
            self.run(x)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            self.values[n.name] = float(value.abs().max())
        return value


def quantised(model: nn.Module, x: torch.Tensor, per_channel: bool = False, bits: int = 8) -> fx.GraphModule:
    """Every layer's weight and what it reads and gives, placed as 'full' does, on grids read from x."""
    graph = fold_batch_norms(model, x)
    layers = [node for node in graph.graph.nodes if isinstance(module_of(node), LAYERS)]
    points = with_group_signs(in_graph_order(graph, everywhere(graph, layers)))
    largest = Largest(graph, x).values
    reach: dict[str, float] = {}
    for point in points:
        reach[point.group] = max(reach.get(point.group, 1e-3), largest[point.source])
    for layer in {str(node.target): module_of(node) for node in layers}.values():
        round_weight(layer, per_channel, bits)

    def quantiser(point: Any) -> FixedQuantiser:
        return FixedQuantiser(QParams.from_max(reach[point.group], 127 if point.signed else 255, point.signed))

    insert_quantisers(graph, Placement((), tuple(points), {}), quantiser)
    return graph


@torch.no_grad()
def round_weight(layer: Any, per_channel: bool, bits: int) -> None:
    axis, n = int(isinstance(layer, TRANSPOSED)), 2 ** (bits - 1) - 1
    weight = layer.weight.detach()
    over = [k for k in range(weight.dim()) if k != axis]
    largest = weight.abs().amax(over, keepdim=True) if per_channel else weight.abs().max()
    step = largest.clamp(min=1e-12) / n
    set_int_repr(layer, (weight / step).round(), step)
