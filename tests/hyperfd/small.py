"""A stream that is known by rule, and a platform for it: nothing is trained."""

import torch

from lab.core.spaces.streams import Stream
from lab.hyperfd.client import DataOwner
from lab.hyperfd.learning import RoundConfig
from lab.hyperfd.platform import Platform

HOW = RoundConfig(R=4, m=16, steps=6)
CHOICES = [(width, side, kind) for width in (1, 2, 4) for side in (96, 128, 192) for kind in ("a", "b")]


def stream(tasks=6, pictures=40, hole=False):
    """Data sets are clouds of numbers about a middle; which configuration is best hangs on the middle."""
    middles = torch.linspace(-1.5, 1.5, tasks)
    looks, scores = {}, torch.zeros(tasks, len(CHOICES), dtype=torch.float64)
    for task, middle in enumerate(middles):
        random = torch.Generator().manual_seed(task)
        looks[f"set {task}"] = middle + 0.3 * torch.randn(pictures, 3, generator=random)
        for number, (width, side, kind) in enumerate(CHOICES):
            fit = -((float(torch.tensor(side / 128.0).log()) * 3 - middle) ** 2)
            scores[task, number] = 60 + 8 * fit + width + (2 if kind == "a" else 0) * torch.sign(middle)
    if hole:
        scores[:, 5] = torch.nan
    return Stream(
        names=list(looks),
        choices=CHOICES,
        scores=scores,
        data=looks.__getitem__,
        name="clouds",
        default=8,
        decisions=("width", "side", "kind"),
        unit="%",
    )


def client(which=0, how=HOW, tasks=None, **options):
    tasks = tasks or stream()
    data = tasks.data(tasks.names[which])
    return DataOwner(
        data, tasks.codes(), lambda rows: tasks.evaluate(which, rows), how, pool=tasks.pool(which), **options
    )


def platform(how=HOW, seed=0, folder=None):
    tasks = stream()
    return Platform((3,), tasks.codes(), how, seed, folder)
