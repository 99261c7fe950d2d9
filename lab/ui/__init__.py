"""Shared looks: the explorer, small pictures, one figure style, and the verbs `view` and `compare`."""

import sys
from functools import singledispatch
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from . import raster, svg
from .classifier import Classifier
from .comparison import Comparison, compare
from .contests import Contest, contest
from .explorer import Control, Explorer, Frame, page
from .exporting import export
from .figures import figure
from .pruning import pruning_rate

__all__ = [
    "Classifier",
    "Comparison",
    "Contest",
    "Control",
    "Explorer",
    "Frame",
    "compare",
    "contest",
    "export",
    "figure",
    "page",
    "pruning_rate",
    "raster",
    "svg",
    "view",
]


@singledispatch
def view(thing: Any, **options: Any) -> Any:
    """Show a thing the lab knows how to show: an explorer or a figure. TypeError where it knows none.

    A class of `<package>/recipe.py` is shown by what `<package>/view.py` registers with `@view.register`.
    """
    for package in (kind.__module__.rpartition(".")[0] for kind in type(thing).__mro__):
        if package in sys.modules and find_spec(f"{package}.view"):
            import_module(f"{package}.view")
    shown = view.dispatch(type(thing))
    if shown is view.dispatch(object):
        raise TypeError(f"nothing to see for {type(thing).__name__}: view takes an outcome of one of the lab's recipes")
    return shown(thing, **options)
