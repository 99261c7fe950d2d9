"""Physical removal: a plan of what stays, applied to any traced network, leaves a smaller plain module.

Torch-Pruning's dependency graph removes channels of most networks; it can't drop a residual branch, an Inception branch
or what one consumer reads, nor follow the zero-padded shortcuts of the CIFAR ResNets. A plan says all of that in module
names, so that it is stored as JSON and applied again when a network is loaded.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain, count

import torch
from torch import fx, nn

from ..batch import Example
from .calls import is_relu
from .chains import between, last_affine, private_chain
from .channels import Channels
from .inplace import operator_name
from .moves import Move, rewrite
from .operators import CONVS, TRANSPOSED, is_cat, operands
from .slices import Slice, cut, has_channels
from .tracing import ancestors, module_of, propagate, shape, trace

Kept = tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """What stays of a network, in the names of its modules.

    `channels`: module that produces them -> output channels kept. `inputs`: convolution -> input channels that it alone
    still reads; `outputs`: convolution -> output channels that it alone still writes, into a tensor as wide as before.
    `embedding`: module that writes into a width that LayerNorms normalise over -> channels kept; those have the
    statistics of what is left, so that the smaller network is one of its own, and not the masked one.
    `blocks`: residual branches dropped, each by the last module with weights in it; `branches`: operands dropped from a
    concatenation, named likewise.
    """

    channels: dict[str, Kept] = field(default_factory=dict)
    inputs: dict[str, Kept] = field(default_factory=dict)
    outputs: dict[str, Kept] = field(default_factory=dict)
    blocks: tuple[str, ...] = ()
    branches: tuple[str, ...] = ()
    embedding: dict[str, Kept] = field(default_factory=dict)

    def to_dict(self) -> dict:
        """The plan as JSON values; an embedding that nothing cuts is left out."""
        return {name: value for name, value in asdict(self).items() if value or name != "embedding"}

    @classmethod
    def from_dict(cls, values: dict) -> "Plan":
        """The plan that `to_dict` wrote."""
        kinds = ("channels", "inputs", "outputs", "embedding")
        kept = {kind: {name: tuple(index) for name, index in values.get(kind, {}).items()} for kind in kinds}
        return cls(**kept, blocks=tuple(values["blocks"]), branches=tuple(values["branches"]))

    @classmethod
    def of(cls, masks: Iterable[tuple[str, tuple[str, ...], torch.Tensor]]) -> "Plan":
        """The plan of what masks keep: of each a unit, module names, and booleans, True for what is kept.

        A 'channel' or an 'input' has one name and a boolean a channel, a 'block' or a 'branch' a boolean a name.
        """
        kept: dict[str, dict[str, Kept]] = {"channel": {}, "input": {}}
        dropped: dict[str, list[str]] = {"block": [], "branch": []}
        for unit, names, mask in masks:
            if unit in dropped:
                dropped[unit] += [name for name, keep in zip(names, mask.tolist(), strict=True) if not keep]
            elif not mask.all():
                kept[unit][names[0]] = tuple(mask.nonzero().flatten().tolist())
        return cls(kept["channel"], kept["input"], blocks=tuple(dropped["block"]), branches=tuple(dropped["branch"]))


def remove(model: nn.Module, plan: Plan, example: Example) -> fx.GraphModule:
    """A smaller copy of the model with only what the plan keeps; the model itself is never changed.

    `example` is one input with its batch axis. The result is run once on it; a plan that does not fit is a ValueError.
    """
    return remove_from(Channels(trace(model, example), embeddings=bool(plan.embedding)), plan, example)


def remove_from(channels: Channels, plan: Plan, example: Example) -> fx.GraphModule:
    """`remove` from the network of these channels itself, which they do not describe any more afterwards."""
    graph, kept = channels.graph, kept_channels(channels, plan)
    branches = _operands(plan.branches, _cats(graph) if plan.branches else [])
    for _, operand in branches:
        for group in channels.groups(operand) & set(channels.producers):
            kept[group] = torch.zeros(channels.sizes[group], dtype=torch.bool)
    blocks = _operands(plan.blocks, _adds(graph) if plan.blocks else [])
    index = {group: mask.nonzero().flatten() for group, mask in kept.items()}
    slices = {n: Slice(channels, n, index) for n in graph.graph.nodes if has_channels(n)}
    cut = _Cut(graph, channels, kept, slices, channels.rewritten(kept))
    for add, operand in blocks:
        _drop_block(add, operand)
    for cat, operand in branches:
        _drop_branch(cat, operand)
    _tidy(graph)
    for name, inputs in plan.inputs.items():
        cut.gather_inputs(name, inputs)
    for name, outputs in plan.outputs.items():
        cut.scatter_outputs(name, outputs)
    cut.apply()
    cut.write_again()
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()
    propagate(graph, example)
    return graph


def residual_branch(add: fx.Node) -> fx.Node | None:
    """The operand of a residual sum that is the branch, or None where the two cannot be told apart.

    The branch holds more convolutions of its own than the shortcut; a plain shortcut holds none.
    """
    if len(add.all_input_nodes) != 2:
        return None
    if add.kwargs.get("alpha", 1) != 1:
        return None
    a, b = add.all_input_nodes
    above_a, above_b = ancestors(a), ancestors(b)
    count_a, count_b = _count_layers(above_a - above_b), _count_layers(above_b - above_a)
    branch, shortcut = (a, b) if count_a > count_b else (b, a)
    reaches_input = shape(shortcut) == shape(add) and any(node.op == "placeholder" for node in ancestors(shortcut))
    return branch if count_a != count_b and reaches_input else None


def _count_layers(nodes: set[fx.Node]) -> int:
    return sum(isinstance(module_of(node), (*CONVS, nn.Linear)) for node in nodes)


def anchor(node: fx.Node) -> str:
    """The last module with weights on the way to a node, following first inputs: the name a plan knows it by."""
    while node.all_input_nodes:
        module = module_of(node)
        if module is not None and next(module.parameters(), None) is not None:
            return str(node.target)
        node = next((source for source in node.all_input_nodes if source.op != "get_attr"), node.all_input_nodes[0])
    return ""


def is_add(node: fx.Node) -> bool:
    """Whether a node sums two tensors."""
    return operator_name(node.target) == "add" and len(node.all_input_nodes) == 2


# What is ranked: a unit ('channel', 'input', 'block', 'branch') and the names that share a score tensor, which has one
# entry for each channel of the one module named, or one for each name.
Scores = dict[tuple[str, tuple[str, ...]], torch.Tensor]


def magnitude(model: nn.Module, example: Example) -> Scores:
    """The score of each removable channel: the L2 norm of its weights, relative to the mean of its group.

    Keys name one producer of each group; a group of several producers has the sum of their norms, and channels that go
    together only (those of one group of a convolution) have one score.
    """
    graph = trace(model, example)
    scores: Scores = {}
    channels = Channels(graph)
    for group, producers in channels.free():
        norms = torch.zeros(channels.sizes[group])
        for name in producers:
            norms = norms.index_add(0, channels.places(name), _row_norms(graph.get_submodule(name)).to(norms))
        relative = norms / norms.mean().clamp(min=1e-12)
        scores["channel", (producers[0],)] = relative[channels.places(producers[0])]
    return scores


def _row_norms(module: nn.Module) -> torch.Tensor:
    """The L2 norm of the weights of each channel that a layer writes: (rows,)."""
    weight = module.get_parameter("weight").detach()
    rows = weight.transpose(0, 1) if isinstance(module, TRANSPOSED) else weight
    return rows.flatten(1).norm(dim=1)


def plan_at(scores: Scores, rate: float) -> Plan:
    """The plan that removes the share `rate` of all scored entries, lowest scores first.

    One channel of every group, one input of every reader and one branch of every concatenation stay.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate={rate}: must be in [0, 1)")
    if not scores:
        raise ValueError("nothing in this network can lose channels: see `core.graph.channels` for what is followed")
    ranked = torch.cat(list(scores.values()))
    kept = torch.ones(len(ranked), dtype=torch.bool)
    kept[ranked.argsort(stable=True)[: int(rate * len(ranked))]] = False
    masks = kept.split([len(score) for score in scores.values()])
    for ((unit, _), score), mask in zip(scores.items(), masks, strict=True):
        if unit != "block":
            mask[score.argmax()] = True
    return Plan.of((unit, names, mask) for (unit, names), mask in zip(scores, masks, strict=True))


