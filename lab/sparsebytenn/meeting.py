"""Zeros that stand by themselves, met in blocks: an order of rows in which most blocks of 4 rows x 1 column are zero.

Which channels a network counts first changes nothing, so the rows of all layers that write one class of channels may
change places together (`rearrange`). Rows whose zeros lie in the same columns become neighbours: those of a block
pattern whose rows were shuffled are brought together again exactly, zeros without a pattern gain a few blocks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ..core.batch import Example
from ..core.errors import first_line
from ..core.graph.channels import Channels
from ..core.graph.operators import in_groups
from ..core.graph.tracing import trace
from ..core.kernels import BLOCK
from .compiler import mostly_single
from .packed import Network
from .rearrange import moves, rearranged

LOOSE = 0.05  # of a class's weights: so many zeros outside of zero blocks are worth a search
GAIN = 0.01  # of a class's blocks: so many less are worth another order
COMPACTED = 32  # groups after which rows that are taken leave the greedy's table


@dataclass(frozen=True)
class Met:
    """A network with its rows in the order found.

    came, meet: of each layer whose rows moved, its blocks of 4 x 1 that are not zero, as the rows came and as they
    are. stays: of each layer with zeros outside of zero blocks whose rows did not move, the reason.
    """

    model: nn.Module
    came: dict[str, int] = field(default_factory=dict)
    meet: dict[str, int] = field(default_factory=dict)
    stays: dict[str, str] = field(default_factory=dict)

    def described(self, network: Network) -> Network:
        """The packed network of this model with lists in its description: one entry an operator, 0 or '' for most."""
        if not (self.came or self.stays):
            return network
        names = [op.name if op.weights is not None else "" for op in network.ops]
        came, meet = ([counts.get(name, 0) for name in names] for counts in (self.came, self.meet))
        return replace(
            network,
            meta=network.meta | {"came": came, "meet": meet, "stays": [self.stays.get(name, "") for name in names]},
        )


def met(model: nn.Module, example: Example) -> Met:
    """The network with its zeros met in blocks where that leaves out blocks; itself where there is nothing to gain."""
    loose = [name for name, support in _supports(model).items() if _is_loose([support])]
    if not loose:
        return Met(model)
    try:
        graph = trace(model, example).cpu()
        channels = Channels(graph)
    except ValueError as error:
        return Met(model, stays=dict.fromkeys(loose, first_line(error)))
    supports = _supports(graph)
    orders, stays = _orders(channels, supports)
    if not orders:
        return Met(model, stays=stays)
    moved = [name for writer in orders for name in channels.producers[channels.group_of(writer)] if name in supports]
    graph = rearranged(graph, moves(channels, orders), example)
    after = _supports(graph)
    came, meet = ({name: blocks(rows[name]) for name in moved} for rows in (supports, after))
    return Met(graph, came, meet, stays)


def columns(network: Network) -> dict[str, list[Any]]:
    """Of each operator the share of blocks that it would keep with rows as they came, NaN for rows that did not move.

    And why rows with zeros outside of zero blocks stayed.
    """
    came, totals = _listed(network, "came", 0), _totals(network)
    shares = [n / total if n else np.nan for n, total in zip(came, totals, strict=True)]
    return {"blocks as they came": shares, "rows stay": _listed(network, "stays", "")}


def summary(network: Network) -> str:
    """How much other orders of rows have found: 'rearranged: 41 % of blocks kept instead of 66 %', '' for nothing."""
    came, meet = _listed(network, "came", 0), _listed(network, "meet", 0)
    total = sum(n for n, blocks_came in zip(_totals(network), came, strict=True) if blocks_came)
    if not total:
        return ""
    return f"rearranged: {100 * sum(meet) / total:.0f} % of blocks kept instead of {100 * sum(came) / total:.0f} %"


def _listed(network: Network, key: str, blank: Any) -> list[Any]:
    """The entries of a list of the description, one an operator; all blank where there is no such list."""
    entries = network.meta.get(key)
    if not isinstance(entries, list) or len(entries) != len(network.ops):
        return [blank] * len(network.ops)
    return entries if all(type(entry) is type(blank) for entry in entries) else [blank] * len(network.ops)


def _totals(network: Network) -> list[int]:
    """Of each operator how many blocks it has with all of its zeros, 1 where it has no weights."""
    return [1 if op.weights is None else -(-op.weights.rows // BLOCK) * op.weights.columns for op in network.ops]


def _orders(channels: Channels, supports: dict[str, np.ndarray]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The order of each class that gains by one, under the name of a writer; of each other loose layer, why it stays.

    (C,): where each new channel stood.
    """
    orders: dict[str, torch.Tensor] = {}
    stays: dict[str, str] = {}
    fixed = channels.unordered | channels.frozen
    listed = {name for names in channels.producers.values() for name in names}
    stays |= {name: "its rows are not followed" for name in supports if name not in listed}
    for group, names in channels.producers.items():
        held = [name for name in names if name in supports]
        grouped = next((name for name in names if in_groups(channels.graph.get_submodule(name))), None)
        reason = fixed.get(group) or (f"{grouped} is a convolution in groups" if grouped else "")
        if not held or not _is_loose([supports[name] for name in held]):
            continue
        if reason:
            stays |= dict.fromkeys(held, reason)
            continue
        rows = np.concatenate([supports[name] for name in held], 1)
        order = best_order(rows)
        if all(mostly_single(supports[name][order]) for name in held):
            stays |= dict.fromkeys(held, "its weights are left out one by one")
        elif blocks(rows) - blocks(rows[order]) < GAIN * -(-len(rows) // BLOCK) * rows.shape[1]:
            stays |= dict.fromkeys(held, "no order has fewer blocks to speak of")
        else:
            orders[names[0]] = torch.from_numpy(order)
    return orders, {name: reason for name, reason in stays.items() if _is_loose([supports[name]])}


def _supports(model: nn.Module) -> dict[str, np.ndarray]:
    """Of each convolution and linear layer, which weights are not 0: (OC, IC * k * k)."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Linear))}
    return {n: _support(m.weight) for n, m in layers.items() if not in_groups(m) and m.weight.dim() > 1}


def _support(weight: torch.Tensor) -> np.ndarray:
    return (weight.detach().cpu() != 0).flatten(1).numpy()


def _is_loose(supports: list[np.ndarray]) -> bool:
    """Whether of a class's weights more than LOOSE are zeros in blocks that stay."""
    weights = sum(support.size for support in supports)
    return sum(_loose(support) for support in supports) > LOOSE * weights


def _loose(support: np.ndarray) -> int:
    return 0 if support.all() else int(sum((~group[:, group.any(0)]).sum() for group in _groups(support)))


def _groups(support: np.ndarray) -> Iterator[np.ndarray]:
    return (support[start : start + BLOCK] for start in range(0, len(support), BLOCK))


# -- the search --------------------------------------------------------------------------------------------------------


def blocks(support: np.ndarray) -> int:
    """Blocks of 4 rows x 1 column that are not zero, of a matrix (rows, columns) of bool; the last may have fewer rows.

    Each tap of a convolution is a column.
    """
    return _blocks(_words(support))


def best_order(support: np.ndarray) -> np.ndarray:
    """The best of three orders of the rows (rows, columns) of bool: greedy, sorted, and as they came, which wins a tie.

    Rows of equal zeros stand together in each. 2,048 rows x 20,000 columns take seconds.
    """
    words = _words(support)
    orders = [np.arange(len(words)), _sorted(words), _greedy(words)]
    return min(orders, key=lambda order: _blocks(words[order]))


def _words(support: np.ndarray) -> np.ndarray:
    """Rows (rows, columns) of bool as bits: (rows, words) uint64."""
    padded = np.pad(support, ((0, 0), (0, -support.shape[1] % 64)))
    return np.packbits(padded, 1).view(np.uint64)


def _blocks(words: np.ndarray) -> int:
    padded = np.pad(words, ((0, -len(words) % BLOCK), (0, 0))).reshape(-1, BLOCK, words.shape[1])
    return int(_sizes(np.bitwise_or.reduce(padded, 1)).sum())


def _sorted(words: np.ndarray) -> np.ndarray:
    return np.lexsort(words.T[::-1])


def _greedy(words: np.ndarray) -> np.ndarray:
    """Rows of equal zeros first, in fours; then groups, each opened by the row of most weights that is left.

    The row joins whose columns and those of the group have most in common: the largest part of all that either has.
    To let the row join that adds fewest columns would spend the empty rows on the fullest groups.
    """
    alike, rest = _alike(words)
    rest = rest[np.argsort(-_sizes(words[rest]), kind="stable")]
    order = [alike]
    while len(rest):
        taken = _grouped(words[rest], min(COMPACTED * BLOCK, len(rest)))
        order.append(rest[taken])
        rest = np.delete(rest, taken)
    return np.concatenate(order)


def _alike(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows that have equals, as many as make whole groups, the most of one kind first; and all others."""
    order = _sorted(words)
    starts = np.flatnonzero(np.append(True, (np.diff(words[order].view(np.int64), axis=0) != 0).any(1)))
    kinds = np.split(order, starts[1:])
    fours = sorted((kind[: len(kind) // BLOCK * BLOCK] for kind in kinds), key=len, reverse=True)
    rest = np.concatenate([kind[len(kind) // BLOCK * BLOCK :] for kind in kinds])
    return np.concatenate(fours), np.sort(rest)


def _grouped(words: np.ndarray, count: int) -> np.ndarray:
    """The first `count` rows that the greedy takes of these, which come with the most weights first."""
    taken: list[int] = []
    free, sizes = np.ones(len(words), bool), _sizes(words)
    for i in range(count):
        if i % BLOCK == 0:
            joins, union = int(free.argmax()), np.zeros_like(words[0])
        else:
            together = _sizes(words | union)
            shares = (sizes + _sizes(union) - together) / np.maximum(together, 1)
            joins = int(np.where(free, shares, -1).argmax())
        free[joins] = False
        union |= words[joins]
        taken.append(joins)
    return np.array(taken)


def _sizes(words: np.ndarray) -> np.ndarray:
    """How many bits each row has: (..., words) -> (...,)."""
    return np.bitwise_count(words).sum(-1, dtype=np.int64)
