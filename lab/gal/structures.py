"""Where masks sit in a network, how they fold into it exactly, and what their zeros let us remove."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import fx, nn

from ..core.graph.chains import last_affine, not_zero_after, private_chain, readers
from ..core.graph.channels import OUTPUT, Channels
from ..core.graph.operators import CONVS, NORMS, is_cat, is_homogeneous, is_product, operands
from ..core.graph.surgery import Plan, is_add, residual_branch
from ..core.graph.tracing import ancestors, module_of, trace
from .layers import Mask

UNITS = ("channel", "block", "branch", "input")


@dataclass(frozen=True)
class Structure:
    """One masked structure: its unit, the module a plan knows it by, how many mask entries it has.

    `folds` is the module that a mask is multiplied into; `after` the node whose output is masked, and `reader` the one
    node that sees it masked, '' for all of them.
    """

    unit: str
    name: str
    entries: int
    folds: str
    after: str
    reader: str = ""


@dataclass(frozen=True)
class Masked:
    """A generator: the traced network with its masks in place, their structures, and by name why others stay dense."""

    model: fx.GraphModule
    structures: tuple[Structure, ...]
    dense: dict[str, str]

    def masks(self) -> list[nn.Parameter]:
        """The mask of each structure, in order; entries >= 0."""
        return [self.model.get_parameter(f"{_mask_name(i)}.m") for i in range(len(self.structures))]


def insert_masks(model: nn.Module, units: tuple[str, ...], example: torch.Tensor) -> Masked:
    """A masked copy of the network, equal to it while every mask is 1; the network itself is never changed."""
    graph = trace(model, example)
    structures, dense = find(graph, units)
    if not structures:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(dense.items())[:3]) or "none of that kind"
        raise ValueError(f"units={units}: nothing in {type(model).__name__} can be masked ({reasons}); try other units")
    nodes = {node.name: node for node in graph.graph.nodes}
    one_reader_first = sorted(enumerate(structures), key=lambda pair: not pair[1].reader)  # before others take readers
    for index, structure in one_reader_first:
        axis = -1 if isinstance(graph.get_submodule(structure.folds), nn.Linear) else 1
        mask = Mask(structure.entries, axis).to(graph.get_parameter(f"{structure.folds}.weight").dtype)
        graph.add_submodule(_mask_name(index), mask)
        _insert(graph, nodes[structure.after], nodes.get(structure.reader), _mask_name(index))
    graph.recompile()
    return Masked(graph.to(next(model.parameters()).device), tuple(structures), dense)


def find(graph: fx.GraphModule, units: tuple[str, ...]) -> tuple[list[Structure], dict[str, str]]:
    """The structures of these units in a traced network, and what must stay dense with the reason."""
    channels = Channels(graph)
    structures: list[Structure] = []
    dense: dict[str, str] = {}
    finders = {
        "channel": lambda: _channel_units(graph, channels, units),
        "block": lambda: _block_units(graph, channels),
        "branch": lambda: _branch_units(graph, channels),
        "input": lambda: _input_units(graph, channels),
    }
    for unit in units:
        for candidate in finders[unit]():
            if isinstance(candidate, Structure):
                structures.append(candidate)
            else:
                name, reason = candidate
                dense[name] = reason
    return structures, dense


def fold(masked: Masked) -> fx.GraphModule:
    """The network with its masks multiplied into its weights: exactly the same function, and no mask left."""
    graph = deepcopy(masked.model)
    for index, (structure, mask) in enumerate(zip(masked.structures, masked.masks(), strict=True)):
        _scale(graph.get_submodule(structure.folds), mask.detach(), columns=structure.unit == "input")
        for node in list(graph.graph.nodes):
            if node.op == "call_module" and node.target == _mask_name(index):
                node.replace_all_uses_with(node.all_input_nodes[0])
                graph.graph.erase_node(node)
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


def plan(masked: Masked) -> tuple[Plan, tuple[str, ...]]:
    """What the exact zeros of the masks let us remove, and the layers whose mask is all zero (they keep channel 0)."""
    _validate_branches(masked)
    kept, empty = [], []
    for structure, mask in zip(masked.structures, masked.masks(), strict=True):
        is_open = mask.detach() > 0
        if structure.unit in ("channel", "input") and not is_open.any():
            empty.append(structure.name)
            is_open[0] = True
        kept.append((structure.unit, (structure.name,), is_open))
    return Plan.of(kept), tuple(empty)


def _validate_branches(masked: Masked) -> None:
    """Raise a one-line ValueError if every branch of a concatenation is closed: nothing would be left to read."""
    open_at: dict[str, list[bool]] = {}
    for structure, mask in zip(masked.structures, masked.masks(), strict=True):
        if structure.unit == "branch":
            open_at.setdefault(structure.reader, []).append(bool(mask > 0))
    if closed := [reader for reader, branches in open_at.items() if not any(branches)]:
        names = ", ".join(s.name for s in masked.structures if s.unit == "branch" and s.reader == closed[0])
        raise ValueError(f"all branches of {closed[0]} are closed ({names}), nothing would be left to read: lower lam")


# -- finding ---------------------------------------------------------------------------------------------------------

Candidates = Iterator[Structure | tuple[str, str]]  # a structure, or a name and why it stays dense


def _channel_units(graph: fx.GraphModule, channels: Channels, units: tuple[str, ...]) -> Candidates:
    """Channels that one module writes: masked behind its batch norm and activation, where zero is exactly removable.

    Channels whose readers have input masks of their own are not masked twice.
    """
    nodes = {node.target: node for node in graph.graph.nodes if node.op == "call_module"}
    masked_inputs = _names(_input_units(graph, channels)) if "input" in units else set()
    for group, producers in channels.producers.items():
        if not producers:
            continue
        if group in channels.frozen:
            if channels.frozen[group] != OUTPUT:
                yield from ((name, channels.frozen[group]) for name in producers)
        elif len(producers) > 1:
            yield from ((name, "its channels are shared with " + producers[0]) for name in producers[1:])
            yield producers[0], _why_shared(channels, group)
        else:
            last, end = last_affine(nodes[producers[0]])
            if not _foldable(last):
                yield producers[0], f"{last.target} has no weights to fold a mask into"
            elif blocker := not_zero_after(end):
                yield producers[0], f"{blocker.name} would turn a zero channel into a constant"
            elif not masked_inputs & readers(end):
                yield Structure("channel", producers[0], len(channels.rows[producers[0]]), str(last.target), end.name)


def _why_shared(channels: Channels, group: int) -> str:
    """What ties the layers that write a group's channels together."""
    joins, other = channels.joins.get(group, []), channels.producers[group][1]
    if any(is_add(node) and residual_branch(node) is not None for node in joins):
        return "its channels are a residual stream"
    if joins and all(map(is_product, joins)):
        return f"its channels are multiplied by those of {other}"
    return f"its channels are joined to those of {other}"