# -- the parts of `remove` -------------------------------------------------------------------------------------------


def kept_channels(channels: Channels, plan: Plan) -> dict[int, torch.Tensor]:
    """For each channel group in the plan, which of its channels stay: (channels,) booleans; no tensor loses all.

    ValueError in one line for a name that produces no channels, or those of a frozen group.
    """
    kept: dict[int, torch.Tensor] = {}
    for name, index in [*plan.channels.items(), *plan.embedding.items()]:
        try:
            group = channels.group_of(name)
        except KeyError:
            raise ValueError(f"the plan names {name!r}, which writes no channels of this network") from None
        if group in channels.frozen:
            raise ValueError(f"{name} cannot lose channels: {channels.frozen[group]}; leave it out of the plan")
        if group in channels.normalised and name not in plan.embedding:
            raise ValueError(f"{name} cannot lose channels: a LayerNorm normalises over them; name it under embedding")
        places = channels.places(name)
        stays = _mask(name, index, len(places))
        mask = kept.setdefault(group, torch.ones(channels.sizes[group], dtype=torch.bool))
        mask[places[~stays]] = False
        mask[places[stays]] = True  # of rows that go together only, one that stays keeps all
    for layout in channels.layouts.values():
        if layout and not channels.expand(layout, kept).any():
            channels.keep(layout[0], kept)
    return kept


