"""How much a filter prefers one class, beside how much it does with the labels shuffled."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from .activations import labelled, named, reading


def selectivity(
    model: nn.Module, layer: str, batches: Iterable, *, shuffles: int = 20, seed: int = 0, progress: bool = True
) -> Any:
    """The class-selectivity index of each filter (Morcos et al. 2018): a pandas frame, one row a filter.

    index = (mu_max - mu_-max) / (mu_max + mu_-max): mu_max is the mean answer to the class it is highest for, mu_-max
    the mean over all other classes of their mean answers; a map's answer is the mean over its pixels. 0: no class is
    preferred; 1: only one is answered to; NaN: the filter never answers. `batches` give (x, y). Columns: index, class,
    mu_max, mu_other, shuffled (mean index over `shuffles` shuffles of the labels) and shuffled_high (their 95th
    percentile). ValueError where answers are negative: the index needs a layer behind its rectifier.
    """
    import pandas

    (layer,) = named(model, layer)
    outputs, labels = [], []
    for x, y in labelled(batches, "selectivity" if progress else ""):
        output = reading(model, layer, x).double()
        outputs.append((output.mean((2, 3)) if output.ndim == 4 else output).cpu())
        labels.append(y.cpu())
    means, label = torch.cat(outputs).numpy(), torch.cat(labels).numpy()  # (N, F), (N,)
    if means.min() < 0:
        raise ValueError(f"{layer!r} gives negative values, for which the index is not defined: name its rectifier")
    if len(np.unique(label)) < 2:
        raise ValueError("the labels hold one class only: selectivity needs two or more")
    index, best, high, other = selectivity_index(means, label)
    random = np.random.default_rng(seed)
    shuffled = np.stack([selectivity_index(means, random.permutation(label))[0] for _ in range(shuffles)])
    columns = {"index": index, "class": best, "mu_max": high, "mu_other": other}
    columns |= {"shuffled": shuffled.mean(0), "shuffled_high": np.quantile(shuffled, 0.95, axis=0)}
    return pandas.DataFrame(columns).rename_axis("filter")


def selectivity_index(means: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, ...]:
    """index, class, mu_max and mu_-max of each filter: answers (N, F) >= 0 and labels (N,) -> four of (F,)."""
    classes = np.unique(label)
    by_class = np.stack([means[label == c].mean(0) for c in classes])  # (classes, F)
    best = by_class.argmax(0)
    high = by_class.max(0)
    other = (by_class.sum(0) - high) / (len(classes) - 1)
    with np.errstate(invalid="ignore"):
        return (high - other) / (high + other), classes[best], high, other
