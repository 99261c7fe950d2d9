"""One search over both moves, removing a block and sharing among neighbours, by the loss that is measured."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from heapq import nsmallest

from torch import nn

from ..core.batch import Example
from ..core.modeling_folded import blocks, linears, out_in
from .folding import Fold, Sizes
from .ranking import loss, without
from .sharing import Inputs, Weights, common_weights, correction, upright, weights

UNITS = ("bytes", "operations")
LARGEST = 4  # blocks in a group
BEAM = 2  # depths of a size whose best fold is looked into further, those of fewest blocks
TRIED = 3  # moves of each kind from each of these that are measured: those that promise least loss
FIRST = 4  # batches that every fold is measured on
CLOSE = 3  # folds of a depth that are measured on all batches, those of least loss on the first
RANK = 16  # of the adapters that moves are measured with, until it is known what the budget leaves for them
FINAL = 10  # folds within the budget that are measured once more, with adapters of the rank that it leaves
ROUNDING = 1e-9  # five sixths from one are a little less than a sixth

Saved = Callable[[Fold], float]


@dataclass(frozen=True)
class FoldMove:
    """One block that goes, or neighbours that share; `loss` is measured on the whole model with this move alone."""

    blocks: tuple[int, ...]
    loss: float

    @property
    def kind(self) -> str:
        """'remove' or 'share'."""
        return "share" if len(self.blocks) > 1 else "remove"


@dataclass(frozen=True)
class FoldSearch:
    """What a search needs: the model, what its fold is to save, and how groups get their weights.

    rank: the least that adapters may have. representative, start: as the recipe has them. saved: the share that a
    fold saves, `goal` what it must. seen: what blocks read of the batches. sharing: whether blocks may share.
    """

    model: nn.Module
    batches: Sequence[Example]
    saved: Saved
    goal: float
    rank: int
    representative: str
    start: str
    seen: Inputs = field(default_factory=dict)
    sharing: bool = True

    @property
    def largest_rank(self) -> int:
        """Half of the smaller side of a block's smallest matrix: from there on an adapter is as large as it."""
        return min(min(out_in(linear)) for linear in linears(blocks(self.model)[0]).values()) // 2

    def loss(self, fold: Fold) -> float:
        """Nats a token of the first batches, of the model folded so, before any cure; it is as it was afterwards."""
        return self._loss(fold, self.batches[:FIRST])

    def sure(self, fold: Fold) -> float:
        """The same on all batches."""
        return self._loss(fold, self.batches)

    def _loss(self, fold: Fold, batches: Sequence[Example]) -> float:
        with without(self.model, fold.kept, batches[0]), self._sharing(fold):
            return loss(self.model, batches)

    @contextmanager
    def _sharing(self, fold: Fold) -> Iterator[None]:
        """The model's own blocks with the matrices that a group's and its adapters would give them."""
        layers = blocks(self.model)
        before = {block: own(layers[block]) for group in fold.groups for block in group}
        try:
            for group in fold.groups:
                members = [weights(layers[block]) for block in group]
                for block, matrices in zip(group, self._shared(group, members, fold.rank), strict=True):
                    set_own(layers[block], matrices)
            yield
        finally:
            for block, parameters in before.items():
                set_own(layers[block], parameters)

    def _shared(self, group: tuple[int, ...], members: list[Weights], rank: int) -> Iterator[Weights]:
        """What each member of a group computes with: the common matrices and what its adapter begins as."""
        first, read = blocks(self.model)[group[0]], [self.seen.get(block, {}) for block in group]
        common = common_weights(first, members, self.representative, read)
        for member, sums in zip(members, read, strict=True):
            matrices = {name: dict(parts) for name, parts in common.items()}
            for name, linear in linears(first).items() if rank and self.start != "zero" else ():
                gap = upright(linear, member[name]["weight"] - common[name]["weight"])  # (out, in)
                B, A = correction(gap, rank, sums.get(name) if self.start == "activations" else None)
                matrices[name]["weight"] = common[name]["weight"] + upright(linear, B @ A).to(gap)
            yield matrices


