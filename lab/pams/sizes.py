"""What a quantised network costs: parameters of 32 bits, bytes, bit operations, and what is only half rounded."""

from dataclasses import dataclass

from torch import Tensor, fx

from ..core import cost
from ..core.graph.operators import is_cat
from ..core.graph.tracing import module_of
from ..core.quantisation.placement import passes
from . import equations as eq
from .layers import Quantiser, RoundedLayer


@dataclass(frozen=True)
class Counts:
    """equivalent: the paper's count of 32-bit parameters, Card (13), which rounds biases too; bitops: Card (14).

    bytes: what a file must hold, b / 8 for each rounded weight and 4 for every other parameter. half: the
    layers with rounded weights that read a float tensor.
    """

    parameters: int
    quantised: int
    equivalent: float
    macs: int
    bitops: int
    bytes: int
    half: tuple[str, ...]


def count(plain: fx.GraphModule, quantised: fx.GraphModule, example: Tensor) -> Counts:
    """The counts of a network and its quantised form, for `example` as given."""
    total = cost.parameters(plain)
    rounded = {name: m for name, m in quantised.named_modules() if isinstance(m, RoundedLayer)}
    sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in rounded.items()}
    bits = next((module.bits for module in rounded.values()), 32)
    spent, read = cost.layer_macs(plain, example), input_bits(quantised)
    layers = [(macs, rounded[name].bits if name in rounded else 32, read.get(name, 32)) for name, macs in spent.items()]
    half = tuple(name for name in rounded if read.get(name, 32) == 32)
    P_q = sum(sizes.values())
    weights = sum(module.weight.numel() for module in rounded.values())
    return Counts(
        parameters=total,
        quantised=P_q,
        equivalent=eq.equivalent_parameters(total, P_q, bits),
        macs=cost.macs(plain, example),
        bitops=eq.bit_operations(layers),
        bytes=4 * (total - weights) + round(weights * bits / 8),
        half=half,
    )


def input_bits(graph: fx.GraphModule) -> dict[str, int]:
    """The bits of what each layer reads, 32 for float."""
    layers = [node for node in graph.graph.nodes if node.op == "call_module" and node.all_input_nodes]
    return {str(node.target): _bits(node.all_input_nodes[0]) for node in layers}


def _bits(node: fx.Node) -> int:
    module = module_of(node)
    if isinstance(module, Quantiser):
        return module.bits
    if is_cat(node) or passes(node):
        return max(_bits(source) for source in node.all_input_nodes)
    return 32