def _mask(name: str, index: Iterable[int], size: int) -> torch.Tensor:
    index = list(index)
    if not index:
        raise ValueError(f"{name} would have 0 channels: keep at least one")
    if min(index) < 0 or max(index) >= size:
        raise ValueError(f"{name} has {size} channels, the plan keeps channel {max(index)}")
    mask = torch.zeros(size, dtype=torch.bool)
    mask[index] = True
    return mask


@dataclass(frozen=True)
class _Cut:
    """A graph while it is cut: which channels of a group are kept, and what each module keeps of its weights."""

    graph: fx.GraphModule
    channels: Channels
    kept: dict[int, torch.Tensor]
    slices: dict[fx.Node, Slice]
    moved: dict[fx.Node, tuple[Move, torch.Tensor, torch.Tensor]]

    def gather_inputs(self, name: str, index: Kept) -> None:
        """Let one convolution read only `index` of a shared tensor: an index_select before its norm and activation."""
        node = self._live_conv(name, "inputs")
        if node is None:
            return  # it went with its block or branch
        chain = private_chain(node)
        first = (chain or [node])[-1]
        source = first.all_input_nodes[0]
        survivors = self.channels.expand(self.channels.layouts[source], self.kept)
        reads = _one_at_least(_mask(name, index, len(survivors)) & survivors, survivors)
        positions = (survivors.cumsum(0) - 1)[reads]  # where the channels that it reads stand among the survivors
        buffer = self._register(f"{name.replace('.', '_')}_reads", positions)
        with self.graph.graph.inserting_before(first):
            selected = self.graph.graph.call_function(
                torch.index_select, (source, 1, self.graph.graph.get_attr(buffer))
            )
        first.replace_input_with(source, selected)
        read = reads.nonzero().flatten()
        for link in chain:
            if link in self.slices:
                self.slices[link].rows = self.slices[link].columns = read
        self.slices[node].columns = read

    def scatter_outputs(self, name: str, index: Kept) -> None:
        """Let one convolution write only `index` of a shared tensor: zeros fill the rest, behind its norm."""
        node = self._live_conv(name, "outputs")
        if node is None:
            return  # it went with its block or branch
        last, end = last_affine(node)
        survivors = self.channels.expand(self.channels.layouts[node], self.kept)
        writes = _one_at_least(_mask(name, index, len(survivors)) & survivors, survivors)
        zero = int(writes.sum())  # the channel of zeros, padded behind the written ones
        positions = torch.where(writes, writes.cumsum(0) - 1, zero)[survivors]
        self._select_padded(end, f"{name.replace('.', '_')}_writes", positions)
        written = writes.nonzero().flatten()
        for link in [node, *between(node, last)]:
            if link in self.slices:
                self.slices[link].rows = written
                self.slices[link].columns = self.slices[link].columns if link is node else written

    def apply(self) -> None:
        """Cut the weights of all modules that are still there."""
        alive = set(self.graph.graph.nodes)
        for node, part in self.slices.items():
            if node in alive and (module := module_of(node)) is not None:
                part.apply(module)

    def _select_padded(self, end: fx.Node, name: str, positions: torch.Tensor) -> None:
        """Put a channel of zeros behind the output of `end`, and let its readers see the channels at `positions`."""
        buffer = self._register(name, positions)
        with self.graph.graph.inserting_after(end):
            pads = [0, 0] * (len(shape(end)) - 2) + [0, 1]
            padded = self.graph.graph.call_function(nn.functional.pad, (end, pads))
        with self.graph.graph.inserting_after(padded):
            index = self.graph.graph.get_attr(buffer)
        with self.graph.graph.inserting_after(index):
            selected = self.graph.graph.call_function(torch.index_select, (padded, 1, index))
        for user in [user for user in end.users if user is not padded]:
            user.replace_input_with(end, selected)

    def _register(self, name: str, positions: torch.Tensor) -> str:
        """Register positions as a buffer beside the weights; the name it got, which no earlier cut has taken."""
        taken = {buffer for buffer, _ in self.graph.named_buffers()}
        free = next(title for title in chain([name], (f"{name}_{k}" for k in count(2))) if title not in taken)
        self.graph.register_buffer(free, positions.to(next(self.graph.parameters()).device))
        return free

    def write_again(self) -> None:
        """Write views, slices and shuffles for the channels that are left, and cut what stands beside the layers."""
        alive = set(self.graph.graph.nodes)
        for node, (move, before, after) in self.moved.items():
            if node in alive:
                rewrite(node, move, before, after, partial(self._register, f"{node.name}_reads"))
        names = {str(node.target): node for node in self.graph.graph.nodes if node.op == "get_attr"}
        for name, node in names.items():
            stays = self.channels.expand(self.channels.layouts.get(node, ()), self.kept)
            if not stays.all():
                parent, _, last = name.rpartition(".")
                cut(self.graph.get_submodule(parent), last, stays.nonzero().flatten(), axis=self.channels.axes[node])

    def _live_conv(self, name: str, part: str) -> fx.Node | None:
        """The node of a convolution that a part of the plan names; None where it has gone already."""
        node = next((n for n in self.slices if n.target == name), None)
        if node is not None and node not in set(self.graph.graph.nodes):
            return None
        if node is None or not isinstance(module_of(node), CONVS):
            raise ValueError(f"the plan names {name!r} under {part}, which is not a convolution of this network")
        return node