def own(block: nn.Module) -> Weights:
    """A block's own matrices and biases themselves, by layer and name."""
    return {name: dict(linear.named_parameters(recurse=False)) for name, linear in linears(block).items()}


def set_own(block: nn.Module, values: Weights) -> None:
    """Put other matrices and biases in the place of a block's, which are not written to."""
    for name, linear in linears(block).items():
        for part, tensor in values[name].items():
            setattr(linear, part, tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, False))


def saver(sizes: Sizes, unit: str) -> Saved:
    """The share of a model's 'bytes' that a fold saves, or of the 'operations' of its blocks, which take its time."""
    if unit == "bytes":
        return lambda fold: 1 - sizes.folded(fold) / sizes.P0
    matrices = sum(rows * columns for rows, columns in sizes.shapes)
    adapters = sum(rows + columns for rows, columns in sizes.shapes)

    def saved(fold: Fold) -> float:
        kept = len(fold.kept) * matrices + sum(map(len, fold.groups)) * fold.rank * adapters
        return 1 - kept / (sizes.N * matrices)

    return saved


def steps_from(fold: Fold, sharing: bool) -> list[tuple[Fold, tuple[int, ...]]]:
    """The folds that one more move makes of a fold, each with its move: a lone block goes, or neighbours share.

    Neighbours are blocks that follow one another among the kept; a group may take in a neighbour or another group.
    """
    kept, grouped = fold.kept, {block: group for group in fold.groups for block in group}
    steps: list[tuple[Fold, tuple[int, ...]]] = [
        (replace(fold, kept=tuple(other for other in kept if other != block)), (block,))
        for block in kept
        if block not in grouped and len(kept) > 1
    ]
    for first in range(len(kept) if sharing else 0):
        for size in range(2, LARGEST + 1):
            run = kept[first : first + size]
            inside = {grouped[block] for block in run if block in grouped}
            is_new = len(run) == size and run not in fold.groups and all(set(group) <= set(run) for group in inside)
            if is_new:
                groups = tuple(sorted([*(group for group in fold.groups if group not in inside), run]))
                steps.append((replace(fold, groups=groups), run))
    return steps


def blocks_saved(fold: Fold, count: int) -> int:
    """Of how many blocks the weights are saved."""
    return count - len(fold.kept) + sum(len(group) - 1 for group in fold.groups)


def searched(search: FoldSearch, tried: int = TRIED, beam: int = BEAM) -> tuple[Fold, tuple[FoldMove, ...]]:
    """The fold that saves the goal by removals, or with fewest blocks of which some share; all moves measured alone.

    Folds grow block by block: of every number of blocks saved, the best fold at each of the `beam` least depths goes
    on, by the `tried` moves of each kind whose losses alone add up to least. So removals come first, which
    save operations too and of which a cure gives more back than of groups, and what a whole block more would save too
    much is left to a group and its adapters. ValueError where no fold saves so much.
    """
    count = len(blocks(search.model))
    start = Fold(tuple(range(count)), (), min(RANK, search.largest_rank) if search.rank else 0)
    base = search.loss(start)
    moves = {run: search.loss(fold) for fold, run in steps_from(start, search.sharing)}
    gains = {run: value - base for run, value in moves.items()}
    levels: dict[int, dict[Fold, float]] = {0: {start: base}}
    complete: dict[Fold, float] = {}
    for level in range(count):
        candidates = levels.get(level, {})
        complete |= {fold: value for fold, value in candidates.items() if fitting(search, fold) is not None}
        going = {fold: value for fold, value in candidates.items() if fold not in complete}
        for fold in of_each_depth(search, going, beam):
            for nearby, run in promising(fold, gains, tried if level else len(moves), search.sharing):
                measured = levels.setdefault(blocks_saved(nearby, count), {})
                if nearby not in measured:
                    measured[nearby] = search.loss(nearby) if level else moves[run]
    if not complete:
        raise ValueError(f"no fold saves {search.goal:.3g} of the model: lower removal")
    return _best(search, complete), tuple(FoldMove(run, value) for run, value in moves.items())


