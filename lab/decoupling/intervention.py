"""Does a path mean anything? Force a class's path, or knock out the bits of a class, and see which pictures suffer."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.distribution import needed
from .layers import changing
from .paths import UNKNOWN, Paths, class_paths, record
from .placement import Decoupled


def specific_bits(paths: Paths, label: int, count: int) -> np.ndarray:
    """The `count` filters that are on for a class far more often than for the others: their indices among all.

    Filters are ranked by the on-frequency within the class minus its mean over the other classes; a filter that is not
    on more often within is never taken.
    """
    frequency, classes = class_paths(paths), paths.classes()
    row = int(_class_index(classes, label))
    if len(classes) < 2:
        raise ValueError(f"all paths are of class {label}: specific filters need pictures of other classes too")
    more = frequency[row] - np.delete(frequency, row, axis=0).mean(0)
    ranked = np.argsort(-more, kind="stable")[:count]
    return ranked[more[ranked] > 0]


def random_bits(paths: Paths, bits: np.ndarray, pool: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The control: as many filters of each layer as `bits` has there, drawn from `pool` (filters,) booleans.

    A layer whose pool is smaller gives all of it.
    """
    chosen = []
    for name in paths.layers:
        span = paths.span(name)
        count = int(((bits >= span.start) & (bits < span.stop)).sum())
        candidates = span.start + np.flatnonzero(pool[span])
        chosen.append(rng.choice(candidates, min(count, len(candidates)), replace=False))
    return np.concatenate(chosen).astype(int)


def knock_out(
    decoupled: Decoupled,
    paths: Paths,
    batches: Iterable,
    *,
    count: int = 100,
    draws: int = 5,
    seed: int = 0,
    progress: bool = True,
) -> Any:
    """What it costs each class to lose its `count` most specific filters, beside random ones: a DataFrame.

    Filters are chosen on `paths`, accuracies in percent are those of `batches`, which should hold other pictures. A row
    a class: `own`, its accuracy as it is; `specific`, without its most specific filters. The fair control is `as many
    used`: without as many filters of the same layers that the class uses, which are on for half of its pictures or
    more, always-on ones among them. The easy one is `as many conditional`: without as many of the same layers that
    are on for some pictures only, whether for this class or not (means of `draws`). `others` is the accuracy of the
    other classes as it is, `others specific` without this class's specific filters. ValueError for batches without
    labels.
    """
    with needed():
        import pandas
    from ..core.progress import tqdm

    rng = np.random.default_rng(seed)
    batches = list(batches)
    before, frequency = _labelled(record(decoupled, batches)), class_paths(paths)
    rows = []
    classes = tqdm(paths.classes(), desc="knocking out", leave=False, disable=not progress)
    for label, used in zip(classes, frequency, strict=True):
        bits, members = specific_bits(paths, label, count), before.labels == label
        after = _without(decoupled, paths, bits, batches)
        row: dict[str, float] = {"class": int(label), "filters": len(bits)}
        row |= {"own": _accuracy(before, members), "specific": _accuracy(after, members)}
        for name, pool in (("as many used", used >= 0.5), ("as many conditional", paths.conditional())):
            draws_of = (random_bits(paths, bits, pool, rng) for _ in range(draws))
            row[name] = float(np.mean([_accuracy(_without(decoupled, paths, b, batches), members) for b in draws_of]))
        rows.append({**row, "others": _accuracy(before, ~members), "others specific": _accuracy(after, ~members)})
    return pandas.DataFrame(rows).set_index("class")


def force(decoupled: Decoupled, paths: Paths, label: int, batches: Iterable, *, draws: int = 20, seed: int = 0) -> Any:
    """Every picture on the majority path of one class: how often it is then called that class, beside random paths.

    A row for each class of pictures; columns, in percent: `own` and `named` (called its class, or called `label`) as
    it was, `forced` and `forced own` on the class's path, `random` and `random spread` on paths with as many filters of
    each layer on, drawn at random: the mean of `draws` such paths and their standard deviation. ValueError for batches
    without labels.
    """
    with needed():
        import pandas

    rng = np.random.default_rng(seed)
    batches = list(batches)
    path = class_paths(paths)[_class_index(paths.classes(), label)] >= 0.5
    before, on_path = _labelled(record(decoupled, batches)), _forced(decoupled, paths, path, batches)
    controls = [_forced(decoupled, paths, _permuted(paths, path, rng), batches) for _ in range(draws)]
    rows = []
    for true_label in before.classes():
        members = before.labels == true_label
        named, forced, *random = (
            100 * float((run.predicted[members] == label).mean()) for run in (before, on_path, *controls)
        )
        means = _accuracy(before, members), named, forced, _accuracy(on_path, members)
        rows.append((int(true_label), *means, float(np.mean(random)), float(np.std(random))))
    columns = ["class", "own", "named", "forced", "forced own", "random", "random spread"]
    return pandas.DataFrame(rows, columns=columns).set_index("class")


def _labelled(paths: Paths) -> Paths:
    """The paths, if all their pictures came with a class."""
    if (paths.labels == UNKNOWN).any():
        raise ValueError("the batches hold pictures without a class: give pairs (x, y), y the class numbers (N,)")
    return paths


def _permuted(paths: Paths, path: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A path with as many filters of each layer on, others by chance."""
    return np.concatenate([rng.permutation(path[paths.span(name)]) for name in paths.layers])


def _forced(decoupled: Decoupled, paths: Paths, path: np.ndarray, batches: Sequence[Any]) -> Paths:
    """What the network does with every picture on one path."""
    with _changed(decoupled, paths, lambda bits: lambda z: bits.to(z).expand_as(z), path):
        return record(decoupled, batches)


def _without(decoupled: Decoupled, paths: Paths, bits: np.ndarray, batches: Sequence[Any]) -> Paths:
    """What the network does with some filters switched off."""
    kept = np.ones(sum(paths.sizes), dtype=bool)
    kept[bits] = False
    with _changed(decoupled, paths, lambda mask: lambda z: z * mask.to(z), kept):
        return record(decoupled, batches)


def _changed(
    decoupled: Decoupled, paths: Paths, change: Callable[[Tensor], Callable[[Tensor], Tensor]], bits: np.ndarray
) -> AbstractContextManager[Any]:
    """All gates changed by their part of `bits`, for a block."""
    parts = {site.gate: torch.from_numpy(bits[paths.span(site.layer)].copy()) for site in decoupled.sites}
    return changing(decoupled.model, {gate: change(part) for gate, part in parts.items()})


def _accuracy(paths: Paths, chosen: np.ndarray) -> float:
    """Percent of the chosen pictures that are called their class; NaN where there are none."""
    right = (paths.predicted == paths.labels)[chosen]
    return 100 * float(right.mean()) if len(right) else float("nan")


def _class_index(classes: np.ndarray, label: int) -> np.ndarray:
    if label not in classes:
        raise ValueError(f"label={label!r}: the paths know the classes {', '.join(map(str, classes))}")
    return np.flatnonzero(classes == label)[0]
