"""Where masks sit in a network, how they fold into it exactly, and what their zeros let us remove."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import fx, nn

from ..core.batch import Example
from ..core.graph.chains import Reads, last_affine, not_zero_after, private_chain, readers, reads
from ..core.graph.channels import OUTPUT, Channels
from ..core.graph.moves import is_move
from ..core.graph.operators import CONVS, NORMS, TRANSPOSED, is_cat, is_homogeneous, is_product, operands
from ..core.graph.surgery import Plan, is_add, residual_branch
from ..core.graph.tracing import ancestors, gives_tensors, module_of, shape, trace
from .layers import Mask, ReadMask

UNITS = ("channel", "block", "branch", "input", "stream")
# What the entries of a mask are called, and the part of a plan that they belong to; a 'channel' may be any of these.
KINDS = {"channel": "channel", "hidden unit": "channel", "head": "channel", "stream channel": "channel"} | {
    unit: unit for unit in ("block", "branch", "input")
}


@dataclass(frozen=True)
class Structure:
    """One masked structure: its kind, the module a plan knows it by, how many mask entries it has.

    `folds` is the module that a mask is multiplied into, '' for all that read the channels; `after` the node whose
    output is masked, and `reader` the one node that sees it masked, '' for all of them. `rows` has of each row that the
    module writes the mask entry that it goes with, () where they are one to one.
    """

    unit: str
    name: str
    entries: int
    folds: str
    after: str
    reader: str = ""
    rows: tuple[int, ...] = ()

    def of_rows(self, mask: torch.Tensor) -> torch.Tensor:
        """What a mask says of each row that the module writes."""
        return mask[list(self.rows)] if self.rows else mask


@dataclass(frozen=True)
class Masked:
    """A generator: the traced network with its masks in place, their structures, and by name why others stay dense."""

    model: fx.GraphModule
    structures: tuple[Structure, ...]
    dense: dict[str, str]

    def masks(self) -> list[nn.Parameter]:
        """The mask of each structure, in order; entries >= 0."""
        return [self.model.get_parameter(f"{_mask_name(i)}.m") for i in range(len(self.structures))]


def insert_masks(model: nn.Module, units: tuple[str, ...], example: Example) -> Masked:
    """A masked copy of the network, equal to it while every mask is 1; the network itself is never changed."""
    graph = trace(model, example)
    channels = Channels(graph)
    structures, dense = find(channels, units)
    if not structures:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(dense.items())[:3]) or "none of that kind"
        raise ValueError(f"units={units}: nothing in {type(model).__name__} can be masked ({reasons}); try other units")
    nodes = {node.name: node for node in graph.graph.nodes}
    for index, structure in enumerate(structures):
        weight = graph.get_parameter(f"{structure.folds or structure.name}.weight")
        axis = -1 if isinstance(graph.get_submodule(structure.folds), nn.Linear) else 1
        graph.add_submodule(_mask_name(index), Mask(structure.entries, axis).to(weight.dtype))
    _insert_reads(channels, structures)
    one_reader_first = sorted(enumerate(structures), key=lambda pair: not pair[1].reader)  # before others take readers
    for index, structure in one_reader_first:
        if structure.folds:
            _insert(graph, nodes[structure.after], nodes.get(structure.reader), _mask_name(index))
    graph.recompile()
    return Masked(graph.to(next(model.parameters()).device), tuple(structures), dense)


def find(channels: Channels, units: tuple[str, ...]) -> tuple[list[Structure], dict[str, str]]:
    """The structures of these units in a traced network, and what must stay dense with the reason."""
    graph = channels.graph
    structures: list[Structure] = []
    dense: dict[str, str] = {}
    finders = {
        "channel": lambda: _channel_units(channels, units),
        "block": lambda: _block_units(graph, channels),
        "branch": lambda: _branch_units(graph, channels),
        "input": lambda: _input_units(graph, channels),
        "stream": lambda: _stream_units(channels, units),
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
    for structure, mask in zip(masked.structures, masked.masks(), strict=True):
        if structure.folds:
            _scale(graph.get_submodule(structure.folds), mask, columns=structure.unit == "input")
    for node in list(graph.graph.nodes):
        module = module_of(node)
        if isinstance(module, ReadMask):
            for reader in node.users:
                _scale(graph.get_submodule(str(reader.target)), module.entries(), columns=True)
        if isinstance(module, (Mask, ReadMask)):
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
        unit = KINDS[structure.unit]
        if unit in ("channel", "input") and not is_open.any():
            empty.append(structure.name)
            is_open[0] = True
        kept.append((unit, (structure.name,), structure.of_rows(is_open)))
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


def _channel_units(channels: Channels, units: tuple[str, ...]) -> Candidates:
    """Channels that stand by themselves between the layers that write them and those that read them.

    Where one layer writes them they are masked behind its batch norm and activation, if zero is exactly removable
    there; all others in front of the layers that read them. Where one of these has an input mask of its own, they are
    not masked twice.
    """
    nodes = {node.target: node for node in channels.graph.graph.nodes if node.op == "call_module"}
    masked_inputs = _names(_input_units(channels.graph, channels)) if "input" in units else set()
    read = reads(channels)
    for group, producers in channels.producers.items():
        first = producers[0]
        if group in channels.frozen:
            if channels.frozen[group] != OUTPUT:
                yield from ((name, channels.frozen[group]) for name in producers)
        elif _is_stream(channels, group):
            if "stream" not in units:
                yield from ((name, "its channels are shared with " + first) for name in producers[1:])
                yield first, "its channels are a residual stream"
        elif len(producers) == 1 and (structure := _where_written(channels, nodes[first])):
            if not masked_inputs & readers(_node(channels, structure.after)):
                yield structure
        else:
            yield from _where_read(channels, group, read[group], masked_inputs)


def _stream_units(channels: Channels, units: tuple[str, ...]) -> Candidates:
    """The channels of each residual stream, whichever layers write it."""
    masked_inputs = _names(_input_units(channels.graph, channels)) if "input" in units else set()
    read = reads(channels)
    for group, _ in channels.free():
        if _is_stream(channels, group):
            yield from _where_read(channels, group, read[group], masked_inputs)


def _where_written(channels: Channels, node: fx.Node) -> Structure | None:
    """A mask behind the one layer that writes channels, where zero is exactly removable and each row is a channel."""
    name = str(node.target)
    rows = len(channels.rows[name])
    last, end = last_affine(node)
    if isinstance(module_of(node), nn.Linear) and len(shape(node)) > 2:
        return None  # the hidden units of tokens
    if rows != channels.sizes[channels.group_of(name)] or not _foldable(last) or not_zero_after(end):
        return None
    return Structure("channel", name, rows, str(last.target), end.name)


def _where_read(channels: Channels, group: int, read: Reads, masked_inputs: set[str]) -> Candidates:
    """A mask in front of all layers that read the channels of a group."""
    name, *others = channels.producers[group]
    if read.others or not read.layers:
        reason = f"{read.others[0].name} sums over its channels" if read.others else "no layer reads it"
        yield from ((producer, reason) for producer in (name, *others))
    elif not masked_inputs & {str(reader.target) for reader in read.layers}:
        rows, size = channels.places(name).tolist(), channels.sizes[group]
        ties = () if rows == list(range(size)) else tuple(rows)
        yield Structure(_kind(channels, group), name, size, "", "", rows=ties)


def _kind(channels: Channels, group: int) -> str:
    """What the channels of a group are called."""
    if _is_stream(channels, group):
        return "stream channel"
    if group in channels.heads:
        return "head"
    written = [_node(channels, name) for name in channels.producers[group]]
    return (
        "hidden unit" if all(isinstance(module_of(n), nn.Linear) and len(shape(n)) > 2 for n in written) else "channel"
    )


def _is_stream(channels: Channels, group: int) -> bool:
    """Whether a residual sum ties the layers that write a group's channels."""
    joins = channels.joins.get(group, []) if len(channels.producers[group]) > 1 else []
    return any(is_add(node) and residual_branch(node) is not None for node in joins)