def _names(candidates: Candidates) -> set[str]:
    return {candidate.name for candidate in candidates if isinstance(candidate, Structure)}


def _block_units(graph: fx.GraphModule, channels: Channels) -> Candidates:
    """Residual branches: one entry each, just before the sum."""
    for node in graph.graph.nodes:
        if not is_add(node):
            continue
        branch = residual_branch(node)
        if branch is None:
            yield node.name, "no shortcut can be told from a branch"
        elif (source := _homogeneous_source(branch)) is None:
            yield node.name, "its branch does not end in a layer that a mask folds into"
        elif source.target in channels.shared:
            yield str(source.target), "it is used more than once"
        else:
            yield Structure("block", str(source.target), 1, str(source.target), branch.name, node.name)


def _branch_units(graph: fx.GraphModule, channels: Channels) -> Candidates:
    """Operands of a concatenation that do not feed one another (Inception): one entry each."""
    for node in graph.graph.nodes:
        joined = operands(node) if is_cat(node) else []
        above = {operand: ancestors(operand) for operand in joined}
        if len(joined) < 2 or any(a in above[b] for a, b in permutations(joined, 2)):
            continue
        for operand in joined:
            groups = channels.groups(operand)
            source = _homogeneous_source(operand)
            if source is None:
                yield operand.name, "the branch does not end in a layer that a mask folds into"
            elif source.target in channels.shared:
                yield str(source.target), "it is used more than once"
            elif any(group in channels.frozen or len(channels.producers.get(group, ())) > 1 for group in groups):
                yield str(source.target), "its width is fixed by what reads it"
            else:
                yield Structure("branch", str(source.target), 1, str(source.target), operand.name, node.name)


