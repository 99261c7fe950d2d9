"""What a filter does, seen by switching it off, beside filters drawn at random."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from ..core.progress import tqdm
from ..core.task import evaluating
from .activations import as_taken, call, first_tensor, hooked, labelled, named, reading
from .tokens import tracked

Filters = int | Sequence[int]


@contextmanager
def without(model: nn.Module, layer: str, filters: Filters) -> Iterator[nn.Module]:
    """For a `with` block, what these filters of a layer answer is 0; the hook goes away, also after an error.

    Filters are axis 1 of what the layer gives, the last axis of tokens. A filter in front of a batch norm is not silent
    when it is 0: name the norm, or the rectifier behind it. ValueError for a filter that is not there, at the model's
    next call.
    """
    (layer,) = named(model, layer)
    off = _numbers(filters)
    with tracked(model) as axes:

        def silence(output: Any) -> Any:
            silent = first_tensor(output, layer).clone()  # (N, filters), (N, filters, H, W) or (N, ..., filters)
            axis = axes.of(silent)
            if off and max(off) >= silent.shape[axis]:
                raise ValueError(f"filter {max(off)} is not in {layer!r}: it has 0 to {silent.shape[axis] - 1}")
            silent.index_fill_(axis, torch.tensor(off, dtype=torch.long, device=silent.device), 0)
            return _with_first(output, silent)

        with hooked(model, {layer: silence}):
            yield model


def switched_off(
    model: nn.Module,
    layer: str,
    batches: Iterable,
    filters: Sequence[Filters] | None = None,
    *,
    controls: int = 5,
    seed: int = 0,
    progress: bool = True,
) -> Any:
    """Points of accuracy that change when filters of a layer are switched off: a pandas frame, one row a choice.

    `batches` give (x, y), to be passed over again and again. `filters` are numbers, or groups that go together; left
    out, every filter by itself, each the control of all others. For each size of group among `filters`, `controls`
    groups of as many other filters drawn at random stand beside them (`kind` 'random'). Columns: filters, kind,
    accuracy (%), change (points, 0 where nothing happened), and the change of each class.
    """
    import pandas

    data = list(labelled(batches))
    if any(y.ndim != 1 for _, y in data):
        raise ValueError("the labels are not one class number a picture: give (x, y) with y (N,)")
    count = reading(model, layer, data[0][0][:1]).shape[1]
    groups = [_numbers(choice) for choice in (range(count) if filters is None else filters)]
    for group in groups:
        if not group or min(group) < 0 or max(group) >= count:
            raise ValueError(f"filters {group} are not all in {layer!r}: it has 0 to {count - 1}")
    rows = [(group, "chosen") for group in groups]
    if filters is not None:
        rows += [(group, "random") for group in _random(groups, count, controls, seed)]
    before, by_class = class_accuracy(model, data)
    table = []
    for group, kind in tqdm(rows, desc="switched off", disable=not progress, leave=False):
        with without(model, layer, group):
            accuracy, each = class_accuracy(model, data)
        row = {"filters": ", ".join(map(str, group)), "kind": kind, "accuracy": accuracy, "change": accuracy - before}
        table.append({**row, **{f"class {c}": each[c] - by_class[c] for c in sorted(by_class)}})
    return pandas.DataFrame(table)


def class_accuracy(model: nn.Module, data: Iterable) -> tuple[float, dict[int, float]]:
    """The accuracy over all samples and over those of each class, in percent."""
    right: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    with torch.no_grad(), evaluating(model), torch.random.fork_rng(devices=[]):
        for x, y in data:
            right.append((call(model, as_taken(model, x)).argmax(1).cpu() == y.cpu()).numpy())
            labels.append(y.cpu().numpy())
    hit, label = np.concatenate(right), np.concatenate(labels)
    return 100 * float(hit.mean()), {int(c): 100 * float(hit[label == c].mean()) for c in np.unique(label)}


def _random(groups: list[list[int]], count: int, controls: int, seed: int) -> list[list[int]]:
    """For each size among the groups, random groups of filters that are in none of them, where there are enough."""
    random = np.random.default_rng(seed)
    chosen = {number for group in groups for number in group}
    others = [number for number in range(count) if number not in chosen]
    sizes = sorted({len(group) for group in groups if len(group) <= len(others)})
    return [sorted(random.choice(others, size, replace=False).tolist()) for size in sizes for _ in range(controls)]


def _numbers(filters: Filters) -> list[int]:
    """Filter numbers as a list; ValueError for anything else."""
    numbers = list(filters) if isinstance(filters, Iterable) else [filters]
    if any(isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 0 for k in numbers):
        raise ValueError(f"filters={filters!r}: give integers, 0 or more")
    return [int(k) for k in numbers]


def _with_first(output: Any, tensor: torch.Tensor) -> Any:
    """The output with its first tensor replaced."""
    if isinstance(output, torch.Tensor):
        return tensor
    if isinstance(output, tuple):
        return (tensor, *output[1:])
    raise ValueError(f"a layer that gives a {type(output).__name__} cannot be switched off: name one inside it")