def _node(channels: Channels, name: str) -> fx.Node:
    """The node that calls a module, or that has a name of its own."""
    return next(node for node in channels.graph.graph.nodes if name in (node.name, str(node.target)))


def _names(candidates: Candidates) -> set[str]:
    return {candidate.name for candidate in candidates if isinstance(candidate, Structure)}


def _block_units(graph: fx.GraphModule, channels: Channels) -> Candidates:
    """Residual branches: one entry each, just before the sum."""
    for node in graph.graph.nodes:
        if not is_add(node) or any(not _has_input(source) for source in node.all_input_nodes):
            continue  # parameters that are added (a position embedding) are no shortcut
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
            elif (first := not_zero_after(operand)) is not None:
                yield str(source.target), f"{first.target} makes something of its zeros"
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
        sources = [s for s in node.all_input_nodes if s.op != "get_attr" and gives_tensors(s)]
        if len(sources) != 1 or not (is_homogeneous(node) or is_move(node) or _scales(node)):
            return None
        node = sources[0]
    return None


def _has_input(node: fx.Node) -> bool:
    """Whether a node computes from the network's input."""
    return any(source.op == "placeholder" for source in ancestors(node))


def _scales(node: fx.Node) -> bool:
    """Whether a node multiplies one tensor by numbers of the network's own (layer scale)."""
    return is_product(node) and sum(isinstance(a, fx.Node) and a.op != "get_attr" for a in node.args) == 1