def _input_units(graph: fx.GraphModule, channels: Channels) -> Candidates:
    """What one convolution reads of a shared tensor (DenseNet, a bottleneck's first layer): one entry a channel."""
    shortcuts = _shortcut_nodes(graph)
    for node in graph.graph.nodes:
        module = module_of(node)
        if not isinstance(module, CONVS) or module.groups != 1 or node in shortcuts:
            continue
        if node.target in channels.shared:
            yield str(node.target), "it is used more than once"
            continue
        source = [node, *private_chain(node)][-1].all_input_nodes[0]
        if source.op != "placeholder" and (len(source.users) > 1 or _is_joined(channels, source)):
            name = str(node.target)
            yield Structure("input", name, module.in_channels, name, node.all_input_nodes[0].name, node.name)


def _is_joined(channels: Channels, node: fx.Node) -> bool:
    """Whether several layers' channels stand side by side, or those of one twice."""
    groups, layout = channels.groups(node), channels.layouts.get(node, ())
    written = [len(channels.rows[name]) for group in groups for name in channels.producers.get(group, ())]
    return len(groups) > 1 or len(layout) > max(written, default=len(layout))


def _homogeneous_source(node: fx.Node) -> fx.Node | None:
    """The layer behind `node`, through operations that a scale passes, if it alone feeds them and a mask folds in."""
    while len(node.users) == 1:
        if _foldable(node):
            return node
        if not (is_homogeneous(node) and len(node.all_input_nodes) == 1):
            return None
        node = node.all_input_nodes[0]
    return None


def _foldable(node: fx.Node) -> bool:
    module = module_of(node)
    affine = isinstance(module, NORMS) and module.affine
    return affine or isinstance(module, (*CONVS, nn.Linear))


def _shortcut_nodes(graph: fx.GraphModule) -> set[fx.Node]:
    """Nodes that only a shortcut of a residual sum is made of."""
    nodes: set[fx.Node] = set()
    for add in (node for node in graph.graph.nodes if is_add(node)):
        branch = residual_branch(add)
        if branch is not None:
            (shortcut,) = (operand for operand in add.all_input_nodes if operand is not branch)
            nodes |= ancestors(shortcut) - ancestors(branch)
    return nodes


# -- masks in and out ------------------------------------------------------------------------------------------------


def _mask_name(index: int) -> str:
    return f"soft_mask_{index}"


def _insert(graph: fx.GraphModule, after: fx.Node, reader: fx.Node | None, name: str) -> None:
    """Call the mask on the output of `after`, for one reader or for all."""
    with graph.graph.inserting_after(after):
        mask = graph.graph.call_module(name, (after,))
    for user in [reader] if reader is not None else [user for user in after.users if user is not mask]:
        user.replace_input_with(after, mask)


@torch.no_grad()
def _scale(module: nn.Module, m: torch.Tensor, columns: bool) -> None:
    """Multiply a mask into the rows that a module writes, or into the columns that it reads; tied weights part."""
    weight = module.get_parameter("weight")  # (out, in, ...), or (C,) of a norm
    shape = (1, -1, *[1] * (weight.dim() - 2)) if columns else (-1, *[1] * (weight.dim() - 1))
    module.weight = nn.Parameter(weight * m.view(shape))
    if not columns and module.bias is not None:
        module.bias = nn.Parameter(module.get_parameter("bias") * m)
