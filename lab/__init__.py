"""A laboratory for small neural networks: pick a recipe, run it, read the report, look at the picture.

>>> import lab
>>> outcome = lab.GAL().run()       # a real task, its own seed, about a minute
>>> outcome                         # what changed, as a table
>>> lab.view(outcome)               # the run, replayed

On a network and data of your own: `lab.GAL().run(lab.Task(model=net, batches=loader, score=score))`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what the names below are, for editors and type checkers
    from . import acenas, decoupling, dqss, foldgpt, gal, hybridsd, hyperfd, lens, pams, sparsebytenn, ui
    from .acenas import AceNAS
    from .core import cost, nets, tasks
    from .core.data import scenes
    from .core.finetune import finetune
    from .core.graph import surgery
    from .core.parallel import map
    from .core.spaces import tables
    from .core.spaces.architectures import Graph, Space
    from .core.spaces.streams import Stream
    from .core.task import Task
    from .decoupling import Decoupling
    from .dqss import DQSS
    from .foldgpt import FoldGPT
    from .gal import GAL
    from .hybridsd import HybridSD
    from .hyperfd import HyperFD
    from .pams import PAMS
    from .registry import works_with
    from .sparsebytenn import SparseByteNN
    from .ui import compare, view

__version__ = "0.1.0"

# Public name -> module, or (module, attribute). Loaded at first use: `import lab` is fast and imports no torch.
_RECIPES = {
    "GAL": ("gal", "GAL"),
    "Decoupling": ("decoupling", "Decoupling"),
    "PAMS": ("pams", "PAMS"),
    "DQSS": ("dqss", "DQSS"),
    "SparseByteNN": ("sparsebytenn", "SparseByteNN"),
    "FoldGPT": ("foldgpt", "FoldGPT"),
    "HybridSD": ("hybridsd", "HybridSD"),
    "AceNAS": ("acenas", "AceNAS"),
    "HyperFD": ("hyperfd", "HyperFD"),
}
_HOMES = {
    **_RECIPES,
    **{package: package for package, _ in _RECIPES.values()},  # the methods' rooms: help(lab.gal) is a card
    "Task": ("core.task", "Task"),
    "Graph": ("core.spaces.architectures", "Graph"),
    "Space": ("core.spaces.architectures", "Space"),
    "Stream": ("core.spaces.streams", "Stream"),
    "view": ("ui", "view"),
    "compare": ("ui", "compare"),
    "finetune": ("core.finetune", "finetune"),
    "map": ("core.parallel", "map"),
    "works_with": ("registry", "works_with"),
    "tables": "core.spaces.tables",
    "tasks": "core.tasks",
    "scenes": "core.data.scenes",
    "nets": "core.nets",
    "cost": "core.cost",
    "surgery": "core.graph.surgery",
    "lens": "lens",
    "ui": "ui",
}
__all__ = [
    "DQSS",
    "GAL",
    "PAMS",
    "RECIPES",
    "AceNAS",
    "Decoupling",
    "FoldGPT",
    "Graph",
    "HybridSD",
    "HyperFD",
    "Space",
    "SparseByteNN",
    "Stream",
    "Task",
    "acenas",
    "compare",
    "cost",
    "decoupling",
    "dqss",
    "finetune",
    "foldgpt",
    "gal",
    "hybridsd",
    "hyperfd",
    "lens",
    "load",
    "map",
    "nets",
    "pams",
    "scenes",
    "sparsebytenn",
    "surgery",
    "tables",
    "tasks",
    "ui",
    "view",
    "works_with",
]


def __getattr__(name):
    if name == "RECIPES":
        return tuple(__getattr__(recipe) for recipe in _RECIPES)
    if name not in _HOMES:
        raise AttributeError(f"lab has no {name!r}; it has {', '.join(__all__)}")
    home = _HOMES[name]
    if isinstance(home, str):
        return import_module(f".{home}", __name__)
    return getattr(import_module(f".{home[0]}", __name__), home[1])


def __dir__():
    return sorted(__all__)


def load(folder, base=None):
    """The outcome saved in `folder`: its model, report and trace. `base` is your own network, where the lab has no
    builder for it: an instance of the class that was compressed, with any weights.
    """
    from .core import store
    from .core.outcome import restored

    saved = store.load(folder, "outcome")
    name = saved.get("recipe") if isinstance(saved, dict) else None
    if name not in tuple(_RECIPES):
        raise ValueError(f"{folder} holds an outcome of {name!r}; this version of the lab has {', '.join(_RECIPES)}")
    outcome = getattr(import_module(f".{_RECIPES[name][0]}.recipe", __name__), f"{name}Outcome")
    return restored(outcome, __getattr__(name), saved, store.present(folder), base)