def of_each_depth(search: FoldSearch, measured: Mapping[Fold, float], beam: int) -> list[Fold]:
    """For each of the `beam` least numbers of blocks that stay, the fewest first, the fold of least loss for sure.

    Of those that stay as deep, the `CLOSE` of least loss are measured on all batches.
    """
    depths = sorted({len(fold.kept) for fold in measured})[:beam]
    close = [nsmallest(CLOSE, [fold for fold in measured if len(fold.kept) == depth], key=measured.__getitem__)
             for depth in depths]  # fmt: skip
    return [min(folds, key=search.sure) if len(folds) > 1 else folds[0] for folds in close]


def _best(search: FoldSearch, complete: Mapping[Fold, float]) -> Fold:
    """Of the folds without groups, and those that keep fewest blocks more and share no more than they must, the best.

    That is the one of least loss, each with adapters of the largest rank that the goal leaves room for.
    """
    count = len(blocks(search.model))
    alone = max((len(fold.kept) for fold in complete if not fold.groups), default=0)
    sizes = {fold: (len(fold.kept), blocks_saved(fold, count)) for fold in complete if fold.groups}
    fewest = min((size for size in sizes.values() if size[0] > alone), default=(0, 0))
    suiting = [fold for fold in complete if not fold.groups or sizes[fold] == fewest]
    close = nsmallest(FINAL, suiting, key=complete.__getitem__)
    return min((replace(fold, rank=fitting(search, fold) or 0) for fold in close), key=search.sure)


def fitting(search: FoldSearch, fold: Fold) -> int | None:
    """The largest rank with which a fold saves the goal, 0 where nothing is shared; None where it does not."""
    ranks = range(search.rank, max(search.rank, search.largest_rank) + 1) if fold.groups and search.rank else (0,)
    least = search.goal - ROUNDING
    return max((rank for rank in ranks if search.saved(replace(fold, rank=rank)) >= least), default=None)


def promising(
    fold: Fold, gains: dict[tuple[int, ...], float], tried: int, sharing: bool
) -> list[tuple[Fold, tuple[int, ...]]]:
    """The moves of each kind from a fold that cost least for each block saved, if what each costs alone adds up."""
    count = blocks_saved(fold, len(fold.kept))
    now = _added(fold.groups, gains)

    def rate(step: tuple[Fold, tuple[int, ...]]) -> float:
        nearby, run = step
        if len(run) == 1:
            return gains[run]
        return (_added(nearby.groups, gains) - now) / (blocks_saved(nearby, len(fold.kept)) - count)

    ranked = sorted(steps_from(fold, sharing), key=rate)
    kinds = [[step for step in ranked if (len(step[1]) > 1) == shares][:tried] for shares in (False, True)]
    return [*kinds[0], *kinds[1]]


def _added(groups: Sequence[tuple[int, ...]], gains: dict[tuple[int, ...], float]) -> float:
    """What groups cost if it adds up: as measured, or as the neighbours' pairs, the cheaper removal for one unknown."""
    pairs = ([group] if group in gains else [group[k : k + 2] for k in range(len(group) - 1)] for group in groups)
    return sum(gains.get(pair, min(gains[(block,)] for block in pair)) for split in pairs for pair in split)


def order(fold: Fold, moves: Sequence[FoldMove]) -> tuple[int, ...]:
    """Blocks from the first to go: those that went, then the others, each part by what the loss is without it."""
    alone = {move.blocks[0]: move.loss for move in moves if move.kind == "remove"}
    return tuple(sorted(alone, key=lambda block: (block in fold.kept, alone[block])))
