"""Which kept neighbours become one, whose weights they take, and how their adapters begin."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..core.batch import Example, call, inputs
from ..core.modeling_folded import LowRank, apply_fold, blocks, linears
from ..core.task import evaluating
from . import equations as eq
from .folding import Fold, removed
from .ranking import loss

REPRESENTATIVES = ("first", "mean", "regression", "least-loss")
STARTS = ("zero", "svd", "activations")
Weights = dict[str, dict[str, Tensor]]  # of a block: by the name of a linear layer its weight and bias
Inputs = dict[int, dict[str, Tensor]]  # X X^T (in, in) of what a linear layer reads, by block and name


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
    """A folded copy whose groups take the weights of a representative, and whose adapters begin as one of STARTS."""
    members = [block for group in fold.groups for block in group]
    asked = "regression" == representative or (start == "activations" and fold.rank)
    seen = inputs_seen(model, members, batches) if members and asked else {}
    copy = removed(model, fold.kept)
    layers, plan = blocks(copy), fold.logical()
    before = {layer: weights(layers[layer]) for group in plan["groups"] for layer in group}
    read = {layer: seen.get(fold.kept[layer], {}) for layer in before}
    for group in plan["groups"]:
        _represent(copy, {layer: before[layer] for layer in group}, representative, batches, read)
    apply_fold(copy, plan)
    if start != "zero" and fold.rank:
        for layer, matrices in before.items():
            _from_residual(layers[layer], matrices, read[layer] if start == "activations" else {})
    return copy


def inputs_seen(model: nn.Module, members: Sequence[int], batches: Sequence[Example]) -> Inputs:
    """What the linear layers of some blocks read of the batches, as X X^T (in, in) over all tokens."""
    seen: Inputs = {block: {} for block in members}
    handles = [
        linear.register_forward_pre_hook(_adds(seen[block], name))
        for block in members
        for name, linear in linears(blocks(model)[block]).items()
    ]
    try:
        with torch.no_grad(), evaluating(model):
            for x in batches:
                call(model, inputs(x))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _adds(sums: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple) -> None:
        x = args[0].flatten(0, -2).float()  # (tokens, in)
        sums[name] = sums.get(name, 0) + x.T @ x

    return hook


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


def _represent(
    copy: nn.Module, members: dict[int, Weights], representative: str, batches: Sequence[Example], read: Inputs
) -> None:
    """Write the group's common weights into all its blocks; `members` are the weights of each layer before."""
    if representative == "least-loss":
        common = members[min(members, key=lambda layer: _loss_with(copy, members, layer, batches))]
    else:
        first = blocks(copy)[next(iter(members))]
        common = common_weights(first, list(members.values()), representative, [read[layer] for layer in members])
    for layer in members:
        put(blocks(copy)[layer], common)


def _loss_with(copy: nn.Module, members: dict[int, Weights], chosen: int, batches: Sequence[Example]) -> float:
    """The loss where all layers of a group have the weights of one of them."""
    for layer in members:
        put(blocks(copy)[layer], members[chosen])
    return loss(copy, batches)


def common_weights(
    block: nn.Module, members: list[Weights], representative: str, read: Sequence[dict[str, Tensor]]
) -> Weights:
    """The weights of a group: its 'first' member's, their 'mean', or the 'regression' of Card (14) on what they read.

    `block` is one of the members, of whose linear layers the matrices lie as theirs do.
    """
    if representative == "first":
        return members[0]
    common = {
        name: {part: torch.stack([member[name][part] for member in members]).mean(0) for part in parts}
        for name, parts in members[0].items()
    }
    if representative == "regression":
        for name in common.keys() & read[0].keys():
            linear = linears(block)[name]
            W = torch.stack([upright(linear, member[name]["weight"]) for member in members])  # (G, out, in)
            mean = eq.regression_mean(W, torch.stack([sums[name] for sums in read]))
            common[name]["weight"] = upright(linear, mean).to(W.dtype)
    return common


def upright(linear: nn.Module, weight: Tensor) -> Tensor:
    """A layer's matrix as (out, in), or back: GPT-2 keeps it the other way round."""
    return weight if isinstance(linear, nn.Linear) else weight.T


def _from_residual(block: nn.Module, matrices: Weights, read: dict[str, Tensor]) -> None:
    """Adapters begin as the best of their rank for what sharing took away (Relaxed Recursive Transformers)."""
    adapters = {name: module for name, module in block.named_modules() if isinstance(module, LowRank)}
    for name, module in adapters.items():
        gap = upright(module.base, matrices[name]["weight"] - module.base.get_parameter("weight").detach())
        B, A = correction(gap, module.A.shape[0], read.get(name))
        with torch.no_grad():
            module.A[: len(A)], module.B[:, : len(A)] = A, B  # a matrix may have fewer ranks than were asked for


def correction(gap: Tensor, rank: int, read: Tensor | None) -> tuple[Tensor, Tensor]:
    """The best of a rank for what a matrix (out, in) lacks, Card (11), or for what it reads, Card (15): B and A."""
    return eq.low_rank(gap, rank) if read is None else eq.low_rank_of_inputs(gap, read, rank)
