"""What is never on is taken out for good: exactly the same outputs for every input whose path is among those seen."""

from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, fx, nn

from ..core.graph import surgery
from ..core.graph.chains import between, not_zero_after
from ..core.graph.channels import Channels
from ..core.graph.operators import is_depthwise
from ..core.graph.surgery import Plan
from ..core.graph.tracing import module_of, propagate
from .layers import Controller, gates
from .paths import Paths
from .placement import Decoupled, axis_of, gate_position, insert_gates_in, strip


def never_on(decoupled: Decoupled, paths: Paths, example: Tensor) -> Plan:
    """The plan that takes out every filter that no path uses; a layer that is never on keeps its first filter.

    Filters that one layer alone writes go for all their readers; those that join a residual stream go at their writer
    only, and hidden units that another layer writes too stay. Two filters stay where a depthwise layer follows, which
    would else be a plain one; a layer whose weight or norm is used elsewhere too stays whole.
    """
    channels = _channels(decoupled, example)
    nodes, depthwise = _calls(channels), _depthwise(channels)
    plan = Plan()
    for name, bits in zip(paths.layers, paths.split(), strict=True):
        used = bits.any(0)  # (C_l,)
        last, end = gate_position(nodes[name])
        chain = between(nodes[name], last)
        if used.all() or any(node.target in channels.shared for node in (nodes[name], *chain)):
            continue
        group = channels.group_of(name)
        is_alone = group not in channels.frozen and len(channels.producers[group]) == 1
        is_exact = is_alone and not_zero_after(end) is None
        if not is_exact and axis_of(module_of(nodes[name])) == -1:
            continue
        least = 2 if group in depthwise else 1
        kept = np.argsort(~used, kind="stable")[: max(least, used.sum())]
        (plan.channels if is_exact else plan.outputs)[name] = tuple(sorted(kept.tolist()))
    return plan


def removed(decoupled: Decoupled, plan: Plan, example: Tensor) -> Decoupled:
    """The network without what the plan drops, its gates and controllers cut to match; the one given stays as it is."""
    channels = _channels(decoupled, example)
    kept = surgery.kept_channels(channels, plan)  # filters that go together only stay together, whatever the plan drops
    columns = _columns(decoupled, channels, kept)
    rows = {name: torch.tensor(index) for name, index in plan.outputs.items()}
    for name in plan.channels:
        rows[name] = kept[channels.group_of(name)][channels.places(name)].nonzero().flatten()
    smaller = insert_gates_in(surgery.remove_from(channels, plan, example), example)
    old, new = gates(decoupled.model), gates(smaller.model)
    for before, after in zip(decoupled.sites, smaller.sites, strict=True):
        filters = rows.get(before.layer, torch.arange(before.filters))
        _cut(old[before.gate].controller, new[after.gate].controller, columns[before.layer], filters)
        new[after.gate].mix = old[before.gate].mix
    smaller.model.eval()
    return smaller


def _depthwise(channels: Channels) -> set[int]:
    """The channel groups that depthwise layers write."""
    layers = (node for node in channels.graph.graph.nodes if is_depthwise(module_of(node)))
    return {group for node in layers for group in channels.groups(node)}


def _channels(decoupled: Decoupled, example: Tensor) -> Channels:
    """The channels of a copy without gates; it was traced when they were put in, and is not traced again."""
    graph = deepcopy(decoupled.model).eval()
    strip(graph)
    propagate(graph, example)
    return Channels(graph)


def _calls(channels: Channels) -> dict[str, fx.Node]:
    """The nodes that call a module, by its name."""
    return {str(node.target): node for node in channels.graph.graph.nodes if node.op == "call_module"}


def _columns(decoupled: Decoupled, channels: Channels, kept: dict[int, Tensor]) -> dict[str, Tensor]:
    """Of each gated layer, which of the channels that it reads stay."""
    columns, nodes = {}, _calls(channels)
    for site in decoupled.sites:
        node = nodes[site.layer]
        read = channels.entries(node.all_input_nodes[0], axis_of(module_of(node)))
        columns[site.layer] = channels.expand(read, kept).nonzero().flatten()
    return columns


@torch.no_grad()
def _cut(old: Controller, new: Controller, columns: Tensor, rows: Tensor) -> None:
    """Copy a controller without the inputs and filters that are gone; inside it stays as wide as it was."""
    hidden = old.fc1.out_features
    new.fc1, new.fc2 = nn.Linear(len(columns), hidden), nn.Linear(hidden, len(rows))
    device = old.fc1.weight.device
    columns, rows = columns.to(device), rows.to(device)
    new.fc1.weight = nn.Parameter(old.fc1.weight[:, columns].clone())
    new.fc1.bias = nn.Parameter(old.fc1.bias.clone())
    new.fc2.weight = nn.Parameter(old.fc2.weight[rows].clone())
    new.fc2.bias = nn.Parameter(old.fc2.bias[rows].clone())
