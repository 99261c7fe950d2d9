"""Which kept neighbours become one, whose weights they take, and how their adapters begin."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..core.batch import Example
from ..core.modeling_folded import LowRank, apply_fold, blocks, linears
from . import equations as eq
from .folding import Fold, removed
from .ranking import loss

REPRESENTATIVES = ("first", "mean", "least-loss")
Weights = dict[str, dict[str, Tensor]]  # of a block: by the name of a linear layer its weight and bias


def pairs(kept: Sequence[int], alike: Tensor, count: int) -> tuple[tuple[int, int], ...]:
    """The `count` disjoint pairs of neighbours among the kept whose states behind them are most alike in sum.

    alike is the similarity (N + 1, N + 1) of Card (8). ValueError where the kept blocks are too few.
    """
    if 2 * count > len(kept):
        raise ValueError(
            f"sharing asks for {count} pairs among {len(kept)} kept blocks: lower sharing or removal, two blocks a pair"
        )
    best: list[list[tuple[float, tuple]]] = [[(0.0, ())] + [(float("-inf"), ())] * count for _ in range(2)]
    for k in range(1, len(kept)):
        pair = (kept[k - 1], kept[k])
        gain = float(alike[pair[0] + 1, pair[1] + 1])
        row = list(best[k])
        for done in range(1, count + 1):
            value, chosen = best[k - 1][done - 1]
            row[done] = max(row[done], (value + gain, (*chosen, pair)))
        best.append(row)
    return best[len(kept)][count][1]


def shared(model: nn.Module, fold: Fold, representative: str, start: str, batches: Sequence[Example]) -> nn.Module:
    """A folded copy whose groups take the weights of a representative; adapters begin at zero or by 'svd'."""
    copy = removed(model, fold.kept)
    layers, plan = blocks(copy), fold.logical()
    before = {layer: weights(layers[layer]) for group in plan["groups"] for layer in group}
    for group in plan["groups"]:
        _represent(copy, {layer: before[layer] for layer in group}, representative, batches)
    apply_fold(copy, plan)
    if start == "svd" and fold.rank:
        for layer, matrices in before.items():
            _from_residual(layers[layer], matrices)
    return copy


def weights(block: nn.Module) -> Weights:
    """Copies of a block's matrices and biases, by layer and name."""
    return {
        name: {part: tensor.detach().clone() for part, tensor in linear.named_parameters(recurse=False)}
        for name, linear in linears(block).items()
    }


def put(block: nn.Module, values: Weights) -> None:
    """Copy matrices and biases into a block."""
    with torch.no_grad():
        for name, linear in linears(block).items():
            for part, tensor in linear.named_parameters(recurse=False):
                tensor.copy_(values[name][part])


def _represent(copy: nn.Module, members: dict[int, Weights], representative: str, batches: Sequence[Example]) -> None:
    """Write the group's common weights into all its blocks; `members` are the weights of each layer before."""
    if representative == "mean":
        common = _mean(list(members.values()))
    elif representative == "least-loss":
        common = members[min(members, key=lambda layer: _loss_with(copy, members, layer, batches))]
    else:
        common = next(iter(members.values()))
    for layer in members:
        put(blocks(copy)[layer], common)


def _loss_with(copy: nn.Module, members: dict[int, Weights], chosen: int, batches: Sequence[Example]) -> float:
    """The loss where all layers of a group have the weights of one of them."""
    for layer in members:
        put(blocks(copy)[layer], members[chosen])
    return loss(copy, batches)


def _mean(members: list[Weights]) -> Weights:
    return {
        name: {part: torch.stack([member[name][part] for member in members]).mean(0) for part in parts}
        for name, parts in members[0].items()
    }


def _from_residual(block: nn.Module, matrices: Weights) -> None:
    """Adapters begin as the best of their rank for what sharing took away (Relaxed Recursive Transformers)."""
    adapters = {name: module for name, module in block.named_modules() if isinstance(module, LowRank)}
    for name, module in adapters.items():
        gap = matrices[name]["weight"] - module.base.get_parameter("weight").detach()
        gap = gap if isinstance(module.base, nn.Linear) else gap.T  # (out, in)
        B, A = eq.low_rank(gap, module.A.shape[0])  # (out, r), (r, in)
        with torch.no_grad():
            module.A[: len(A)], module.B[:, : len(A)] = A, B  # a matrix may have fewer ranks than were asked for
