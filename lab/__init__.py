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
    from . import acenas, chain, course, decoupling, dqss, foldgpt, gal, hybridsd, hyperfd, lens, pams, sparsebytenn, ui
    from .acenas import AceNAS
    from .chain import Chain, chains
    from .core import cost, nets, tasks
    from .core.data import scenes
    from .core.finetune import finetune
    from .core.graph import surgery
    from .core.hub import push
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
    from .inference import engine
    from .pams import PAMS
    from .registry import works_with
    from .sparsebytenn import SparseByteNN
    from .ui import compare, view

    __version__: str

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
    "Chain": ("chain", "Chain"),
    "chains": ("chain", "chains"),
    "chain": "chain",
    "course": "course",
    "Task": ("core.task", "Task"),
    "Graph": ("core.spaces.architectures", "Graph"),
    "Space": ("core.spaces.architectures", "Space"),
    "Stream": ("core.spaces.streams", "Stream"),
    "view": ("ui", "view"),
    "compare": ("ui", "compare"),
    "finetune": ("core.finetune", "finetune"),
    "map": ("core.parallel", "map"),
    "engine": ("inference", "engine"),
    "push": ("core.hub", "push"),
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
    "Chain",
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
    "chain",
    "chains",
    "compare",
    "cost",
    "course",
    "decoupling",
    "dqss",
    "engine",
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
    "push",
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
    from .core import distribution

    if name == "__version__":
        return distribution.version()
    if name not in _HOMES:
        raise AttributeError(f"lab has no {name!r}; it has {', '.join(__all__)}")
    home = _HOMES[name]
    with distribution.needed("notebook"):
        if isinstance(home, str):
            return import_module(f".{home}", __name__)
        return getattr(import_module(f".{home[0]}", __name__), home[1])


def __dir__():
    return sorted(__all__)


def load(folder, base=None):
    """The outcome saved in `folder`, or in the repository 'hf://owner/name' of the hub: its model, report and trace.

    `base` is your own network, where nothing else builds it: an instance of the class that was compressed first, with
    any weights. Networks of lab.nets, torchvision, timm, transformers and diffusers, what was made from another
    outcome, and what was saved with `source=True` need none.
    """
    from .core import errors, hub, store
    from .core.outcome import origin_of, restored

    folder = store.present(hub.fetched(folder))
    saved = store.load(folder, "outcome")
    name = saved.get("recipe") if isinstance(saved, dict) else None
    if name == "Chain":
        return __getattr__("chain").loading.restored_chain(saved, folder, base, load)
    if name not in tuple(_RECIPES):
        kind = errors.shown(name) if isinstance(name, str) else f"a {type(name).__name__}"  # a tensor's takes lines
        raise ValueError(f"{folder} holds an outcome of {kind}; this version of the lab has {', '.join(_RECIPES)}")
    origin = origin_of(saved, folder, base, load)
    outcome = getattr(import_module(f".{_RECIPES[name][0]}.recipe", __name__), f"{name}Outcome")
    return restored(outcome, __getattr__(name), saved, folder, base, origin)


def _warn_of_a_clash():
    """Say so in one line if another project has put files of its own into this folder."""
    import warnings

    from .core import distribution

    if line := distribution.clash():
        warnings.warn(line, RuntimeWarning, stacklevel=3)


_warn_of_a_clash()
