"""Which channels of a network belong together: the groups that are cut, permuted and counted.

A group is all channels that a layer writes with all that they force: what a convolution writes, the batch norm behind
it and the residual sum it joins share a group. Pruning, decoupling and rearrangement all ask this question.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx

from .entries import COUNTED, OUTPUT, Entries
from .moves import Move, along, compact, core, is_move, move_of, varying
from .tracing import gives_tensors, shape, shared

__all__ = ["OUTPUT", "Channels", "Layout"]

Layout = tuple[int, ...]  # of each entry of an axis, the number of its channel


@dataclass
class Channels:
    """The channel groups of a traced network.

    `layouts` gives the channel axis of each node's output, `axes` which axis that is, and `moves` the nodes that a cut
    has to write again. `producers` are the layers that write a group, first one that writes all of it; `rows` has their
    output axes, `sizes` counts the channels of a group, and `joins` names the nodes that tie its producers. `frozen`
    tells which groups cannot be changed, with the reason, and `unordered` which may go but not change places. `heads`
    are the groups whose channels are heads of attention, `normalised` those that a LayerNorm normalises over: they are
    frozen, for it would have other statistics, unless `embeddings` asks for them.
    """

    graph: fx.GraphModule
    embeddings: bool = False
    layouts: dict[fx.Node, Layout] = field(default_factory=dict)
    axes: dict[fx.Node, int] = field(default_factory=dict)
    moves: dict[fx.Node, Move] = field(default_factory=dict)
    producers: dict[int, list[str]] = field(default_factory=dict)
    rows: dict[str, Layout] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    joins: dict[int, list[fx.Node]] = field(default_factory=dict)
    frozen: dict[int, str] = field(default_factory=dict)
    unordered: dict[int, str] = field(default_factory=dict)
    heads: set[int] = field(default_factory=set)
    normalised: set[int] = field(default_factory=set)
    _counts: dict[fx.Node, Layout] = field(default_factory=dict)  # the channels whose number a move is given
    _group_of: list[int] = field(default_factory=list)  # by channel
    _members: dict[int, list[int]] = field(default_factory=dict)  # the channels of a group in the order of its places
    _place_of: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with torch.device("cpu"):  # the numbers of channels are needed even where the network has shapes alone
            self._number()

    def _number(self) -> None:
        self.layers = {str(node.target) for node in self.graph.graph.nodes if node.op == "call_module"}
        self.shared = shared(self.graph)
        entries = Entries(self.graph, self.shared, self.embeddings)
        roots = entries.roots()
        self._find_moves(entries, roots)
        self.rows = {name: tuple(roots[ids].tolist()) for name, ids in entries.rows.items()}
        self._group(roots.tolist())
        for channel, reason in entries.reasons():
            self.frozen.setdefault(self._group_of[channel], reason)
        self.heads = {self._group_of[channel] for ids in entries.heads for channel in core(ids).unique().tolist()}
        settled = [(compact(roots[ids]), axis) for ids, axis in entries.normed]
        normed = {channel for ids, axis in settled if axis in varying(ids) for channel in core(ids).unique().tolist()}
        self.normalised = {self._group_of[channel] for channel in normed}
        for node, ids in entries.joins:
            for group in {self._group_of[channel] for channel in ids.tolist()} & set(self.producers):
                self.joins.setdefault(group, []).append(node)
        self._find_unordered()

    def _find_moves(self, entries: Entries, roots: Tensor) -> None:
        """Note each node's channel axis and what a cut has to write again; freeze what could not be written."""
        for node, value in entries.values.items():
            if not gives_tensors(node) or node in entries.indices:
                continue
            axes = varying(value) if isinstance(value, Tensor) else ()
            if isinstance(value, Tensor) and len(axes) < 2:
                self.axes[node] = axes[0] if axes else min(1, value.dim() - 1)
                self.layouts[node] = tuple(along(value, self.axes[node]).tolist()) if value.dim() else ()
            readers = [user for user in node.users if gives_tensors(user) or user.op == "output"]
            if len(axes) > 1 and not (is_move(node) and all(map(is_move, readers))):
                entries.freeze(value, f"{node.name} lays its channels on two axes")
            elif is_move(node) and len(axes) < 2:
                self._note_move(entries, node, roots)

    def _note_move(self, entries: Entries, node: fx.Node, roots: Tensor) -> None:
        """Note how a node is to be written again, or freeze what it reads."""
        try:
            move = move_of(node, entries.values.__getitem__)
            counted = tuple(source for source in node.all_input_nodes if entries.counts(source))
            move = move and replace(move, counted=counted)
        except ValueError as error:
            entries.freeze([entries.values[source] for source in node.all_input_nodes], str(error))
            return
        counts = [ids for step in (move.steps if move else [node]) for ids in entries.counted(step)]
        if move:
            self.moves[node] = move
            self._counts[node] = tuple(channel for ids in counts for channel in roots[core(ids)].unique().tolist())
        else:
            entries.freeze(counts, f"{node.name} reads {COUNTED}")

    def rewritten(self, kept: Mapping[int, Tensor]) -> dict[fx.Node, tuple[Move, Tensor, Tensor]]:
        """The nodes that a cut has to write again: how, and which entries of their source and of their output stay."""
        again = {}
        for node, move in self.moves.items():
            before, after = (self.expand(self.layouts.get(end, ()), kept) for end in (move.source, node))
            if not (before.all() and after.all() and self.expand(self._counts[node], kept).all()):
                again[node] = move, before, after
        return again

    def _group(self, roots: list[int]) -> None:
        """Gather the channels that a layer writes into one group, with all that other layers write of them."""
        parents: dict[int, int] = {}

        def find(channel: int) -> int:
            while (parent := parents.setdefault(channel, channel)) != channel:
                parents[channel] = channel = parents[parent]
            return channel

        for row in self.rows.values():
            for channel in row[1:]:
                group, other = sorted((find(row[0]), find(channel)))
                parents[other] = group
        self._group_of = [find(root) for root in roots]
        for name, row in self.rows.items():
            self.producers.setdefault(self._group_of[row[0]], []).append(name)
        for group, names in self.producers.items():
            written = {channel for name in names for channel in self.rows[name]}
            first = next((name for name in names if len(set(self.rows[name])) == len(written)), names[0])
            if len(set(self.rows[first])) < len(written):
                self.frozen[group] = f"no single layer writes all channels that {first} shares with {names[1]}"
            names.sort(key=lambda name: name != first)
            self._members[group] = list(dict.fromkeys([*self.rows[first], *sorted(written)]))
            self._place_of |= {channel: position for position, channel in enumerate(self._members[group])}
            self.sizes[group] = len(written)

    def _find_unordered(self) -> None:
        """A group may change places where each axis has it whole and in order."""
        for name, row in self.rows.items():
            group = self._group_of[row[0]]
            if [self._place_of[channel] for channel in row] != list(range(self.sizes[group])):
                what = "heads, which stay whole" if group in self.heads else "its channels in an order of their own"
                self.unordered.setdefault(group, f"{name} writes {what}")
        for node, layout in self.layouts.items():
            for group, run in self._runs(layout):
                places = torch.tensor([self._place_of[channel] for channel in run])
                repeat = int((places == places[0]).cumprod(0).sum())
                once = torch.arange(self.sizes[group]).repeat_interleave(repeat)
                if len(places) % len(once) or not bool((places.view(-1, len(once)) == once).all()):
                    self.unordered.setdefault(group, f"{node.name} takes a part of its channels, or moves them")

    def _runs(self, layout: Layout) -> Iterator[tuple[int, Layout]]:
        """The groups that producers write in an axis, each with its entries there, as they follow one another."""
        start = 0
        for end in range(1, len(layout) + 1):
            if end == len(layout) or self._group_of[layout[end]] != self._group_of[layout[start]]:
                if self._group_of[layout[start]] in self.producers:
                    yield self._group_of[layout[start]], layout[start:end]
                start = end

    # -- questions -----------------------------------------------------------------------------------------------

    def free(self) -> Iterator[tuple[int, list[str]]]:
        """Each group that may lose channels, with the modules that produce it."""
        for group, producers in self.producers.items():
            if group not in self.frozen:
                yield group, producers

    def group_of(self, name: str) -> int:
        """The group that a module produces; KeyError where it produces none."""
        return self._group_of[self.rows[name][0]]

    def groups(self, node: fx.Node) -> set[int]:
        """The groups whose channels lie on a node's channel axis."""
        return {self._group_of[channel] for channel in self.layouts.get(node, ())}

    def places(self, name: str) -> Tensor:
        """Which channel of its group each output row of a producer is: (rows,)."""
        return torch.tensor([self._place_of[channel] for channel in self.rows[name]])

    def addresses(self, layout: Layout) -> list[tuple[int, int] | None]:
        """Of each entry of an axis, its group and which channel of that it is; None if no layer's."""
        return [(self._group_of[c], self._place_of[c]) if c in self._place_of else None for c in layout]

    def entries(self, node: fx.Node, axis: int) -> Layout:
        """The channel of each entry of one axis of what a node gives; one for all where they lie on another axis."""
        size, layout = shape(node), self.layouts.get(node, (0,))
        return layout if axis % len(size) == self.axes.get(node) else layout[:1] * size[axis]

    def keep(self, channel: int, kept: dict[int, Tensor]) -> None:
        """Let a channel stay after all."""
        kept[self._group_of[channel]][self._place_of[channel]] = True

    def expand(self, layout: Layout, kept: Mapping[int, Tensor]) -> Tensor:
        """Which entries of an axis stay, as a boolean vector, when `kept` says which channels of a group do."""
        stays = [self._is_kept(channel, kept) for channel in layout]
        return torch.tensor(stays, dtype=torch.bool)

    def _is_kept(self, channel: int, kept: Mapping[int, Tensor]) -> bool:
        mask = kept.get(self._group_of[channel])
        return mask is None or bool(mask[self._place_of[channel]])

    def gather(self, layout: Layout, index: Mapping[int, Tensor]) -> Tensor:
        """Which entries of an axis stay, and in which order, when `index` lists the channels of a group likewise."""
        stands_for: dict[int, int] = {}  # of each channel that stays, the one that comes to stand in its place
        for group in {self._group_of[channel] for channel in layout} & index.keys():
            listed, members = index[group].tolist(), self._members[group]
            stands_for |= {members[old]: members[new] for old, new in zip(sorted(listed), listed, strict=True)}
        count: dict[int, int] = defaultdict(int)
        slots: list[tuple[int, int]] = []  # of each entry: its channel, and how many of its entries came before
        for channel in layout:
            slots.append((channel, count[channel]))
            count[channel] += 1
        entry_of = {slot: entry for entry, slot in enumerate(slots)}
        stays = (slot for slot in slots if self._group_of[slot[0]] not in index or slot[0] in stands_for)
        taken = [entry_of[stands_for.get(channel, channel), nth] for channel, nth in stays]
        return torch.tensor(taken, dtype=torch.long)
