"""Steps of random networks that the engine does not have: torch computes them, between the engine's parts."""

import torch
from torch.nn import functional as F

from .graphs import Draft

FUNCTIONS = {
    "torch.sin": torch.sin, "x.abs()": lambda x: x.abs(), "cumsum": lambda x: x.cumsum(-1),
    "sort": lambda x: x.sort(dim=-1)[0], "x.amax": lambda x: x.amax(-1, keepdim=True), "F.softsign": F.softsign,
    "log1p": lambda x: x.abs().log1p(), "x ** 3": lambda x: x**3, "torch.where": lambda x: torch.where(x > 0, x, x / 2),
    "x.std": lambda x: x.std(dim=-1, correction=0, keepdim=True), "x.tril": lambda x: x.tril(),
    "x.amin": lambda x: x.amin(dim=-1), "torch.atan": torch.atan,
}  # fmt: skip


def foreign(d: Draft) -> int:
    name = d.pick(*FUNCTIONS)
    return d.step(name, lambda net, x: FUNCTIONS[name](x), d.value(2, 3, 4))


KINDS = (foreign,)