def _foldable(node: fx.Node) -> bool:
    module = module_of(node)
    norms = (*NORMS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    return (isinstance(module, norms) and module.weight is not None) or isinstance(module, (*CONVS, nn.Linear))


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


def _insert_reads(channels: Channels, structures: list[Structure]) -> None:
    """Call the masks of channels in front of the layers that read them, those of one tensor all at once."""
    graph = channels.graph
    masks: list[nn.Parameter] = []
    first: dict[int, int] = {}  # of each group, where its mask begins among all, which are counted from 1
    for index, structure in enumerate(structures):
        if not structure.folds:
            first[channels.group_of(structure.name)] = 1 + sum(len(m) for m in masks)
            masks.append(graph.get_parameter(f"{_mask_name(index)}.m"))
    behind: dict[fx.Node, dict[fx.Node, None]] = {}  # of each tensor that is read, the layers that read it
    for group, read in reads(channels).items():
        for reader in read.layers if group in first else ():
            behind.setdefault(reader.all_input_nodes[0], {})[reader] = None
    for number, (source, layers) in enumerate(behind.items()):
        layout = channels.layouts[source]
        at = torch.tensor([first[a[0]] + a[1] if a and a[0] in first else 0 for a in channels.addresses(layout)])
        graph.add_submodule(f"read_mask_{number}", ReadMask(masks, at, channels.axes[source]))
        with graph.graph.inserting_after(source):
            node = graph.graph.call_module(f"read_mask_{number}", (source,))
        for reader in layers:
            reader.replace_input_with(source, node)


def _insert(graph: fx.GraphModule, after: fx.Node, reader: fx.Node | None, name: str) -> None:
    """Call the mask on the output of `after`, for one reader or for all."""
    with graph.graph.inserting_after(after):
        mask = graph.graph.call_module(name, (after,))
    for user in [reader] if reader is not None else [user for user in after.users if user is not mask]:
        user.replace_input_with(after, mask)


@torch.no_grad()
def _scale(module: nn.Module, m: torch.Tensor, columns: bool) -> None:
    """Multiply a mask into the rows that a module writes, or into the columns that it reads; tied weights part."""
    weight = module.get_parameter("weight")  # (out, in, ...), (in, out, ...) of a transposed layer, or (C,) of a norm
    axis = int(columns != isinstance(module, TRANSPOSED))
    masked = weight * m.view([-1 if a == axis else 1 for a in range(weight.dim())])
    module.weight = nn.Parameter(masked, requires_grad=weight.requires_grad)
    if not columns and getattr(module, "bias", None) is not None:
        bias = module.get_parameter("bias")
        module.bias = nn.Parameter(bias * m, requires_grad=bias.requires_grad)
