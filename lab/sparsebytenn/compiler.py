"""From a trained network to the engine's operators: norms folded, activations and sums fused, rows packed.

The network is recorded as torch's own operators (`lowering.tape`) and lowered one by one (`lowering`). A value may be
fused into what reads it only if nothing else reads it, and only by how it is read: as an input or as what is added.
"""

import json
from dataclasses import replace
from typing import Any

import numpy as np
from torch import fx, nn

from ..core import kernels
from ..core.batch import Example, tensors
from .lowering import lowered, network_of
from .lowering.builder import LacksError
from .lowering.tape import recorded
from .packed import Network, Op
from .scheduling import chained, joined

K_TILE = 128  # columns of W whose rows of X stay in the first-level cache
SINGLE_COST = 2.5  # of a weight alone, in weights of a block of 4


def compile(model: nn.Module, example: Example, *, interleaved: bool = False) -> Network:
    """The operators of a network for one input of the example's shapes, (1, ...) each; the network is left as it is.

    `interleaved` takes pictures as (H, W, C) instead of (C, H, W). Raises LacksError, a ValueError that names
    all that the engine does not have.
    """
    graph = recorded(model, _checked(model, example, interleaved))
    lowering = lowered(graph, interleaved=interleaved)
    if lowering.missing:
        lacks = [f"{node.meta['layer']} ({node.meta['origin']}) {reason}" for node, reason in lowering.missing.items()]
        raise LacksError(f"the engine cannot run the whole network: {'; '.join(dict.fromkeys(lacks))}")
    return chained(joined(network_of(lowering, described(graph), packed_rows)))


def _checked(model: nn.Module, example: Example, interleaved: bool) -> Example:
    """The example, or a one-line ValueError where the engine takes no such input."""
    given = list(tensors(example))
    if interleaved and (len(given) != 1 or given[0].dim() != 4):
        shapes = ", ".join(str(tuple(x.shape)) for x in given)
        raise ValueError(f"example has shape {shapes}: interleaved channels are those of one picture, (1, C, H, W)")
    if wrong := [tuple(x.shape) for x in given if x.dim() < 2 or len(x) != 1]:
        raise ValueError(f"example has shape {wrong[0]}: the engine takes one at a time, (1, C, H, W)")
    if any(tensor.is_complex() for tensor in (*given, *model.parameters(), *model.buffers())):
        raise ValueError("the network or its example holds complex numbers: the engine computes with real ones")
    return example


def described(graph: fx.GraphModule) -> dict[str, Any]:
    """What a packed file says of its inputs and outputs, the batch's axis left out.

    takes: of inputs that are not one picture, the shape of each behind the number of its axes. answer: the shape of a
    single output; of several, shapes, and a tree: JSON in which an output stands as its number.
    """
    output = next(node for node in graph.graph.nodes if node.op == "output").args[0]
    leaves: list[fx.Node] = []
    tree = _tree(output, leaves)
    shapes = [leaf.meta["shape"] for leaf in leaves]
    if wrong := [shape for shape in shapes if not shape or shape[0] != 1]:
        raise ValueError(f"the network gives {wrong[0]}: the engine gives tensors whose first axis is the batch's")
    takes = [node.meta["shape"] for node in graph.graph.nodes if node.op == "placeholder"]
    meta: dict[str, Any] = {} if [len(shape) for shape in takes] == [4] else {"takes": _flat(takes)}
    if output is leaves[0]:
        (shape,) = shapes
        return meta | {"classes": int(np.prod(shape[1:2])), "answer": list(shape[1:])}
    return meta | {"shapes": _flat(shapes), "tree": json.dumps(tree)}


def _flat(shapes: list[tuple[int, ...]]) -> list[int]:
    """Shapes one behind the other, without the batch's axis, each behind the number of its axes."""
    return [n for shape in shapes for n in (len(shape) - 1, *shape[1:])]


def _tree(output: Any, leaves: list[fx.Node]) -> Any:
    """An output's structure, its tensors as numbers in the order of `leaves`, to which they are added."""
    if isinstance(output, fx.Node):
        leaves.append(output)
        return len(leaves) - 1
    if isinstance(output, dict):
        return {"dict": {str(key): _tree(part, leaves) for key, part in output.items()}}
    if isinstance(output, (tuple, list)):
        return {"list" if isinstance(output, list) else "tuple": [_tree(part, leaves) for part in output]}
    if output is None:
        return None
    raise ValueError(
        f"the network answers with a {type(output).__name__}: the engine gives tensors, in tuples, lists, dicts"
    )


def packed_rows(op: Op, weight: np.ndarray) -> kernels.Sparse:
    """A matrix (OC, columns) in the pattern that usually runs fastest, in k-tiles where a map is multiplied.

    Blocks of zeros are left out, but where there are none to speak of: an index costs a load each. Single weights are
    left out where that spares far more.
    """
    if op.kind == "linear":
        return _without_zeros(weight, kernels.GEMV_BLOCK, kernels.MAX_K_TILE)
    if mostly_single(weight):
        return kernels.pack(weight, block=1, k_tile=K_TILE)
    return _without_zeros(weight, kernels.BLOCK, K_TILE)


def _without_zeros(weight: np.ndarray, block: int, k_tile: int) -> kernels.Sparse:
    sparse = kernels.pack(weight, block=block, k_tile=k_tile)
    is_sparse = len(sparse.blocks) < 0.97 * sparse.groups * sparse.columns
    return sparse if is_sparse else kernels.pack(weight, block=block, k_tile=k_tile, dense=True)


def mostly_single(weight: np.ndarray) -> bool:
    """Whether zeros stand so that single weights beat blocks of 4 rows: such a weight costs 2.5 times one in a block.

    weight (OC, columns). Measured on AVX2; where `tuning.tuned` measures, this says what is tried.
    """
    rows = np.pad(weight != 0, ((0, -len(weight) % kernels.BLOCK), (0, 0)))
    blocks = np.count_nonzero(rows.reshape(-1, kernels.BLOCK, weight.shape[1]).any(1))
    return bool(SINGLE_COST * np.count_nonzero(rows) < kernels.BLOCK * blocks)


def densified(network: Network) -> Network:
    """The network with its zeros stored and multiplied, but for int8: the dense baseline in the same engine."""
    dense = [op if op.weights is None or op.int8 else replace(op, weights=_dense(op.weights)) for op in network.ops]
    return replace(network, ops=dense)


def _dense(weights: kernels.Sparse) -> kernels.Sparse:
    block = max(weights.block, kernels.BLOCK)
    return kernels.pack(weights.to_dense(), block=block, k_tile=weights.k_tile, dense=True)