def _one_at_least(mask: torch.Tensor, survivors: torch.Tensor) -> torch.Tensor:
    """The mask, or the first surviving channel where all that it wanted went elsewhere: a layer is never empty."""
    if not mask.any():
        mask[survivors.nonzero()[0]] = True
    return mask


def _adds(graph: fx.GraphModule) -> list[tuple[fx.Node, fx.Node]]:
    pairs = [(node, residual_branch(node)) for node in graph.graph.nodes if is_add(node)]
    return [(add, branch) for add, branch in pairs if branch is not None]


def _cats(graph: fx.GraphModule) -> list[tuple[fx.Node, fx.Node]]:
    return [(node, operand) for node in graph.graph.nodes if is_cat(node) for operand in operands(node)]


def _operands(names: Iterable[str], pairs: list[tuple[fx.Node, fx.Node]]) -> list[tuple[fx.Node, fx.Node]]:
    """Of each name the first pair of a joint and an operand that it ends."""
    ends = {anchor(operand): (joint, operand) for joint, operand in reversed(pairs)}
    unknown = next((name for name in names if name not in ends), None)
    if unknown is not None:
        raise ValueError(f"the plan drops {unknown!r}, which ends no branch of this network")
    return [ends[name] for name in names]


def _drop_block(add: fx.Node, branch: fx.Node) -> None:
    (shortcut,) = (operand for operand in add.all_input_nodes if operand is not branch)
    add.replace_all_uses_with(shortcut)
    add.graph.erase_node(add)


def _drop_branch(cat: fx.Node, operand: fx.Node) -> None:
    rest = [other for other in operands(cat) if other is not operand]
    if not rest:
        raise ValueError(f"{cat.name} would have 0 branches: keep at least one")
    if cat.args:
        cat.update_arg(0, rest)
    else:
        cat.update_kwarg("tensors", rest)


def _tidy(graph: fx.GraphModule) -> None:
    """Delete what nobody reads any more, and a ReLU that follows a ReLU."""
    for node in list(graph.graph.nodes):
        if is_relu(node) and is_relu(node.all_input_nodes[0]):
            node.replace_all_uses_with(node.all_input_nodes[0])
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.graph.lint()
